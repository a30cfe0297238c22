"""Queries, keys and values by one product where the kernels run: numbers, gradients, and layers that must be called."""

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn
from numerics import assert_close_to_truth
from torch import nn
from twins import batch, config, ours, padding, randomize

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import derived, ops, use_backend  # noqa: E402
from bert_fast.layers.attention import BertSelfAttention  # noqa: E402
from bert_fast.layers.projection import project_joined  # noqa: E402
from bert_fast.packing import Layout  # noqa: E402

T, H = 30, 48


@pytest.fixture(autouse=True)
def _kernels():
    torch._dynamo.reset()
    with use_backend("triton"):
        yield


def attention_module(dtype=torch.float32):
    torch.manual_seed(0)
    return randomize(BertSelfAttention(config(num_attention_heads=3), 0)).to(DEVICE, dtype)


def layout():
    cu_seqlens = torch.tensor([0, 11, 11, 25, T], dtype=torch.int32, device=DEVICE)
    return Layout(cu_seqlens, 14, plan=ops.attention_plan(cu_seqlens))


def layers_of(module):
    return module.query, module.key, module.value


def joins(module, x):
    return project_joined(layers_of(module), x) is not None


def run(module, x, dtype=None):
    """The output, and the gradients of x and of every parameter, by name; None where there is none."""
    torch.manual_seed(1)
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    y = module(x, layout())
    y.backward(torch.randn(y.shape, dtype=torch.float64).to(y))
    return {"y": y.detach(), "dx": x.grad, **{name: p.grad for name, p in module.named_parameters()}}


def called(module):
    """The same module with every layer called by itself: a hook that changes nothing."""
    for layer in layers_of(module):
        layer.register_forward_hook(lambda *_: None)
    return module


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name in want:
        if want[name] is None:
            assert got[name] is None, name
        elif name != "key.bias":  # 0 in truth: rounding alone
            assert torch.allclose(got[name], want[name], rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_every_gradient_hold_the_contract(dtype):
    module, x = attention_module(dtype), randn(T, H, dtype=dtype)
    assert joins(module, x)
    got = run(module, x)
    assert all(p.grad.is_contiguous() and p.grad.shape == p.shape for p in module.parameters())
    with use_backend("reference"):
        eager, truth = run(module, x), run(module.double(), x.double())
    for name in got:
        if name != "key.bias":
            assert_close_to_truth(got[name], eager[name], truth[name], dtype, T, name)


def test_gradients_accumulate_in_each_parameter_of_its_own():
    module, x = attention_module(), randn(T, H)
    once = run(module, x)
    once = {name: grad.clone() for name, grad in once.items()}
    y = module(x, layout())
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=torch.float64).to(y))
    for name, p in module.named_parameters():
        assert torch.allclose(p.grad, 2 * once[name], rtol=1e-5, atol=1e-6), name
    module.query.weight.grad.zero_()
    assert (module.key.weight.grad != 0).any()
    assert (module.value.weight.grad != 0).any()


@pytest.mark.parametrize("frozen", [("query",), ("value",), ("query", "key", "value")], ids="+".join)
def test_frozen_layers_get_no_gradient_and_the_others_theirs(frozen):
    x = randn(T, H)
    results = []
    for module in (attention_module(), called(attention_module())):
        for name in frozen:
            getattr(module, name).requires_grad_(False)
        results.append(run(module, x))
    assert all(results[0][f"{name}.weight"] is None for name in frozen)
    assert_same(*results)


class Adapted(nn.Linear):
    """As LoRA does: what it computes is more than its weight says."""

    def forward(self, x):
        return super().forward(x) + x @ self.low


def adapt(layer):
    adapted = Adapted(H, H).to(DEVICE)
    adapted.load_state_dict(layer.state_dict())
    adapted.low = nn.Parameter(randn(H, H, scale=0.1))
    return adapted


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


CHANGES = {
    "subclass": lambda m: setattr(m, "query", adapt(m.query)),
    "forward_hook": lambda m: m.key.register_forward_hook(lambda module, args, y: y + 1),
    "forward_pre_hook": lambda m: m.value.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "full_backward_hook": lambda m: m.query.register_full_backward_hook(lambda module, dx, dy: (2 * dx[0],)),
    "parametrization": lambda m: nn.utils.parametrize.register_parametrization(m.key, "weight", Doubled()),
    "no_bias": lambda m: m.value.register_parameter("bias", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_is_no_plain_linear_is_called(change):
    x, plain = randn(T, H), run(attention_module(), randn(T, H))
    results = []
    for module in (attention_module(), called(attention_module())):
        torch.manual_seed(2)
        CHANGES[change](module)
        assert not joins(module, x)
        results.append(run(module, x))
    assert_same(*results)
    assert not torch.allclose(results[0]["dx"], plain["dx"], atol=1e-3)


def test_layers_without_any_bias_are_joined():
    x = randn(T, H)
    results = []
    for module in (attention_module(), called(attention_module())):
        for layer in layers_of(module):
            layer.register_parameter("bias", None)
        results.append(run(module, x))
    assert_same(*results)
    assert joins(attention_module(), x)


def test_one_layer_in_three_places_gets_the_sum():
    x = randn(T, H)
    results = []
    for module in (attention_module(), called(attention_module())):
        module.key = module.value = module.query
        results.append(run(module, x))
    assert_same(*results)


def test_under_autocast_the_weights_gradients_stay_float32():
    module, x = attention_module(), randn(T, H)
    truth = run(module, x)
    with torch.autocast(DEVICE, torch.float16):
        assert joins(module, x)
        got = run(module, x)
    assert got["y"].dtype == torch.float16
    for name, value in got.items():
        assert value.dtype == (torch.float16 if name == "y" else torch.float32)
        if name != "key.bias":
            error = (value.double() - truth[name].double()).norm() / truth[name].double().norm()
            assert error < 2e-3, name


def test_rows_of_another_dtype_are_not_multiplied_by_the_joined_weight():
    assert not joins(attention_module(), randn(T, H, dtype=torch.float16))


def test_nothing_joined_with_gradients_is_kept():
    module, x = attention_module(), randn(T, H)
    run(module, x)
    assert module.query not in derived._entries
    with torch.no_grad():
        module(x, layout())
    assert list(derived._entries[module.query]) == ["joined"]


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_compiled_it_is_one_product_and_reads_weights_that_change(grad):
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    module, x = attention_module(), randn(T, H)
    compiled = torch.compile(module, backend=keep, fullgraph=True)
    with torch.set_grad_enabled(grad):
        compiled(x, layout())
        with torch.no_grad():
            module.query.weight.data.mul_(2)
        assert torch.allclose(compiled(x, layout()), module(x, layout()), rtol=0, atol=1e-5)
    (graph,) = graphs
    products = [n for n in graph.graph.nodes if n.target is torch._C._nn.linear]
    assert len(products) == 1
    assert "attention_joined" in graph.code


def test_output_attentions_of_a_joined_product_are_right():
    model, mask = ours(num_attention_heads=3, num_hidden_layers=1).to(DEVICE), padding("holes")
    arguments = {k: v.to(DEVICE) for k, v in batch(mask).items()}
    output = model(**arguments, output_attentions=True)
    with use_backend("reference"):
        want = model(**arguments, output_attentions=True)
    assert torch.allclose(output.attentions[0], want.attentions[0], rtol=0, atol=1e-5)
    visible = mask.bool().to(DEVICE)
    assert torch.allclose(output[0][visible], want[0][visible], rtol=0, atol=1e-5)
