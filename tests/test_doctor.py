"""doctor: the facts it gives, the verdict it comes to, and that it notices what is broken."""

import json

import pytest
import torch

import bert_fast
from bert_fast import doctor, extension, ops
from bert_fast.cli import main
from bert_fast.doctor import facts, selftest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def found():
    return doctor.examine()


def test_everything_that_should_work_does(found):
    assert found["problems"] == [] and found["ok"]
    assert found["seconds"] < 30


def test_schema(found):
    assert json.loads(json.dumps(found)) == found
    assert found["schema"] == 1
    assert set(found) == {
        *("schema", "machine", "versions", "extension", "triton", "ops", "hints", "problems", "ok", "seconds"),
    }
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["cores"] >= 1 and found["machine"]["cpu"]
    assert set(found["extension"]) >= {"built", "files", "loads", "reason", "build", "cuda", "cuda_reason"}
    for result in found["ops"]:
        assert set(result) == {
            *("op", "device", "dtype", "backend", "reasons", "error", "milliseconds", "problem", "ok"),
        }
        assert result["error"] is None or 0 <= result["error"] <= 1


def test_every_op_of_the_door_is_tested(found):
    tested = {result["op"] for result in found["ops"] if result["device"] == "cpu"}
    exempt = {"AttentionPlan", "attention_plan", "labelled_rows"}  # parts of attention and of the masked-LM loss
    assert set(ops.__all__) - exempt <= tested


def test_the_page_names_every_op_and_reason(found):
    page = doctor.render(found)
    for result in found["ops"]:
        assert result["op"] in page
    assert "all well" in page and found["versions"]["torch"] in page
    for reasons in found["triton"]["reasons"].values():
        assert all(reason in page for reason in reasons)


def test_command_and_exit_status(capsys):
    assert main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["doctor"]) == 0
    assert "all well" in capsys.readouterr().out


GATHERS = ("embedding_layer_norm", "pool", "pad_rows", "unpad_rows")


@pytest.mark.parametrize("op", GATHERS)
def test_the_self_test_of_a_cuda_kernel_passes_on_it(op, emulated):
    result = selftest.run_case(op, selftest.CASES[op], CPU, torch.float32)
    assert (result.backend, result.problem) == ("cuda", None)


# ---------------------------------------------------------------- what is broken is noticed


@pytest.fixture
def broken_extension(monkeypatch, tmp_path):
    """An extension that is built and does not load, as after a move to another machine."""
    (tmp_path / "_C.cpython-311-x86_64-linux-gnu.so").write_bytes(b"\x7fELF truncated")
    (tmp_path / "__init__.py").write_text("")
    monkeypatch.setattr(bert_fast, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(extension, "_loaded", (None, "bert_fast._C does not load (ImportError: file too short)"))


def test_an_extension_that_does_not_load(broken_extension, capsys):
    assert main(["doctor"]) == 1
    page = capsys.readouterr().out
    assert "PROBLEM: the extension _C.cpython-311-x86_64-linux-gnu.so is built but not in use" in page
    assert "file too short" in page and "1 problem(s)" in page


def test_an_extension_that_is_turned_off_is_no_problem(broken_extension, monkeypatch, capsys):
    monkeypatch.setenv("BERT_FAST_EXTENSION", "0")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["extension"]["built"] and not found["extension"]["loads"] and found["extension"]["turned_off"]


def test_no_extension_is_no_problem(broken_extension, tmp_path):
    next(tmp_path.glob("_C.*")).unlink()
    found = doctor.examine()
    assert found["ok"] and not found["extension"]["built"] and "file too short" in found["extension"]["reason"]
    assert {r["backend"] for r in found["ops"]} == {"reference"}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda x: x + 1e-4, "its result has .* times the error that is allowed"),
        (lambda x: x * 1.01 - 0.01 * x.detach(), "its gradient of .* has .* times the error that is allowed"),
        (lambda x: x * float("nan"), "its result has inf times"),
        (lambda x: x[:-1], r"AssertionError: shape \[56, 128\] instead of \[57, 128\]"),
        (lambda x: 1 / 0, r"ZeroDivisionError: division by zero \(at <lambda>, line "),
    ],
)
def test_an_op_that_is_wrong(monkeypatch, capsys, fault, message):
    right = ops.layer_norm
    monkeypatch.setattr(ops, "layer_norm", lambda *arguments: fault(right(*arguments)))
    results = {r.op: r for r in selftest.run_all([CPU])}
    assert not results["layer_norm"].ok
    assert __import__("re").search(message, results["layer_norm"].problem)
    assert all(r.ok for name, r in results.items() if name != "layer_norm")
    assert main(["doctor"]) == 1
    assert "PROBLEM: layer_norm on cpu (float32, backend reference)" in capsys.readouterr().out


def test_the_backend_that_an_op_chose_is_reported_with_the_reasons_against_the_others(monkeypatch):
    from bert_fast import backend

    right = ops.layer_norm

    def choosing(*arguments):
        result = right(*arguments)
        backend.runs("layer_norm", "triton", CPU, ("it is Sunday",))
        return result

    monkeypatch.setattr(ops, "layer_norm", choosing)
    results = {r.op: r for r in selftest.run_all([CPU])}
    assert results["layer_norm"].backend == "reference"
    assert results["layer_norm"].reasons["triton"][-1] == "it is Sunday"
    assert results["linear"].reasons == {}


def test_a_kernel_that_should_run_on_a_gpu_and_does_not_is_a_problem(monkeypatch):
    from bert_fast import backend

    device = torch.device("cuda", 0)
    reasons = {"triton": ["its kernel failed to compile: OutOfResources"]}
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ())
    monkeypatch.setattr(selftest, "_results", lambda case, function, inputs: {"result": torch.ones(99).double()})
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *arguments, **named: self)
    monkeypatch.setattr(backend, "decisions", lambda: {"layer_norm": ("reference", dict(reasons))})
    result = selftest.run_case("layer_norm", selftest.CASES["layer_norm"], device, torch.float32)
    assert "its triton kernel should run here: its kernel failed to compile: OutOfResources" in result.problem
    monkeypatch.setattr(backend, "reasons_against", lambda kernel, device: ("the GPU is too old",))
    assert selftest.run_case("layer_norm", selftest.CASES["layer_norm"], device, torch.float32).ok


def test_self_tests_leave_the_random_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    selftest.run_all([CPU])
    assert torch.equal(torch.rand(3), expected)


def test_facts_that_cannot_be_had_are_not_an_error(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *a, **k: (_ for _ in ()).throw(OSError("no /proc")))
    monkeypatch.delattr("os.sysconf")
    assert facts.machine()["memory_gib"] is None
    assert facts.machine()["cpu"]


@pytest.mark.gpu
def test_on_a_gpu_every_op_is_tested_in_both_dtypes(found):
    on_gpu = {(r["op"], r["dtype"]) for r in found["ops"] if r["device"].startswith("cuda")}
    names = {name for name, case in selftest.CASES.items() if not case.cpu_only}
    assert on_gpu == {(name, dtype) for name in names for dtype in ("float32", "bfloat16")}
