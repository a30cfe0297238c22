"""Half a layer as one node: numbers, every gradient, what users attach to modules and tensors, when modules run."""

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn, seed_tensor
from numerics import assert_close_to_truth
from torch import nn
from twins import batch, config, ours, padding, randomize

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import PackedBatch, backend, ops, use_backend  # noqa: E402
from bert_fast.kernels import attention_backward, gelu, layer_norm  # noqa: E402
from bert_fast.layers import BertLayer, blocks  # noqa: E402
from bert_fast.packing import Layout  # noqa: E402

T, H = 14, 32
SMALL = {"hidden_size": H, "num_attention_heads": 2, "intermediate_size": 40}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
# The modules that a block stands for. attention.self.dropout is never called: its probability is read.
PARTS = [
    name for name, _ in BertLayer(config()).named_modules() if name not in ("", "attention", "attention.self.dropout")
]


@pytest.fixture(autouse=True)
def _kernels():
    with use_backend("triton"):
        yield


@pytest.fixture
def taken(monkeypatch):
    """What became of each offer to run half a layer as one node, in order: True where it did."""
    seen = []

    def watched(function):
        def offered(*args):
            y = function(*args)
            seen.append(y is not None)
            return y

        return offered

    for name in ("attend", "feed_forward"):
        monkeypatch.setattr(blocks, name, watched(getattr(blocks, name)))
    return seen


def layer_of(dtype=torch.float32, **changes):
    return randomize(BertLayer(config(**SMALL, **changes))).to(DEVICE, dtype).train()


def layout(key_mask=False, bias=False):
    cu_seqlens = torch.tensor([0, 5, 5, T], dtype=torch.int32, device=DEVICE)
    mask = torch.arange(T, device=DEVICE) % 5 != 2 if key_mask else None
    scores = randn(3, 1, 9, 9) if bias else None
    return Layout(cu_seqlens, 9, key_mask=mask, bias=scores, plan=ops.attention_plan(cu_seqlens), seed=seed_tensor())


def run(layer, x, given):
    """The output, and the gradients of x and of every parameter, by name; None where there is none."""
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x, given)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y))
    return {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in layer.named_parameters()}}


def called(layer):
    """The same layer with its modules called: hooks that change nothing, but none that moves dropout's masks."""
    for name in PARTS:
        if not name.endswith(("dropout", "LayerNorm")):
            layer.get_submodule(name).register_forward_hook(lambda *_: None)
    return layer


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        if want[name] is None:
            assert got[name] is None, name
        elif not name.endswith("key.bias"):  # 0 in truth: rounding alone
            assert torch.allclose(got[name], want[name], rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("act, dropout", [("gelu", DROPOUT), ("gelu_new", {})], ids=["dropping", "tanh_plain"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_every_gradient_hold_the_contract(dtype, dropout, act, taken):
    layer, x, given = layer_of(dtype, hidden_act=act, **dropout), randn(T, H, dtype=dtype), layout(key_mask=True)
    got = run(layer, x, given)
    assert taken == [True, True]
    with use_backend("reference"):
        eager, truth = run(layer, x, given), run(layer.double(), x.double(), given)
    assert taken == [True, True]
    for name in got:
        if name.endswith("key.bias"):  # softmax does not see it
            assert (got[name] == 0).all()
            assert truth[name].abs().max() < 1e-12
        else:
            assert_close_to_truth(got[name], eager[name], truth[name], dtype, T, name)


@pytest.mark.parametrize("op", ["attention", "dropout_add_layer_norm", "bias_gelu"])
def test_a_kernel_that_fails_in_the_backward_pass_leaves_the_gradients_right(op, monkeypatch, taken):
    """As in its first training step on a new GPU: PyTorch's ops take over in the midst of a node."""
    layer, x, given = layer_of(**DROPOUT), randn(T, H), layout(key_mask=True)
    want = run(layer, x, given)
    home = {"attention": attention_backward, "dropout_add_layer_norm": layer_norm, "bias_gelu": gelu}[op]

    def launcher(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(home, f"{op}_backward", launcher)
    monkeypatch.setattr(backend, "_broken", {})
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ())
    with use_backend("auto"), pytest.warns(RuntimeWarning, match=f"^{op} runs on PyTorch's ops: .*no space left"):
        got = run(layer, x, given)
    assert taken == [True] * 4
    assert_same(got, want)


@pytest.mark.parametrize("given", [{"key_mask": True}, {"bias": True}], ids=str)
def test_masks_act_as_in_the_modules(given, taken):
    x, given = randn(T, H), layout(**given)
    assert_same(run(layer_of(**DROPOUT), x, given), run(called(layer_of(**DROPOUT)), x, given))
    assert taken == [True, True]


HOOKS = [*((part, "forward_pre") for part in PARTS), ("output.dense", "full_backward"), ("attention.self", "forward")]


@pytest.mark.parametrize("part, kind", HOOKS)
def test_a_hook_on_any_module_is_called_once_and_sees_the_module_run(part, kind, taken):
    layer, calls = layer_of(), []
    module = layer.get_submodule(part)
    getattr(module, f"register_{kind}_hook")(lambda module, *_: calls.append(module))
    got = run(layer, randn(T, H), layout())
    assert calls == [module]
    assert taken.count(True) == 1, "the other half"
    assert torch.isfinite(got["x"]).all()


class Rms(nn.LayerNorm):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Half(nn.Module):
    def forward(self, x):
        return x / 2


def swap(layer, name, new):
    old = layer.get_submodule(name)
    if isinstance(old, nn.LayerNorm):
        new.load_state_dict(old.state_dict())
    layer.set_submodule(name, new)


CHANGES = {
    "norm": lambda layer: swap(layer, "output.LayerNorm", Rms(H).to(DEVICE)),
    "dropout": lambda layer: swap(layer, "attention.output.dropout", Half()),
    "forward": lambda layer: setattr(layer.intermediate, "forward", lambda x: layer.intermediate.dense(x).relu()),
    "no_bias": lambda layer: layer.intermediate.dense.register_parameter("bias", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_module_is_what_runs(change, taken):
    results, x = [], randn(T, H)
    for layer in (layer_of(), called(layer_of())):
        CHANGES[change](layer)
        results.append(run(layer, x, layout()))
    assert_same(*results)
    assert taken.count(True) == 1


def test_another_activation_is_not_taken_for_gelu(taken):
    x = randn(T, H)
    got, want = (
        run(layer, x, layout()) for layer in (layer_of(hidden_act="relu"), called(layer_of(hidden_act="relu")))
    )
    assert_same(got, want)
    assert taken == [True, False]


FROZEN = {
    "weights": lambda name: name.endswith("weight"),
    "biases": lambda name: name.endswith("bias"),
    "query": lambda name: "query" in name,
    "norms": lambda name: "LayerNorm" in name,
    "all_but_one": lambda name: name != "intermediate.dense.bias",
    "all": lambda name: True,
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_parameters_get_none_and_the_others_theirs(frozen, taken):
    x, results = randn(T, H), []
    for layer in (layer_of(**DROPOUT), called(layer_of(**DROPOUT))):
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(not FROZEN[frozen](name))
        results.append(run(layer, x, layout()))
    assert_same(*results)
    assert taken == [True, True]


def test_parameters_alone_and_the_input_alone_can_be_asked_for():
    layer, given, x = layer_of(**DROPOUT), layout(), randn(T, H).requires_grad_()
    want = run(layer, x, given)
    upstream = torch.randn(T, H, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(x)
    weights = dict(layer.named_parameters())
    for asked in ({"x": x}, {"x": x.detach(), **weights}):
        y = layer(asked["x"], given)
        leaves = [t for t in asked.values() if t.requires_grad]
        for name, grad in zip(
            [n for n, t in asked.items() if t.requires_grad], torch.autograd.grad(y, leaves, upstream), strict=True
        ):
            assert torch.equal(grad, want[name]), name


@pytest.mark.parametrize("dropout", [{}, DROPOUT], ids=["plain", "dropping"])
def test_a_kept_graph_gives_the_same_gradients_again(dropout):
    """What is summed in place is the backward's own, not what the forward saved nor what came from above."""
    layer, x, given = layer_of(**dropout), randn(T, H).requires_grad_(), layout()
    leaves = [x, *layer.parameters()]
    y = layer(x, given)
    upstream = randn(T, H)
    before = upstream.clone()
    first, second = (torch.autograd.grad(y, leaves, upstream, retain_graph=True) for _ in range(2))
    assert torch.equal(upstream, before)
    for left, right in zip(first, second, strict=True):
        assert torch.equal(left, right)


def test_nothing_to_train_makes_no_node(taken):
    layer, x = layer_of().requires_grad_(False), randn(T, H)
    y = layer(x, layout())
    with torch.no_grad():
        assert torch.equal(layer.requires_grad_()(x, layout()), y)
    assert not y.requires_grad
    assert taken == [False, False]


def test_without_a_seed_dropout_is_drawn_by_the_modules(taken):
    given = layout()
    layer_of(**DROPOUT)(randn(T, H), Layout(given.cu_seqlens, 9))
    assert taken == [False, False]


def test_under_autocast_the_modules_run(taken):
    with torch.autocast(DEVICE, torch.float16):
        y = layer_of()(randn(T, H).requires_grad_(), layout())
    assert not taken
    y.float().sum().backward()


def test_a_backward_inside_autocast_gives_what_it_gives_outside(taken):
    layer, x, given = layer_of(**DROPOUT), randn(T, H), layout()
    want = run(layer, x, given)
    x = x.requires_grad_()
    y = layer(x, given)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y)
    with torch.autocast(DEVICE, torch.float16):
        grads = torch.autograd.grad(y, [x, *layer.parameters()], upstream)
    assert taken == [True] * 4
    for (name, left), right in zip(list(want.items())[1:], grads, strict=True):
        assert right.dtype == torch.float32
        assert torch.equal(left, right), name


def test_an_empty_batch_gives_zero_gradients(taken):
    cu_seqlens = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    got = run(layer_of(), randn(0, H), Layout(cu_seqlens, 0, plan=ops.attention_plan(cu_seqlens)))
    assert taken == [True, True]
    assert got.pop("y").shape == (0, H)
    assert all((grad == 0).all() for grad in got.values())


# Whole models


def packed_model(**changes):
    model = ours(**SMALL, **changes).to(DEVICE).train()
    rows = [ids[:n].tolist() for ids, n in zip(batch()["input_ids"], (9, 4), strict=False)]
    return model, PackedBatch.from_sequences(rows).to(DEVICE)


@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_a_gradient_retained_at_any_hidden_state_is_whole(taken, padded):
    """Between the layers every tensor is the user's: a residual's gradient must not pass it by."""
    grads = []
    for name in ("triton", "reference"):
        with use_backend(name):
            model, rows = packed_model()
            given = {"input_ids": rows}
            if padded:
                given = {name: x.to(DEVICE) for name, x in batch(padding("left")).items()}
            output = model(**given, output_hidden_states=True)
            for state in output.hidden_states:
                state.retain_grad()
            (output.last_hidden_state * torch.linspace(-1, 1, H, device=DEVICE)).sum().backward()
            grads.append([state.grad for state in output.hidden_states])
    assert taken == [True] * 4
    for got, want in zip(*grads, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)


def test_checkpointing_computes_the_same_bits_by_the_same_way(taken):
    results = []
    for enabled in (False, True):
        model, rows = packed_model(**DROPOUT)
        if enabled:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        output = model(rows)
        output.last_hidden_state.square().sum().backward()
        results.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(taken) > 4 + 4, "nothing was recomputed"
    assert all(taken)
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_steps_of_an_optimizer_lead_where_the_modules_lead(taken):
    models = [ours(**SMALL, num_hidden_layers=1).to(DEVICE).train() for _ in range(2)]
    called(models[1].encoder.layer[0])
    arguments = {k: v[3:5].to(DEVICE) for k, v in batch(padding("holes")).items()}
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        for _ in range(3):
            optimizer.zero_grad()
            model(**arguments)[0].square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    assert taken == [True, True] * 3
    for got, want in zip(*(m.parameters() for m in models), strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-5)
