"""torch.compile, torch.export, autocast, checkpointing: the model inside PyTorch's own machinery."""

import pytest
import torch
from numerics import assert_close_to_truth
from torch._dynamo.testing import CompileCounterWithBackend
from twins import HEADS, TINY, B, S, batch, config, double, labels_of, ours, padding, randomize, shaped, twins

import bert_fast
from bert_fast import PackedBatch

SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 40}


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def random_batch(rows, length, generator, kind="padded"):
    ids = torch.randint(0, TINY["vocab_size"], (rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    if kind == "packed":
        return (PackedBatch.from_sequences([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)]),)
    return ids, mask


def gradients_of(model, output):
    model.zero_grad()
    (output[0].square().sum() + output[1].sum()).backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", ["padded", "packed"])
@pytest.mark.parametrize("grad", [False, True], ids=["forward", "backward"])
def test_fullgraph_over_20_lengths_recompiles_at_most_twice(grad, kind):
    model = randomize(bert_fast.BertModel(config(**SMALL)))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows = int(torch.randint(2, 6, (), generator=generator))
        length = int(torch.randint(4, 40, (), generator=generator))
        arguments = random_batch(rows, length, generator, kind)
        with torch.set_grad_enabled(grad):
            got, want = compiled(*arguments), model(*arguments)
        for left, right in zip(got.to_tuple(), want.to_tuple(), strict=True):
            assert torch.allclose(left, right, rtol=0, atol=1e-5)
        if grad:
            for left, right in zip(gradients_of(model, got), gradients_of(model, want), strict=True):
                assert torch.allclose(left, right, rtol=1e-3, atol=1e-3)
    assert counter.frame_count <= 3, f"{counter.frame_count - 1} recompiles over 20 lengths"


@pytest.mark.parametrize("name", HEADS)
def test_fullgraph_of_every_head_with_labels(name):
    model = twins(name, num_hidden_layers=1)[0].train()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for padded in ("holes", "left"):
        arguments = shaped(name, {**batch(padding(padded)), **labels_of(name)})
        got, want = compiled(**arguments), model(**arguments)
        assert list(got.keys()) == list(want.keys())
        for key in want:
            assert torch.allclose(got[key], want[key], rtol=0, atol=2e-5), key
        model.zero_grad()
        got.loss.backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        want.loss.backward()
        expected = [p.grad for p in model.parameters() if p.grad is not None]
        for left, right in zip(grads, expected, strict=True):
            assert torch.allclose(left, right, rtol=1e-3, atol=1e-5)


OPTIONS = {
    "no_mask": {},
    "exact": {"attention_mask": "holes", "hidden_positions": "exact"},
    "attentions": {"attention_mask": "holes", "output_attentions": True, "output_hidden_states": True},
    "tuple": {"attention_mask": "right", "return_dict": False},
}


@pytest.mark.parametrize("case", [*OPTIONS, "4d_mask", "inputs_embeds"])
def test_fullgraph_of_every_option(case):
    model = ours(num_hidden_layers=1)
    arguments = {**batch(), **OPTIONS.get(case, {})}
    if isinstance(arguments.get("attention_mask"), str):
        arguments["attention_mask"] = padding(arguments["attention_mask"])
    if case == "4d_mask":
        arguments["attention_mask"] = (torch.rand(B, 1, S, S) < 0.5) | torch.eye(S, dtype=torch.bool)
    if case == "inputs_embeds":
        arguments = {"inputs_embeds": torch.randn(B, S, TINY["hidden_size"]), "attention_mask": padding("left")}
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        got, want = compiled(**arguments), model(**arguments)
    for left, right in zip(torch.utils._pytree.tree_leaves(got), torch.utils._pytree.tree_leaves(want), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=2e-5)


def test_traced_whole_gradients_pass_the_hidden_states():
    model = ours(num_hidden_layers=1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    found = []
    for run in (model, compiled):
        output = run(**batch(padding("left")), output_hidden_states=True)
        loss = output.last_hidden_state.square().sum() + output.pooler_output.square().sum()
        found.append(torch.autograd.grad(loss, output.hidden_states))
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_inductor_forward_and_backward():
    model = randomize(bert_fast.BertModel(config(**SMALL)))
    compiled = torch.compile(model, fullgraph=True)
    got, want = compiled(**batch(padding("holes"))), model(**batch(padding("holes")))
    for left, right in zip(got.to_tuple(), want.to_tuple(), strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-5)
    for left, right in zip(gradients_of(model, got), gradients_of(model, want), strict=True):
        assert torch.allclose(left, right, rtol=1e-3, atol=1e-3)


def test_a_model_compiled_after_a_cached_forward_reads_weights_that_change():
    model = ours(num_hidden_layers=1)
    with torch.no_grad():
        model(**batch())
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        first = compiled(**batch())[0]
        model.encoder.layer[0].intermediate.dense.weight.data.mul_(2)
        second, eager = compiled(**batch())[0], model(**batch())[0]
    assert torch.allclose(second, eager, rtol=0, atol=1e-5)
    assert not torch.allclose(first, second, atol=1e-3)


def test_compiled_dropout_drops_and_its_mask_follows_the_seed():
    model = randomize(bert_fast.BertModel(config(**SMALL, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)))
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(compiled(**batch(padding("right")))[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-2)


class Exportable(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        output = self.model(input_ids, attention_mask)
        return output.last_hidden_state, output.pooler_output


@pytest.mark.parametrize("dynamic", [True, False], ids=["dynamic_shapes", "fixed_shapes"])
def test_export_gives_a_program_for_any_mask_and_length(dynamic):
    model = ours(num_hidden_layers=1)
    wrapped = Exportable(model)
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=40)}
    shapes = (dims, dims) if dynamic else None
    example = (batch()["input_ids"], padding("right"))
    with torch.no_grad():
        program = torch.export.export(wrapped, example, dynamic_shapes=shapes).module()
        generator = torch.Generator().manual_seed(0)
        for rows, length in [(B, S), (3, 11), (2, 40), (9, 5)] if dynamic else [(B, S), (B, S)]:
            arguments = random_batch(rows, length, generator)
            for got, want in zip(program(*arguments), wrapped(*arguments), strict=True):
                assert torch.allclose(got, want, rtol=0, atol=1e-5)


def test_an_exported_program_is_saved_and_loaded(tmp_path):
    wrapped = Exportable(ours(num_hidden_layers=1))
    arguments = (batch()["input_ids"], padding("holes"))
    with torch.no_grad():
        torch.export.save(torch.export.export(wrapped, arguments), tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        assert torch.allclose(loaded(*arguments)[0], wrapped(*arguments)[0], rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_is_refused_because_it_would_freeze_the_lengths():
    with pytest.raises(RuntimeError, match="torch.jit.trace .* use torch.export"):
        torch.jit.trace(Exportable(ours()), (batch()["input_ids"], padding("right")))


# torch.func and forward-mode gradients


def test_vmap_over_embeddings_gives_the_same_numbers():
    model, x = ours(), torch.randn(3, S, TINY["hidden_size"])
    with torch.no_grad():
        model(**batch())
        expected = model(inputs_embeds=x)[0]
        output = torch.func.vmap(lambda row: model(inputs_embeds=row[None])[0][0])(x)
    assert torch.allclose(output, expected, rtol=0, atol=1e-5)


def test_vmap_over_an_ensemble_of_weights_gives_each_models_numbers():
    models = [ours(seed=seed) for seed in range(3)]
    arguments = batch(padding("right"))
    with torch.no_grad():
        expected = torch.stack([m(**arguments)[0] for m in models])
        weights, _ = torch.func.stack_module_state(models)
        output = torch.func.vmap(
            lambda w: torch.func.functional_call(models[0], w, (), {**arguments, "return_dict": False})[0]
        )(weights)
    assert torch.allclose(output, expected, rtol=0, atol=1e-5)


def test_vmap_over_masks_is_an_error_not_a_wrong_number():
    model, arguments = ours(), batch()
    with torch.no_grad(), pytest.raises(RuntimeError):
        torch.func.vmap(lambda m: model(arguments["input_ids"][:1], m[None])[0])(padding("right"))


def test_functional_gradients_agree_with_autograd():
    model, arguments = ours(num_hidden_layers=1), batch(padding("right"))
    weights = dict(model.named_parameters())

    def loss(w):
        return torch.func.functional_call(model, w, (), arguments)[0].square().sum()

    got = torch.func.grad(loss)(weights)
    model(**arguments)[0].square().sum().backward()
    for name, parameter in weights.items():
        want = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert torch.allclose(got[name], want, rtol=1e-3, atol=1e-3), name


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_forward_mode_tangents_are_right_or_refused(grad):
    """Without gradients, derived weights would have dropped the tangent in silence."""
    from torch.autograd import forward_ad
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = double(ours())
    x, direction = torch.randn(2, B, S, TINY["hidden_size"], dtype=torch.float64)
    with torch.no_grad():
        model(**batch())
        ahead, behind = (model(inputs_embeds=x + sign * 1e-6 * direction)[0] for sign in (1, -1))
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)
        with pytest.raises(NotImplementedError, match="forward AD"):
            model(inputs_embeds=dual)
        with sdpa_kernel(SDPBackend.MATH):
            tangent = forward_ad.unpack_dual(model(inputs_embeds=dual)[0]).tangent
    assert torch.allclose(tangent, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-6)


# Autocast


@pytest.mark.parametrize("padded", ["no_mask", "right", "left", "holes"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM", "BertForSequenceClassification"])
def test_autocast_holds_the_contract(name, dtype, grad, padded):
    mine, theirs = twins(name)
    mask = padding(padded)
    visible = torch.ones(B, S, dtype=torch.bool) if mask is None else mask.bool()
    arguments = {**batch(mask), **labels_of(name)}
    truth = double(theirs)(**arguments)
    with torch.no_grad():
        mine(**batch(mask))
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype):
        got, eager = mine(**arguments), theirs(**arguments)
    for key in truth:
        left, right, exact = got[key], eager[key], truth[key]
        if exact.shape[:2] == (B, S):
            left, right, exact = left[visible], right[visible], exact[visible]
        assert_close_to_truth(left, right, exact, dtype, 1, key)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "BertForSequenceClassification"])
def test_gradients_under_autocast_hold_the_contract(name):
    mine, theirs = twins(name)
    arguments = {**batch(padding("holes")), **labels_of(name)}
    exact = double(theirs)
    exact(**arguments).loss.backward()
    for model in (mine, theirs):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**arguments).loss
        loss.backward()
    for (key, got), eager, truth in zip(mine.named_parameters(), theirs.parameters(), exact.parameters(), strict=True):
        if got.grad is None:
            assert eager.grad is None, key
            continue
        assert got.grad.dtype == torch.float32
        if not key.endswith("key.bias"):
            assert_close_to_truth(got.grad, eager.grad, truth.grad, torch.bfloat16, 1, key)


def test_autocast_leaves_the_cached_float32_numbers_alone():
    model = ours()
    with torch.no_grad():
        before = model(**batch())[0]
        with torch.autocast("cpu", torch.bfloat16):
            inside = model(**batch())[0]
        after = model(**batch())[0]
    assert torch.equal(before, after)
    assert 1e-4 < (inside - before).abs().max() < 1


# Gradient checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_gradient_checkpointing_changes_nothing_but_memory(name, dropout):
    changes = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = ours(name, **changes).train()
    results, saved = [], []
    for enabled in (False, True):
        (model.gradient_checkpointing_enable if enabled else model.gradient_checkpointing_disable)()
        assert model.is_gradient_checkpointing == enabled
        torch.manual_seed(3)
        count = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, count=count: count.append(1) or x, lambda x: x):
            output = model(**batch(padding("holes")))[0]
        model.zero_grad()
        output.square().sum().backward()
        results.append([output, *(p.grad for p in model.parameters() if p.grad is not None)])
        saved.append(len(count))
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)
    assert saved[1] < saved[0] / 2, "nothing was recomputed"


def test_gradient_checkpointing_is_off_in_eval_and_gives_hidden_states():
    model = ours().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    output = model(**batch(padding("right")), output_hidden_states=True)
    assert len(output.hidden_states) == TINY["num_hidden_layers"] + 1
    expected = ours().eval()(**batch(padding("right")), output_hidden_states=True)
    for got, want in zip(output.hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("arguments", [{"use_reentrant": True}, {"determinism_check": "none"}], ids=str)
def test_gradient_checkpointing_refuses_what_it_has_not(arguments):
    with pytest.raises(ValueError, match="gradient_checkpointing_kwargs may only hold use_reentrant=False"):
        ours().gradient_checkpointing_enable(arguments)


def test_gradient_checkpointing_with_frozen_weights_and_adapters():
    """What PEFT does: everything frozen but a small part, and the embeddings' output made to require gradients."""
    model = ours().train()
    model.requires_grad_(False)
    last = model.encoder.layer[1].output.dense
    last.weight.requires_grad_(True)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    model(**batch(padding("right")))[0].square().sum().backward()
    recomputed = last.weight.grad.clone()
    last.weight.grad = None
    model.disable_input_require_grads()
    model.gradient_checkpointing_disable()
    model(**batch(padding("right")))[0].square().sum().backward()
    assert torch.equal(recomputed, last.weight.grad)
    assert model.encoder.layer[0].output.dense.weight.grad is None


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_a_graph_may_end_where_rows_are_unpadded(name, gradients):
    """Without fullgraph a compiled model breaks off at an op whose result has a size of its own."""
    model = ours(name).eval()
    arguments = batch(padding("right"))
    compiled = torch.compile(model, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(compiled(**arguments)[0], model(**arguments)[0], rtol=0, atol=1e-5)
