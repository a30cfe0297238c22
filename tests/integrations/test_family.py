"""MPNet, ALBERT, GTE, NomicBERT and ModernBERT: what they have beside what test_live_parity.py asks of every family.

Above all packed rows: relative positions and windows go by places in the padded sequence, whatever is packed.
"""

import copy

import pytest
import torch
from numerics import assert_close_to_truth

from bert_fast import use_backend
from bert_fast.integrations import accelerate, restore

transformers = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 90,
    "vocab_size": 101,
    "max_position_embeddings": 40,
}
GROUPS = {"embedding_size": 20, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2}
BIASED = {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "hidden_activation": "silu"}
MODERN = {"num_hidden_layers": 4, "local_attention": 6, "pad_token_id": 1}
KINDS = {
    "mpnet": ("MPNet", {}),
    "mpnet_tanh": ("MPNet", {"hidden_act": "gelu_new"}),
    "albert": ("Albert", {"embedding_size": 20}),
    "albert_groups": ("Albert", GROUPS),
    "gte": ("Gte", {"hidden_act": "gelu"}),
    "gte_no_types": ("Gte", {"type_vocab_size": 0}),
    "nomic": ("NomicBert", {}),
    "modernbert": ("ModernBert", MODERN),
    "modernbert_biased": ("ModernBert", {**MODERN, **BIASED}),
    "modernbert_global": ("ModernBert", {**MODERN, "layer_types": ["full_attention"] * 4}),
}
FIRST = ("mpnet", "albert", "gte", "nomic", "modernbert")
B, S = 6, 17
NO_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "mlp_dropout")


def model(kind, head="Model", **changes):
    """One of theirs with weights of a scale at which every part matters, in eval mode."""
    name, settings = KINDS[kind]
    if not hasattr(transformers, name + head):
        pytest.skip(f"this transformers has no {name}{head}")
    config = getattr(transformers, name + "Config")
    if int(transformers.__version__.split(".")[0]) < 5 and (name == "ModernBert" or settings is GROUPS):
        pytest.skip("this kind is accelerated with transformers 5 only, and says so")
    none = {key: 0.0 for key in NO_DROPOUT if hasattr(config(), key)}
    made = getattr(transformers, name + head)(config(**{**TINY, **none, **settings, **changes}))
    generator, std = torch.Generator().manual_seed(0), 0.1 if settings is GROUPS else 0.2  # that one is 8 layers deep
    with torch.no_grad():
        for parameter in made.parameters():
            ones = bool(parameter[0].eq(1).all())
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std + ones)
    made.set_attn_implementation("eager" if name == "MPNet" else "sdpa")
    return made.eval()


def three(kind, head="Model", positions="exact", **changes):
    """Accelerated, untouched, and untouched in float64."""
    theirs = model(kind, head, **changes)
    ours, truth = accelerate(copy.deepcopy(theirs), hidden_positions=positions), copy.deepcopy(theirs).double()
    return ours, theirs, truth


def encoder(module):
    return next(m for m in module.modules() if "forward" in m.__dict__).forward


def mask_of(padding):
    mask = torch.ones(B, S, dtype=torch.int64)
    for row, length in enumerate((17, 5, 9, 1, 16, 8)):
        if padding == "right":
            mask[row, length:] = 0
        elif padding == "left":
            mask[row, : S - length] = 0
        elif padding == "holes":
            mask[row, 1 + row : 1 + row + length // 2] = 0
    return None if padding == "none" else mask


def ids():
    return torch.randint(2, 101, (B, S), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("padding, positions", [("none", "exact"), *((p, "zero") for p in ("right", "left", "holes"))])
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_states_and_gradients(kind, padding, positions):
    models, mask = three(kind, positions=positions), mask_of(padding)
    read = torch.ones(B, S, dtype=torch.bool) if mask is None else mask.bool()
    weight = torch.randn(B, S, 48, generator=torch.Generator().manual_seed(2))
    runs = []
    for each in models:
        with torch.no_grad():
            quiet = each(input_ids=ids(), attention_mask=mask, output_hidden_states=True)
        loud = each(input_ids=ids(), attention_mask=mask)
        loss, pooled = (loud.last_hidden_state * weight)[read].sum(), quiet.get("pooler_output")
        if pooled is not None:
            loss = loss + loud.pooler_output.sum()
        loss.backward()
        kept = [state[read] for state in (*quiet.hidden_states, quiet.last_hidden_state, loud.last_hidden_state)]
        grads = {name: p.grad for name, p in each.named_parameters() if p.grad is not None}
        runs.append((type(quiet), list(quiet), [*kept, *([] if pooled is None else [pooled])], grads))
    assert encoder(models[0]).accelerated == 2 and not encoder(models[0]).reasons
    (kind_of, names, ours, grads), (theirs_kind, theirs_names, theirs, theirs_grads), (_, _, truth, true_grads) = runs
    assert kind_of is theirs_kind and names == theirs_names
    for got, eager, want in zip(ours, theirs, truth, strict=True):
        assert_close_to_truth(got, eager.detach(), want.detach(), torch.float32, k=90)
    assert grads.keys() == theirs_grads.keys()
    for name, want in true_grads.items():
        if want.abs().max() > 1e-9:  # a key's bias, and what rotary positions leave of one, has none but rounding
            assert_close_to_truth(grads[name], theirs_grads[name], want, torch.float32, k=90, name=name)


@pytest.mark.parametrize("kind", FIRST)
def test_given_positions_embeddings_and_tuples(kind):
    ours, theirs, truth = three(kind, positions="zero")
    positions = torch.arange(S - 1, -1, -1).expand(B, S) + 2
    embeds = torch.randn(B, S, theirs.get_input_embeddings().embedding_dim)
    mask = mask_of("right")
    for given in ({"position_ids": positions, "input_ids": ids()}, {"inputs_embeds": embeds}):
        doubled = {name: x.double() if x.is_floating_point() else x for name, x in given.items()}
        with torch.no_grad():
            x, y = (m(**given, attention_mask=mask, return_dict=False) for m in (ours, theirs))
            z = truth(**doubled, attention_mask=mask)[0]
        assert type(x) is tuple and len(x) == len(y)
        assert_close_to_truth(x[0][mask.bool()], y[0][mask.bool()], z[mask.bool()], torch.float32, k=90)
    assert encoder(ours).accelerated == 2


@pytest.mark.parametrize("kind", ["mpnet", "albert", "gte", "modernbert"])
def test_training_drops_and_evaluation_does_not(kind):
    name = "attention_dropout" if kind == "modernbert" else "attention_probs_dropout_prob"
    ours = accelerate(model(kind, **{name: 0.5}), hidden_positions="exact")
    first, second = (ours(input_ids=ids()).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    ours.train()
    third, fourth = (ours(input_ids=ids()).last_hidden_state for _ in range(2))
    assert not torch.equal(third, fourth) and not torch.equal(first, third)
    ours.eval()
    assert torch.equal(ours(input_ids=ids()).last_hidden_state, first)
    assert encoder(ours).accelerated == 5


def test_albert_draws_other_dropout_at_every_depth():
    ours = accelerate(model("albert_groups"))
    layers = encoder(ours).parts().encoder.layer
    sites = [site for layer in layers for site in (layer.attention.self.dropout_site, layer.output.dropout_site)]
    assert len(layers) == 8 and len(set(sites)) == len(sites)
    assert layers[0].attention.self.query is layers[2].attention.self.query


@pytest.mark.parametrize("kind", ["gte", "modernbert"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    runs = []
    for checkpointed in (False, True):
        ours = accelerate(model(kind), hidden_positions="zero").train()
        if checkpointed:
            ours.gradient_checkpointing_enable()
        ours(input_ids=ids(), attention_mask=mask_of("left")).last_hidden_state.square().sum().backward()
        assert encoder(ours).accelerated == 1
        runs.append([p.grad for p in ours.parameters() if p.grad is not None])
    for got, want in zip(*runs, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("kind", FIRST)
def test_on_the_kernels_with_gradients(kind):
    pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
    layers = 2 if kind == "modernbert" else 1  # of which one is local
    ours, theirs, truth = three(kind, positions="zero", num_hidden_layers=layers, num_attention_heads=2)
    given = {"input_ids": ids()[1:3, :9], "attention_mask": mask_of("right")[1:3, :9]}
    real = given["attention_mask"].bool()
    with use_backend("triton"):
        out = ours(**given).last_hidden_state
        out[real].square().sum().backward()
    states = [out, *(m(**given).last_hidden_state for m in (theirs, truth))]
    assert encoder(ours).accelerated == 1
    for state in states[1:]:
        state[real].square().sum().backward()
    assert_close_to_truth(*(s.detach()[real] for s in states), torch.float32, k=90)
    grads = [{n: p.grad for n, p in m.named_parameters()} for m in (ours, theirs, truth)]
    for name, want in grads[2].items():
        if want is not None and want.abs().max() > 1e-9:
            assert_close_to_truth(grads[0][name], grads[1][name], want, torch.float32, k=90, name=name)


@pytest.mark.parametrize("positions", ["exact", "zero"])
@pytest.mark.parametrize("kind", ["mpnet", "modernbert"])
def test_compiled(kind, positions):
    torch._dynamo.reset()
    ours, theirs, truth = three(kind, positions=positions)
    mask = mask_of("holes")
    ours(input_ids=ids(), attention_mask=mask)  # its modules are wrapped outside the graph
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    states = [m(input_ids=ids(), attention_mask=mask).last_hidden_state for m in (compiled, theirs, truth)]
    assert not encoder(ours).reasons
    assert_close_to_truth(*(s.detach()[mask.bool()] for s in states), torch.float32, k=90)


@pytest.mark.parametrize("kind", FIRST)
def test_what_is_not_carried_runs_their_code_with_the_reason(kind):
    ours, theirs, _ = three(kind, positions="zero")
    for each in (ours, theirs):
        each.set_attn_implementation("eager")
    with pytest.warns(RuntimeWarning, match="output_attentions"), torch.no_grad():
        x = ours(input_ids=ids(), attention_mask=mask_of("right"), output_attentions=True)
    with torch.no_grad():
        y = theirs(input_ids=ids(), attention_mask=mask_of("right"), output_attentions=True)
    assert torch.equal(x.last_hidden_state, y.last_hidden_state)
    assert all(torch.equal(a, b) for a, b in zip(x.attentions, y.attentions, strict=True))
    before = {name: id(p) for name, p in ours.named_parameters()}
    restore(ours)
    assert "forward" not in ours.__dict__ and {name: id(p) for name, p in ours.named_parameters()} == before


@torch.no_grad()
def test_modernbert_with_eager_attention_and_windows_that_are_all_hidden():
    theirs = model("modernbert")
    theirs.set_attn_implementation("eager")
    ours = accelerate(copy.deepcopy(theirs))
    with pytest.warns(RuntimeWarning, match="eager attention has numbers of its own"):
        got = ours(input_ids=ids(), attention_mask=mask_of("left")).last_hidden_state
    assert torch.equal(got, theirs(input_ids=ids(), attention_mask=mask_of("left")).last_hidden_state)
    ours(input_ids=ids())
    assert encoder(ours).accelerated == 1
