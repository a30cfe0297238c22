"""README's numbers are those of committed measurements."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme_table
from benchmarks.environment import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
GIVEN = "as handed in"


def row(peer, order, rate, workload="mix news", mean=60.4, **more):
    return {"workload": workload, "peer": peer, "order": order, "mean_tokens": mean, "tokens_per_s": rate} | more


# Ours sorted is faster than all, and yet neither ours as handed in nor one of the others.
ROWS = (
    row("bert_fast", GIVEN, 9_004.0), row("bert_fast", "sorted", 20_000.0), row("bert_fast, packed", GIVEN, 30_000.0),
    row("transformers", GIVEN, 2_000.0), row("transformers", "sorted", 2_500.0), row("OpenVINO", GIVEN, 4_000.0),
    row("OpenVINO", "sorted", 6_005.0), row("CTranslate2", "sorted", 5_999.0),
)  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """Writes a run's JSON; its name."""

    def write(name, rows, model="minilm", dtype="float32", environment=None, **settings):
        rows = [one | {"model": model, "dtype": dtype} if "workload" in one else one for one in rows]
        versions = {"torch": "2.13.0+cpu", "transformers": "5.24.0", "openvino": "2026.4", "nncf": "3.4", "onnx": "1"}
        facts = {
            "schema": 1, "suite": "bert-fast bench",
            "environment": {"processor": "Zen", "instructions": ["avx2", "avx512f"], "versions": versions}
            | (environment or {}),
            "settings": {"device": "cpu", "tiny": False, "model": model, "dtype": dtype, "threads": 2, "batch_size": 32}
            | settings,
            "sections": {"model": rows},
        }  # fmt: skip
        (tmp_path / name).write_text(json.dumps(facts))
        return name

    return write


def body(folder, *names):
    made = readme_table.table(folder, names)
    lines, _, said = made.partition("\n\n")
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:]], " ".join(said.split())


def test_the_table_is_the_committed_results():
    shown = README.partition(readme_table.BEGIN)[2].partition(readme_table.END)[0].strip()
    assert shown == readme_table.table(), "run python -m benchmarks.readme_table --write"


def test_what_is_said_around_it_is_in_the_files_too():
    paragraphs = json.loads((RESULTS / "cpu_encoder_minilm_float32_2026-11-25.json").read_text())
    assert f"{paragraphs['max_difference']:.0e}".replace("e-06", "e-6") + " on\nMiniLM over paragraphs" in README
    earlier = [json.loads((RESULTS / f"cpu_minilm_{dtype}.json").read_text()) for dtype in ("float32", "bfloat16")]
    assert all("Intel(R) Xeon" in report["environment"]["processor"] for report in earlier)
    times = [report["results"]["bert_fast, as handed in"]["times_handed_in"] for report in earlier]
    said = re.search(r"took in paragraphs ([\d.]+) times as\nfast .* with float32 and ([\d.]+) times", README)
    assert [float(x) for x in said.groups()] == [round(x, 1) for x in times]


def test_a_line_holds_ours_as_handed_in_beside_the_best_of_all_others(results, tmp_path):
    (line,), _ = body(tmp_path, results("a.json", ROWS))
    assert line == ["minilm", "float32", "news (60)", "2,000", "6,000 (OpenVINO, sorted)", "9,000", "1.50", "4.50"]


@pytest.mark.parametrize("lead", [7_000.0, 5_000.0], ids=["first", "behind"])
def test_transformers_own_orders_are_among_the_others(lead, results, tmp_path):
    rows = [*ROWS, row("transformers, torch.compile", "sorted", lead)]
    (line,), _ = body(tmp_path, results("a.json", rows))
    assert line[4] == ("7,000 (transformers, torch.compile, sorted)" if lead > 6_005 else "6,000 (OpenVINO, sorted)")


@pytest.mark.parametrize(
    "reason", [{"right": False, "error_ratio": 3.0}, {"error": "Traceback\nOops"}, {"not run": "not installed"}]
)
def test_who_is_wrong_or_did_not_run_is_not_the_best(reason, results, tmp_path):
    rows = [*ROWS, row("Quick", "sorted", 50_000.0, **reason), {"peer": "Absent", **reason}]
    assert body(tmp_path, results("a.json", rows)) == body(tmp_path, results("b.json", ROWS))


def test_without_transformers_there_is_no_number_for_it(results, tmp_path):
    rows = [{"peer": "transformers", "not run": "not measured in int8"}, *ROWS[:2], *ROWS[5:]]
    (line,), _ = body(tmp_path, results("a.json", rows, dtype="int8"))
    assert line[1:4] == ["int8", "news (60)", "-"] and line[6:] == ["1.50", "-"]


def test_files_are_grouped_by_model_then_dtype_and_a_short_one_gives_what_it_has(results, tmp_path):
    short = [*ROWS, row("bert_fast", GIVEN, 1.0, "mix reviews"), row("OpenVINO", GIVEN, 1.0, "padding 40%")]
    queries = [one | {"workload": "mix queries", "mean_tokens": 12.4} for one in ROWS]
    names = [
        results("1.json", ROWS, model="base"),
        results("2.json", ROWS, dtype="int8"),
        results("3.json", ROWS, model="all-MiniLM"),
        results("4.json", [*queries, *short]),
        results("5.json", ROWS, dtype="bfloat16"),
        results("6.json", [one | {"workload": "mix reviews"} for one in ROWS]),
    ]
    lines, _ = body(tmp_path, *names)
    assert [line[:3] for line in lines] == [
        ["minilm", "float32", "queries (12)"], ["minilm", "float32", "news (60)"],
        ["minilm", "float32", "reviews (60)"], ["minilm", "bfloat16", "news (60)"], ["minilm", "int8", "news (60)"],
        ["base", "float32", "news (60)"], ["all-MiniLM", "float32", "news (60)"],
    ]  # fmt: skip


def test_a_paragraph_says_where_and_with_which_versions(results, tmp_path):
    made = results("a.json", ROWS), results("b.json", ROWS, model="base")
    _, said = body(tmp_path, *made)
    assert said == (
        "Tokens a second. Zen (avx2, avx512f), 2 CPU threads, batches of 32; torch 2.13.0, transformers 5.24.0, "
        "openvino 2026.4. minilm: random weights, 6 layers of 384. base: random weights, 12 layers of 768."
    )


def test_where_files_differ_each_value_has_its_files(results, tmp_path):
    one = results("a.json", ROWS)
    newer = {"torch": "2.14.0", "transformers": "5.24.0", "openvino": "2026.4", "nncf": "3.4"}
    other = results("b.json", ROWS, dtype="int8", threads=4, environment={"processor": "Lake", "versions": newer})
    _, said = body(tmp_path, one, other)
    assert "Zen (avx2, avx512f) (minilm float32) or Lake (avx2, avx512f) (minilm int8)" in said
    assert "2 CPU threads (minilm float32) or 4 CPU threads (minilm int8)" in said
    assert "torch 2.13.0 (minilm float32) or 2.14.0 (minilm int8), transformers 5.24.0, openvino" in said
    assert "openvino 2026.4, nncf 3.4. minilm:" in said, "what one file alone has use for differs nowhere"


def test_every_version_that_is_shown_is_kept():
    assert set(readme_table._PACKAGES) <= set(PACKAGES)


def test_what_is_no_such_measurement_is_an_error(results, tmp_path):
    for made, said in (
        (results("a.json", ROWS, tiny=True), "a.json must be a measurement on a CPU, not tiny"),
        (results("b.json", ROWS, device="cuda"), "b.json must be a measurement on a CPU, not on a GPU"),
        (results("c.json", ROWS[:3]), "c.json must hold tokens a second of bert_fast, as handed in, and of others"),
        (results("d.json", ROWS[1:]), "d.json must hold tokens a second of bert_fast, as handed in, and of others"),
    ):
        with pytest.raises(ValueError, match=said):
            readme_table.table(tmp_path, [made])
    twice = [results("e.json", ROWS), results("f.json", ROWS)]
    with pytest.raises(ValueError, match=r"e.json and f.json both hold minilm, float32, news \(60\)"):
        readme_table.table(tmp_path, twice)


def test_the_markers_stay_and_what_is_around_them():
    made = readme_table.written(f"a\n{readme_table.BEGIN}\nold\n{readme_table.END}\nb", "new")
    assert made == f"a\n{readme_table.BEGIN}\nnew\n{readme_table.END}\nb"
    with pytest.raises(ValueError, match="must hold"):
        readme_table.written("nothing", "new")
