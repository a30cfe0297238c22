"""A kernel that fails to compile when it is launched: the op goes on by PyTorch's ops, and so does its gradient."""

import ast
import warnings

import pytest
import torch
from numerics import assert_close_to_truth
from op_cases import CASES, H, Record, cases, run

pytest.importorskip("triton", reason="kernels are written in Triton, which is not installed")
from triton.compiler.errors import CompilationError  # noqa: E402
from triton.runtime.errors import OutOfResources, PTXASError  # noqa: E402

from bert_fast import BackendError, backend, ops, reference, use_backend  # noqa: E402
from bert_fast.kernels import attention, attention_backward, gelu, layer_norm, softmax  # noqa: E402

HOMES = {
    "attention": (attention, attention_backward),
    "layer_norm": (layer_norm, layer_norm),
    "dropout_add_layer_norm": (layer_norm, layer_norm),
    "bias_gelu": (gelu, gelu),
    "gelu_layer_norm": (gelu, gelu),
    "scaled_masked_softmax": (softmax, softmax),
}


def op_of(case):
    return next(name for name in HOMES if case.startswith(name))


@pytest.fixture
def chosen_by_itself(monkeypatch):
    """Kernels run as on a GPU, asked for by nobody; what is given up here is given up here alone."""
    torch._dynamo.reset()
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ())
    monkeypatch.setattr(backend, "_broken", {})


@pytest.fixture
def breaks(monkeypatch):
    """``breaks(op, direction)``: from then on its launcher raises as Triton does; returns its calls."""

    def install(op, direction):
        calls = []

        def launcher(*args, **kwargs):
            calls.append(1)
            raise CompilationError(None, ast.parse("0").body[0], "no luck")

        monkeypatch.setattr(HOMES[op][direction == "backward"], f"{op}_{direction}", launcher)
        return calls

    return install


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_right_and_it_is_said_once(case, direction, compiled, chosen_by_itself, breaks):
    op = op_of(case)
    make, options, tensors = cases(torch.float32)[case]
    calls = breaks(op, direction)
    function = make(ops, **options)
    function = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
    with pytest.warns(RuntimeWarning, match=f"^{op} runs on PyTorch's ops: .*CompilationError") as caught:
        got = run(function, tensors)
    assert len(calls) == 1
    assert len([w for w in caught if w.category is RuntimeWarning]) == 1
    eager, truth = (run(make(reference, **options), tensors, kind) for kind in (None, torch.float64))
    for index, values in enumerate(zip(got, eager, truth, strict=True)):
        assert_close_to_truth(*values, torch.float32, H, f"{case}, result {index}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for again, before in zip(run(function, tensors), got, strict=True):
            torch.testing.assert_close(again, before, rtol=1e-5, atol=1e-5)
    assert len(calls) == 1, "a kernel that was given up is not tried again"
    run(make(ops, **options), tensors)
    assert backend.decisions()[op][0] == "reference"
    assert "no luck" in backend.decisions()[op][1]["triton"][0]


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", CASES)
def test_in_half_precision_and_under_autocast(case, direction, chosen_by_itself, breaks):
    """No product of what runs instead may be turned into another dtype."""
    make, options, tensors = cases(torch.float16)[case]
    breaks(op_of(case), direction)
    with pytest.warns(RuntimeWarning, match="no luck"), torch.autocast(tensors[0].device.type, torch.bfloat16):
        got = run(make(ops, **options), tensors)
    eager, truth = (run(make(reference, **options), tensors, kind) for kind in (None, torch.float64))
    for index, values in enumerate(zip(got, eager, truth, strict=True)):
        assert_close_to_truth(*values, torch.float16, H, f"{case}, result {index}")


@pytest.mark.parametrize("case", CASES)
def test_what_runs_instead_returns_what_the_op_says(case, chosen_by_itself, monkeypatch):
    """Shapes, dtypes and strides of the op's fake."""
    make, options, tensors = cases(torch.float32)[case]
    with Record() as record:
        run(make(ops, **options), tensors)
    assert len(record.calls) == 2
    monkeypatch.setattr(backend, "_broken", {op_of(case): "as said"})
    for func, args in record.calls.items():
        torch.library.opcheck(func, args, test_utils="test_faketensor")


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_asked_for_by_name_it_is_an_error(direction, chosen_by_itself, breaks):
    breaks("layer_norm", direction)
    make, options, tensors = cases(torch.float32)["layer_norm"]
    with (
        use_backend("triton"),
        pytest.raises(BackendError, match="(?s)layer_norm cannot run on .*no luck"),
    ):
        run(make(ops, **options), tensors)


@pytest.mark.parametrize(
    "error",
    [
        OutOfResources(300000, 232448, "shared memory"),
        PTXASError("no such arch"),
        RuntimeError("PassManager::run failed"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_way_in_which_triton_fails_is_known(error, chosen_by_itself, monkeypatch):
    def launcher(*args, **kwargs):
        raise error

    monkeypatch.setattr(gelu, "bias_gelu_backward", launcher)
    make, options, tensors = cases(torch.float32)["bias_gelu"]
    with pytest.warns(RuntimeWarning, match="bias_gelu runs on PyTorch's ops"):
        run(make(ops, **options), tensors)


def test_another_error_is_not_swallowed(chosen_by_itself, monkeypatch):
    def launcher(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(layer_norm, "layer_norm_backward", launcher)
    make, options, tensors = cases(torch.float32)["layer_norm"]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(make(ops, **options), tensors)
    assert not backend.given_up("layer_norm")
