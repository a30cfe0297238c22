"""The choice of a backend: asked for by name, per thread, with every reason against it."""

import subprocess
import threading

import pytest
import torch
from twins import batch, ours, padding

import bert_fast
from bert_fast import BackendError, backend, extension, ops, use_backend

CPU = torch.device("cpu")


def test_blocks_nest_and_end_even_on_errors():
    assert backend.requested() == "auto"
    with use_backend("reference"):
        assert backend.requested() == "reference"
        with use_backend("auto"):
            assert backend.requested() == "auto"
        assert backend.requested() == "reference"
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert backend.requested() == "auto"


def test_a_block_belongs_to_its_thread():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backend.requested()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_it_decorates_functions():
    @use_backend("reference")
    def run():
        return backend.requested()

    assert run() == run() == "reference"


@pytest.mark.parametrize("name", ["tritn", "", None, "CUDA"])
def test_an_unknown_name_is_refused_with_those_that_exist(name):
    with pytest.raises(ValueError, match=r"name must be one of .*'auto', 'triton', 'cuda', 'reference'.*not"):
        use_backend(name).__enter__()


def test_the_kernel_runs_when_nothing_is_against_it(monkeypatch):
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ())
    assert backend.runs("op", "triton", CPU)
    assert backend.decisions()["op"] == ("triton", {})
    with use_backend("triton"):
        assert backend.runs("op", "triton", CPU)
    with use_backend("reference"):
        assert not backend.runs("op", "triton", CPU)
        assert backend.decisions()["op"][0] == "reference"
    with use_backend("cuda"):
        assert backend.runs("op", "triton", CPU), "an op without the backend asked for chooses for itself"


def test_a_rejected_backend_names_every_reason(monkeypatch):
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ("the first", "the second"))
    assert not backend.runs("op", "triton", CPU, ("the third",))
    assert backend.decisions()["op"] == ("reference", {"triton": ["the first", "the second", "the third"]})
    with use_backend("triton"), pytest.raises(BackendError, match="op cannot run .*'triton'") as error:
        backend.runs("op", "triton", CPU, ("the third",))
    assert all(reason in str(error.value) for reason in ("the first", "the second", "the third"))
    with use_backend("cuda"):
        assert not backend.runs("op", "triton", CPU)


def test_a_kernel_that_does_not_compile_is_given_up_once_with_a_warning(monkeypatch):
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ())
    monkeypatch.setattr(backend, "_broken", {})
    assert backend.runs("op", "triton", CPU)
    with pytest.warns(RuntimeWarning, match="op runs on PyTorch's ops: .*RuntimeError: no luck"):
        backend.give_up("op", RuntimeError("no luck"))
    assert not backend.runs("op", "triton", CPU)
    assert backend.runs("other", "triton", CPU)
    with use_backend("triton"):
        with pytest.raises(BackendError, match="no luck"):
            backend.runs("op", "triton", CPU)
        with pytest.raises(BackendError, match="no luck"):
            backend.give_up("op", RuntimeError("no luck"))


def test_decisions_are_a_copy():
    backend.runs("op", "triton", CPU)
    backend.decisions().clear()
    assert "op" in backend.decisions()


# Reasons


def test_no_kernel_runs_on_the_cpu_unless_the_interpreter_is_asked_for():
    assert backend.reasons_against("triton", CPU) == (
        "the tensors are on the CPU; Triton's interpreter runs only when asked for by name",
    )
    assert backend.reasons_against("cuda", CPU) == ("the tensors are on cpu",)
    assert not backend.has_kernels(CPU)


def test_triton_missing_is_a_reason(monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "Triton is not installed" in backend.triton_reasons.__wrapped__(torch.device("cuda"))[0]


@pytest.mark.parametrize(
    "capability, hip, reason",
    [((7, 5), None, "compute capability 7.5 is below 8.0"), ((9, 0), "6.2", "ROCm"), ((9, 0), None, None)],
    ids=["turing", "rocm", "hopper"],
)
def test_gpus_that_triton_kernels_cannot_use(monkeypatch, capability, hip, reason):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(backend, "_starting_reasons", lambda: ())
    reasons = backend.triton_reasons.__wrapped__(torch.device("cuda"))
    assert (reason in reasons[0]) if reason else reasons == ()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a fake tensor may be on such a GPU
    assert backend.triton_reasons.__wrapped__(torch.device("cuda")) == ("PyTorch finds no GPU here",)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler"),
        subprocess.CalledProcessError(1, ["gcc", "-O3"]),
        PermissionError(13, "Permission denied", "/home/me/.triton"),
    ],
    ids=["no compiler", "no headers", "no place to write"],
)
def test_what_triton_needs_to_start_is_a_reason(monkeypatch, error):
    """It builds its launcher with a C compiler when first asked for a kernel: many images lack one."""
    triton = pytest.importorskip("triton")

    class Driver:
        @property
        def active(self):
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton.runtime, "driver", Driver())
    (reason,) = backend.triton_reasons.__wrapped__(torch.device("cuda"))
    assert reason == f"Triton cannot start: {type(error).__name__}: {error}"


def test_the_extension_on_a_gpu_that_it_has_no_code_for(monkeypatch):
    monkeypatch.setattr(extension, "module", lambda: Extension(lambda device=-1: "no code" if device == 1 else None))
    reasons = backend.cuda_reasons.__wrapped__
    assert reasons(torch.device("cuda", 1)) == ("no code",)
    assert reasons(torch.device("cuda", 0)) == reasons(torch.device("cuda")) == ()


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices_have_no_kernels(device, monkeypatch):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: object())
    assert f"on {device}" in backend.triton_reasons.__wrapped__(torch.device(device))[0]
    assert f"on {device}" in backend.cuda_reasons.__wrapped__(torch.device(device))[0]


class Extension:
    """Stands for the compiled module with CUDA code, and a driver that is fine or not."""

    def __init__(self, status):
        self.cuda_status = status if callable(status) else lambda device=-1: status


@pytest.mark.parametrize(
    "module, reason",
    [
        (None, "turned off"),
        (object(), "built without CUDA"),
        (Extension("driver 570 is older than CUDA 13.0 of this build"), "driver 570"),
        (Extension(None), None),
    ],
    ids=["missing", "without_cuda", "old_driver", "fine"],
)
def test_the_extension_on_a_gpu(monkeypatch, module, reason):
    monkeypatch.setattr(extension, "module", lambda: module)
    monkeypatch.setattr(extension, "unavailable_reason", lambda: "it is turned off")
    reasons = backend.cuda_reasons.__wrapped__(torch.device("cuda"))
    assert (reason in reasons[0]) if reason else reasons == ()


# On a model


def test_a_model_runs_on_the_reference_by_name_and_gives_the_same_numbers():
    model = ours()
    with torch.no_grad():
        expected = model(**batch(padding("holes")))[0]
        with use_backend("reference"):
            got = model(**batch(padding("holes")))[0]
            assert backend.decisions()["attention"][0] == "reference"
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_model_on_the_cpu_cannot_run_a_backend_that_needs_a_gpu():
    """Never silently something else than what was asked for."""
    message = "embedding_layer_norm .*'cuda': the tensors are on cpu"
    with use_backend("cuda"), pytest.raises(BackendError, match=message):
        ours()(**batch())


def test_unpadding_honours_the_reference(monkeypatch):
    monkeypatch.setattr(extension, "module", lambda: pytest.fail("the extension was asked"))
    with use_backend("reference"):
        indices, *_ = ops.unpad(torch.tensor([[True, False], [True, True]]))
    assert indices.tolist() == [0, 2, 3]


def test_triton_is_never_imported_by_loading_a_model_and_running_it_on_the_cpu(tmp_path):
    """Nor is PyTorch's compiler, which imports it: a second, and 140 MiB."""
    import sys

    ours().save_pretrained(tmp_path)
    code = (
        "import sys, torch, bert_fast; model = bert_fast.BertModel.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad(): model(torch.ones(2, 3, dtype=torch.int64))\n"
        "loaded = {'triton', 'torch._dynamo', 'bert_fast.kernels.common'} & set(sys.modules); assert not loaded, loaded"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_the_package_names_its_parts():
    for name in bert_fast.__all__:
        assert getattr(bert_fast, name) is not None
    assert set(bert_fast.__all__) <= set(dir(bert_fast))
    with pytest.raises(AttributeError, match="has no attribute 'Bert'"):
        _ = bert_fast.Bert
