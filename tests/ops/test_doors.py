"""The ops in front of the Triton kernels: schema, fake, gradient and compilation, and whole models through them.

On a CUDA machine the kernels run for real; elsewhere in Triton's interpreter, on CPU tensors. The kernels' own numbers
are judged in tests/kernels.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_oracle import DEVICE, DTYPES, randn, seed_tensor
from numerics import UNIT_ROUNDOFF, assert_close_to_truth
from op_cases import CASES, DROPOUT, EPS, QKV, H, Record, T, bounds, cases, run
from twins import S, batch, double, labels_of, ours, padding, shaped, twins

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from bert_fast import backend, ops, reference, use_backend  # noqa: E402


@pytest.fixture(autouse=True)
def _kernels():
    torch._dynamo.reset()
    with use_backend("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_runs_behind_its_door_and_holds_the_contract(case, dtype):
    make, options, tensors = cases(dtype)[case]
    got = run(make(ops, **options), tensors)
    name = next(n for n in backend.decisions() if case.startswith(n))
    assert backend.decisions()[name] == ("triton", {})
    eager, truth = (run(make(reference, **options), tensors, kind) for kind in (None, torch.float64))
    for index, values in enumerate(zip(got, eager, truth, strict=True)):
        assert_close_to_truth(*values, dtype, H, f"{case}, result {index}")


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("attention", "scaled_masked_softmax", "layer_norm")])
def test_compiled_fullgraph_it_gives_the_same_numbers(case):
    make, options, tensors = cases(torch.float32)[case]
    want = run(make(ops, **options), tensors)
    got = run(torch.compile(make(ops, **options), backend="aot_eager", fullgraph=True), tensors)
    for left, right in zip(got, want, strict=True):
        assert torch.allclose(left, right, rtol=0, atol=1e-6)


@pytest.mark.parametrize("op", ["dropout_add_layer_norm", "gelu_layer_norm", "layer_norm", "bias_gelu"])
def test_parameters_of_another_dtype(op, monkeypatch):
    """LayerNorms that stay in float32 while a linear layer's bias does not: each gradient in its parameter's dtype."""
    x, residual, x_bias = (randn(*shape, dtype=torch.float16) for shape in ((T, H), (T, H), (H,)))
    weight, bias = randn(H), randn(H)
    function, tensors = {
        "dropout_add_layer_norm": (
            lambda x, r, w, b, c: ops.dropout_add_layer_norm(x, r, w, b, EPS, x_bias=c),
            [x, residual, weight, bias, x_bias],
        ),
        "gelu_layer_norm": (
            lambda x, w, b, c: ops.gelu_layer_norm(x, w, b, EPS, x_bias=c),
            [x, weight, bias, x_bias],
        ),
        "layer_norm": (lambda x, w, b: ops.layer_norm(x, w, b, EPS), [x, weight, bias]),
        "bias_gelu": (ops.bias_gelu, [x, bias]),
    }[op]
    want = run(function, tensors)
    for got, tensor in zip(want[1:], tensors, strict=True):
        assert got.dtype == tensor.dtype
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for got, wanted in zip(run(compiled, tensors), want, strict=True):
        assert got.dtype == wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    with Record() as record:
        run(function, tensors)
    assert len(record.calls) == 2
    for broken in ({}, {op: "and PyTorch's ops instead"}):
        monkeypatch.setattr(backend, "_broken", broken)
        for func, args in record.calls.items():
            torch.library.opcheck(func, args, test_utils="test_faketensor")


def test_opcheck():
    with Record() as record:
        for make, options, tensors in cases(torch.float32).values():
            run(make(ops, **options), tensors)
    names = {func.name() for func in record.calls}
    assert {"bert_fast::attention", "bert_fast::attention_backward", "bert_fast::dropout_add_layer_norm"} <= names
    for func, args in record.calls.items():
        torch.library.opcheck(func, args, test_utils=("test_schema", "test_faketensor"))
        if not func.name().endswith("backward"):
            leaves = [
                a.clone().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
            ]
            torch.library.opcheck(func, leaves, test_utils="test_autograd_registration")


VECTORS = {
    "strided": (lambda: torch.randn(2 * H, device=DEVICE)[::2], "is not contiguous"),
    "short": (lambda: randn(H // 2), "is not as wide as x"),
    "elsewhere": (lambda: torch.empty(H, device="meta"), "is on meta, x on"),
}


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("op", ["layer_norm", "dropout_add_layer_norm", "gelu_layer_norm", "bias_gelu"])
def test_a_vector_that_a_kernel_would_misread_speaks_against_it(op, kind):
    """A launch takes a pointer: what lies behind it is nobody's to check any more."""
    make, why = VECTORS[kind]
    x, good, bad = randn(T, H), randn(H), make()
    calls = {
        "layer_norm": lambda: ops.layer_norm(x, good, bad, EPS),
        "dropout_add_layer_norm": lambda: ops.dropout_add_layer_norm(x, x, good, good, EPS, x_bias=bad),
        "gelu_layer_norm": lambda: ops.gelu_layer_norm(x, bad, good, EPS),
        "bias_gelu": lambda: ops.bias_gelu(x, bad),
    }
    with pytest.raises(backend.BackendError, match=why):
        calls[op]()


@pytest.mark.parametrize("options", [{}, DROPOUT], ids=["plain", "dropping"])
def test_joined_attention_gives_the_bits_of_attention_and_one_gradient(options):
    q, k, v = (randn(*QKV) for _ in range(3))
    options = {**options, "seed": seed_tensor()}
    apart = run(lambda *qkv: ops.attention(*qkv, bounds(), 9, **options), [q, k, v])
    together = run(lambda qkv: ops.attention_joined(qkv, bounds(), 9, **options), [torch.stack([q, k, v], 1)])
    assert torch.equal(together[0], apart[0])
    assert torch.equal(together[1], torch.stack(apart[1:], 1))


def test_joined_attention_without_its_kernel_is_attention():
    """On the CPU, and where dropout comes from PyTorch's generator."""
    qkv = randn(T, 3, 3, 16)
    with use_backend("reference"):
        assert torch.equal(ops.attention_joined(qkv, bounds(), 9), ops.attention(*qkv.unbind(1), bounds(), 9))
    with pytest.raises(ValueError, match=r"qkv must be \[T, 3, N, D\], not \[21, 3, 48\]"):
        ops.attention_joined(qkv.flatten(2), bounds(), 9)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_that_nothing_sends_is_none_and_not_made_up(case):
    """A node whose output another node ignores is called without a gradient."""

    class Ignore(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.sum()

        @staticmethod
        def backward(ctx, _):
            return None

    make, options, tensors = cases(torch.float32)[case]
    leaves = [t.detach().requires_grad_() for t in tensors]
    Ignore.apply(make(ops, **options)(*leaves)).backward()
    assert [leaf.grad for leaf in leaves] == [None] * len(leaves)


# Whole models

# They add one number to all scores of a softmax, which changes nothing: their gradients are 0 but for rounding, and a
# bound that is relative to them, or to how lucky another rounding was, says nothing.
SHIFTS = ("key.bias", "qa_outputs.bias")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "name, padded", [("BertForPreTraining", "holes"), ("BertForQuestionAnswering", "left"), ("BertModel", "right")]
)
def test_a_model_on_the_kernels_holds_the_contract_with_gradients(name, dtype, padded):
    mine, theirs = (m.to(DEVICE) for m in twins(name, dtype=dtype, train=True, hidden_size=32, num_hidden_layers=1))
    arguments = shaped(name, {**batch(padding(padded)), **labels_of(name)})
    arguments = {k: v.to(DEVICE) for k, v in arguments.items()}
    losses = []
    for model in (mine, theirs, exact := double(theirs)):
        with use_backend("triton" if model is mine else "auto"):
            output = model(**arguments)
            loss = output["loss"] if "loss" in output else (output[1] * torch.linspace(-1, 1, 32).to(output[1])).sum()
            loss.backward()
        losses.append(loss.detach())
    assert backend.decisions()["attention"][0] == "triton"
    assert_close_to_truth(*losses, dtype, S, "loss")
    parameters = zip(mine.named_parameters(), theirs.parameters(), exact.parameters(), strict=True)
    for (key, got), eager, truth in parameters:
        if truth.grad is None:
            continue
        if key.endswith(SHIFTS):
            terms = mine.get_parameter(key.removesuffix("bias") + "weight").grad.abs().max()
            assert got.grad.abs().max() <= 6 * S * UNIT_ROUNDOFF[dtype] * terms, key
        else:
            assert_close_to_truth(got.grad, eager.grad, truth.grad, dtype, 6 * S, f"gradient of {key}")


def test_a_model_with_dropout_on_the_kernels_follows_the_seed_and_recomputes_the_same_masks():
    changes = {
        "hidden_dropout_prob": 0.2,
        "attention_probs_dropout_prob": 0.2,
        "hidden_size": 32,
        "num_hidden_layers": 1,
    }
    model = ours(**changes).to(DEVICE).train()
    arguments = {k: v[:2].to(DEVICE) for k, v in batch(padding("holes")).items()}
    results = []
    for seed, checkpointing in ((1, False), (1, True), (2, False)):
        model.gradient_checkpointing_disable()
        if checkpointing:
            model.gradient_checkpointing_enable()
        torch.manual_seed(seed)
        model.zero_grad()
        output = model(**arguments)[0]
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for plain, recomputed in zip(*results[:2], strict=True):
        assert torch.equal(plain, recomputed)
    assert not torch.allclose(results[0][0], results[2][0], atol=1e-2)
    differ = (
        results[0][0][arguments["attention_mask"].bool()]
        != ours(**changes).to(DEVICE)(**arguments)[0][arguments["attention_mask"].bool()]
    )
    assert differ.any()


def test_what_another_thread_recomputes_runs_on_the_backend_of_the_forward():
    """As autograd's own thread does on a GPU: a thread that never entered use_backend."""
    model = ours(num_hidden_layers=1, hidden_size=32).to(DEVICE).train()
    model.gradient_checkpointing_enable()
    arguments = {k: v[:2].to(DEVICE) for k, v in batch(padding("right")).items()}
    gradients = []
    for apart in (False, True):
        model.zero_grad()
        with use_backend("reference" if DEVICE == "cuda" else "triton"):
            loss = model(**arguments)[0].square().sum()
            if not apart:
                loss.backward()
        if apart:
            with ThreadPoolExecutor(1) as thread:
                thread.submit(loss.backward).result()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for here, there in zip(*gradients, strict=True):
        assert torch.equal(here, there)


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_a_compiled_model_on_the_kernels(kind):
    from bert_fast import PackedBatch

    model = ours(num_hidden_layers=1, hidden_size=32).to(DEVICE).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    arguments = [batch()["input_ids"][:3].to(DEVICE), padding("right")[:3].to(DEVICE)]
    if kind == "packed":
        arguments = [PackedBatch.from_sequences([[1, 2, 3], [4], [5, 6]]).to(DEVICE)]
    results = []
    for function in (compiled, model):
        model.zero_grad()
        output = function(*arguments)
        (output[0].square().sum() + output[1].sum()).backward()
        results.append([output[0].detach(), *(p.grad.clone() for p in model.parameters())])
    for got, want in zip(*results, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-4)
