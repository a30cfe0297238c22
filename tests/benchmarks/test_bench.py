"""`bert-fast bench` as a whole, tiny: rows, tables, JSON, plots and page; who is wrong is not timed."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is the peer that models are measured beside")
from benchmarks import bench, peers  # noqa: E402
from benchmarks.replay import CLOCK, benchmarked  # noqa: E402
from benchmarks.report.canvas import colour, operations, thousands  # noqa: E402
from benchmarks.report.page import page  # noqa: E402
from benchmarks.report.store import read  # noqa: E402
from benchmarks.report.tables import tables, text  # noqa: E402
from benchmarks.sections import encoders  # noqa: E402
from benchmarks.settings import Settings  # noqa: E402
from bert_fast import cli  # noqa: E402
from bert_fast.ops.quantized import int8_reasons  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--tiny", "--device", "cpu", "--dtype", "float32", "--threads", "1", "--seconds", "0.02")
BESIDE = ("--peers", "ours", "hugging_face")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Every section, by the command line, and what it kept."""
    folder = tmp_path_factory.mktemp("bench")
    sections = ["kernels", "model", "latency", "training", "scaling", "scenario"]
    only = ["attention S=128", "layer_norm", "padding 40", "mix news", "1 x 12", "layers", "adamw"]
    kept = ["--json", str(folder / "run.json")]
    if importlib.util.find_spec("matplotlib"):
        kept += ["--html", str(folder / "page.html"), "--plots", str(folder / "plots")]
    status = cli.main(["bench", *sections, *TINY, *BESIDE, "--no-compile", "--only", *only, *kept])
    return status, read(folder / "run.json"), folder


def test_every_section_measures_ours_and_the_peer(run):
    status, facts, _ = run
    assert status == 0
    timed = {"kernels": "us", "model": "tokens_per_s", "latency": "p50_ms", "training": "ms", "scaling": "s"}
    for section, unit in {**timed, "scenario": "samples_per_s"}.items():
        rows = [row for row in facts["sections"][section] if unit in row]
        who = {row.get("provider", row.get("peer")) for row in rows if "roof" not in row}
        assert {"bert_fast"} < who, section
        assert all(row[unit] > 0 for row in rows)


def test_a_kernels_row_says_what_share_of_the_roof_it_reaches(run):
    _, facts, _ = run
    rows = facts["sections"]["kernels"]
    copy = next(row["bytes_per_s"] for row in rows if row.get("roof") == "copy")
    timed = [row for row in rows if row.get("item") == "layer_norm" and "us" in row]
    assert {row["direction"] for row in timed} == {"forward", "backward"}
    for row in timed:
        assert row["of_roof"] == pytest.approx(row["bytes"] / copy / (row["us"] / 1e6))
        assert row["gb_per_s"] == pytest.approx(row["bytes"] / row["us"] / 1e3)
        assert row["error_ratio"] <= 1
    products = [row for row in rows if row.get("item") == "attention S=128" and row.get("direction") == "forward"]
    assert any(row.get("tflop_per_s", 0) > 0 for row in products)
    lacking = {row["provider"] for row in rows if "not run" in row}
    assert {"flash-attn 2", "liger", "apex", "transformer-engine", "xformers"} <= lacking


def test_the_environment_is_kept(run):
    _, facts, _ = run
    env = facts["environment"]
    assert env["processor"] and env["versions"]["torch"] == torch.__version__
    assert facts["settings"]["tiny"] is True


def test_tables_show_every_measurement(run):
    _, facts, _ = run
    found = {table.title: table for table in tables(facts)}
    ops = next(table for title, table in found.items() if title == "Ops")
    assert len(ops.rows) == sum("us" in row and "item" in row for row in facts["sections"]["kernels"])
    encoder = next(table for title, table in found.items() if title.endswith("padding"))
    assert "(1.00x)" in "".join(encoder.rows[1])
    assert any("needs a GPU" in row for row in found["Not measured"].rows)
    assert "us, graph" not in ops.head and "peak MiB" not in ops.head, "nobody has them on a CPU"
    place, fastest = ops.head.index("x fastest"), {}
    for row in ops.rows:
        fastest.setdefault(row[:2], []).append(float(row[place]))
    assert all(min(times) == 1 for times in fastest.values()) and max(map(max, fastest.values())) > 1
    _, head, _, *lines, _ = text(ops).splitlines()
    end = head.index("x fastest") + len("x fastest")
    assert all(re.fullmatch(r"\d\.\d\d ", line[end - 4 : end + 1]) for line in lines), "aligned on the right"
    unmeasured = found["Not measured"].rows
    assert len({row[:3] for row in unmeasured}) == len(unmeasured)
    assert any(row[1] == "xformers" and "attention S=128, " in row[3] for row in unmeasured)


def test_titles_and_units_are_those_of_the_machine_that_measured(run):
    """Where a GPU is, and was not used, its name would be wrong; a processor's operations are not in TFLOP/s."""
    _, facts, _ = run
    beside_a_gpu = facts | {"environment": facts["environment"] | {"gpu": {"name": "H200"}}}
    whole = page(beside_a_gpu, {})
    assert f"tiny on {facts['environment']['processor']}, 1 thread, float32" in whole.partition("<h2>")[0]
    on_it = beside_a_gpu | {"settings": facts["settings"] | {"device": "cuda", "dtype": "bfloat16"}}
    assert "tiny on H200, bfloat16" in page(on_it, {}).partition("<h2>")[0]
    assert operations([3e11, 9e11]) == ("GFLOP/s", 1e9) and operations([3e11, 2e15]) == ("TFLOP/s", 1e12)
    assert [thousands(value) for value in (0, 950, 1499.9, 15_349, 2e6)] == ["0", "950", "1.5k", "15.3k", "2M"]


def test_a_peer_has_one_colour_in_all_plots():
    few, many = ("bert_fast", "OpenVINO"), ("transformers", "paper", "bert_fast", "OpenVINO", "pencil")
    assert colour("OpenVINO", few) == colour("OpenVINO", many)
    assert len({colour(name, many) for name in many}) == len(many)
    kernels = ("bert_fast", "eager", "torch.compile", "liger", "apex", "xformers", *"abcdefghijkl")
    gpu = ("bert_fast", "transformers", "bert_fast, packed", *(f"{name}, CUDA graph" for name in kernels[:6]))
    for shown in (kernels, gpu):
        assert len({colour(name, shown) for name in shown}) == len(shown)


def test_page_and_plots_are_whole_and_need_nothing_else(run):
    pytest.importorskip("matplotlib", reason="plots are matplotlib's")
    _, facts, folder = run
    names = {path.stem for path in (folder / "plots").iterdir()}
    assert names == {"roofline", "share_of_roof", "peers", "padding", "latency", "scaling", "scenario"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (folder / "plots").iterdir())
    page = (folder / "page.html").read_text()
    assert page.count("data:image/png;base64,") == len(names)
    assert not re.search(r"(src|href)='?\"?http", page) and "<script" not in page
    assert "no measurement" in page


def test_an_earlier_runs_json_is_shown_again(run, capsys):
    _, facts, folder = run
    assert bench.main(["--from", str(folder / "run.json")]) == 0
    assert "A step of training" in capsys.readouterr().out


def test_mistakes_are_one_line(tmp_path, capsys):
    broken = tmp_path / "x.json"
    broken.write_text('{"suite": 1}')
    for arguments, said in (
        (["--from", str(broken)], "is not what"),
        (["model", *TINY, "--peers", "nobody"], "not 'nobody'"),
        (["model", *TINY, "--texts", str(broken)], "--model the folder of a model"),
        (["training", *TINY[1:], "--model", "elsewhere"], "not 'elsewhere'"),
        (["kernels", *TINY, "--dtype", "int8"], "--dtype int8 is for the encoders on a CPU"),
        (["kernels", *TINY, "--json", str(tmp_path / "no" / "x.json")], "--json must name a file in a folder that"),
        (["kernels", *TINY, "--html", str(tmp_path / "no" / "x.html")], "--html must name a file in a folder that"),
        (["kernels", *TINY, "--against", "no-such-revision"], "not 'no-such-revision'"),
    ):
        assert cli.main(["bench", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["bench", "everything"])
    assert "a section must be one of kernels" in capsys.readouterr().err


def test_plots_that_nobody_could_draw_are_an_error_before_the_first_measurement(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    monkeypatch.setattr(bench, "_measure", lambda chosen: pytest.fail("measured"))
    assert cli.main(["bench", "kernels", *TINY, "--plots", str(tmp_path / "plots")]) == 2
    assert "need matplotlib" in capsys.readouterr().err


def test_without_a_checkout_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site" / "bert_fast" / "cli.py"))
    assert cli.main(["bench", "model"]) == 2
    said = capsys.readouterr().err
    assert 'pip install -e ".[bench]"' in said and "python -m benchmarks.bench" in said


class Peer:
    """A peer whose numbers are the right ones plus ``error``."""

    def __init__(self, error=0.0, reason=None):
        self.NAME, self.error, self.reason, self.calls = "paper", error, reason, 0

    def version(self):
        return "1.0"

    def missing(self, setup):
        return self.reason

    def prepare(self, model, setup):
        inner = peers.peer("hugging_face").prepare(model, setup)

        def encode(batch):
            self.calls += 1
            return inner(batch) + self.error

        return encode


@pytest.mark.parametrize(
    ("paper", "right"),
    [(Peer(), True), (Peer(1e-3), False), (Peer(float("nan")), None), (Peer(reason="out of paper"), None)],
    ids=["right", "wrong", "nan", "missing"],
)
def test_who_is_wrong_is_reported_and_not_timed(paper, right, monkeypatch):
    settings = Settings(tiny=True, threads=1)
    original = peers.peer
    monkeypatch.setattr(peers, "peer", lambda name: paper if name == "paper" else original(name))
    model = encoders.base_model(settings)
    ((contender, row),) = encoders.prepared(settings, model, ("paper",))
    assert row.get("right") is right
    assert (contender is not None) == (right is True)
    assert paper.calls == (0 if paper.reason else 1)
    if right is False:
        assert row["error_ratio"] > 1
    if paper.reason:
        assert row["not run"] == "out of paper"
    elif right is None:
        assert "not finite" in row["error"]


def test_nothing_is_timed_where_ours_is_wrong(monkeypatch):
    paper = Peer(1.0)
    paper.NAME = peers.peer("ours").NAME
    monkeypatch.setattr(peers, "peer", lambda name: paper)
    settings = Settings(tiny=True, threads=1)
    with pytest.raises(ArithmeticError, match="bert_fast is not right here"):
        encoders.ready(settings, encoders.base_model(settings), ("ours",))


@pytest.mark.parametrize("name", peers.NAMES)
def test_every_peer_gives_the_right_numbers_or_a_reason(name):
    if name == "hugging_face_compiled":
        pytest.skip("compiling takes longer than all other tests here; bert-fast bench checks it in every run")
    settings = Settings(tiny=True, threads=1)
    ((contender, row),) = encoders.prepared(settings, encoders.base_model(settings), (name,))
    assert (contender is not None and row["error_ratio"] <= 1) or row.get("not run"), row


@pytest.mark.skipif(bool(int8_reasons()), reason=f"int8 cannot run here: {'; '.join(int8_reasons())}")
def test_int8_is_measured_and_its_error_said(tmp_path):
    line = ["bench", "model", "latency", *TINY, *BESIDE, "--only", "mix news", "1 x 12", "--dtype", "int8"]
    assert cli.main([*line, "--json", str(tmp_path / "run.json")]) == 0
    rows = [row for section in read(tmp_path / "run.json")["sections"].values() for row in section]
    assert {row["peer"] for row in rows if "tokens_per_s" in row or "p50_ms" in row} == {"bert_fast"}
    assert all(0 < row["error_ratio"] < 0.5 for row in rows if "tokens_per_s" in row)
    assert {row["not run"] for row in rows if row["peer"] == "transformers"} == {"not measured in int8"}


def test_pytorchs_own_int8_is_a_peer_where_pytorch_has_it(monkeypatch):
    settings = Settings(tiny=True, threads=1, dtype="int8")
    model = encoders.base_model(settings)
    before = [type(module) for module in model.modules()]
    ((contender, row),) = encoders.prepared(settings, model, ("torch_int8",))
    assert (contender is not None and 1e-3 < row["error_ratio"] < 1) or row.get("not run"), row
    assert [type(module) for module in model.modules()] == before, "others are prepared over the same model"
    monkeypatch.setitem(sys.modules, "torch.ao.quantization", None)
    ((contender, row),) = encoders.prepared(settings, model, ("torch_int8",))
    assert contender is None and "has no torch.ao.quantization.quantize_dynamic any more" in row["not run"]


def test_int8_that_rounds_too_much_is_not_timed(monkeypatch):
    settings = Settings(tiny=True, threads=1, dtype="int8")
    paper, original = Peer(0.5), peers.peer
    monkeypatch.setattr(peers, "peer", lambda name: paper if name == "paper" else original(name))
    ((contender, row),) = encoders.prepared(settings, encoders.base_model(settings), ("paper",))
    assert contender is None and row["error_ratio"] > 1


def test_a_wrong_kernel_is_not_timed():
    """Of an op's providers only the right ones get times; ours wrong is an error at the end."""
    from dataclasses import replace

    from benchmarks.measure import measure
    from benchmarks.specs import spec_named
    from benchmarks.specs.spec import Provider

    here = Settings(tiny=True).context
    spec = spec_named("layer_norm", here)
    ours, eager = spec.providers[:2]
    off = Provider("off", lambda t, p: eager.run(t, p) * 1.01)
    rows = list(measure(replace(spec, providers=(ours, eager, off)), here))
    assert [row for row in rows if row["provider"] == "off"] == [row for row in rows if row["right"] is False]
    assert {row["provider"] for row in rows if "us" in row} == {"bert_fast", "eager"}
    with pytest.raises(RuntimeError, match="off is not right"):
        list(measure(replace(spec, providers=(off, eager)), here))


def test_pytest_benchmark_gets_the_samples_of_a_gpus_clock():
    """The fixture's rounds are the clock's samples, to the last digit; on a CPU it times the calls itself."""
    clock = SimpleNamespace(cold=lambda runs: SimpleNamespace(samples=(3e-6, 5e-6, 4e-6)))
    seen, calls = [], []

    class Fixture:
        disabled = False

        def pedantic(self, call, rounds, iterations):
            for _ in range(rounds):
                began = CLOCK()
                call()
                seen.append(CLOCK() - began)

        def __call__(self, call):
            for _ in range(3):
                call()

    benchmarked(Fixture(), SimpleNamespace(on_gpu=True, clock=clock), [lambda: None])
    assert seen == pytest.approx([3e-6, 5e-6, 4e-6])
    assert 0 < CLOCK() < CLOCK(), "afterwards the clock is the host's again"
    benchmarked(Fixture(), SimpleNamespace(on_gpu=False), [lambda: calls.append(1), lambda: calls.append(2)])
    assert calls == [1, 2, 1]


def test_pytest_benchmarks_collects_and_says_who_is_missing(tmp_path):
    """As its users call it: the console script, groups, a saved JSON."""
    pytest.importorskip("pytest_benchmark", reason="what is tested are its benchmarks")
    out = tmp_path / "out.json"
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"  # as the script pytest: no folder on sys.path
    options = ["--tiny", "--device=cpu", "--dtype=float32", "--threads=1", "-q", "-rs", "-p", "no:cacheprovider"]
    chosen = "layer_norm-forward and not dropout and not embedding and not gelu and not compile"
    limits = ["--benchmark-max-time=0.01", "--benchmark-min-rounds=2", f"--benchmark-json={out}"]
    command = [sys.executable, "-c", code, "benchmarks", *options, *limits, "-k", chosen]
    # Not as one of the processes among which the tests around it may be shared out: those save nothing.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=ours | {"PYTHONSAFEPATH": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "liger: needs a GPU" in done.stdout
    saved = json.loads(out.read_text())
    kernels = [row for row in saved["benchmarks"] if row["group"] == "layer_norm, forward"]
    assert {row["extra_info"]["provider"] for row in kernels} == {"bert_fast", "eager"}
    assert all(row["extra_info"]["of_roof"] > 0 and row["extra_info"]["error_ratio"] <= 1 for row in kernels)
    assert saved["machine_info"]["bert_fast"]["versions"]["torch"] == torch.__version__
    assert "load" in saved and "load" not in saved["machine_info"]["bert_fast"], "else no two runs can be compared"


def test_saved_json_is_plain(run):
    _, _, folder = run
    json.loads((folder / "run.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
