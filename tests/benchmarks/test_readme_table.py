"""README's numbers are those of committed measurements."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import readme_table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_the_committed_results():
    shown = README.partition(readme_table.BEGIN)[2].partition(readme_table.END)[0].strip()
    assert shown == readme_table.table(), "run python -m benchmarks.readme_table --write"


def test_what_is_said_around_it_is_in_the_files_too():
    reports = [json.loads((RESULTS / name).read_text()) for name in readme_table.SOURCES]
    for report in reports:
        texts = report["texts"]
        assert f"{texts['count']} paragraphs" in README
        assert f"({texts['mean_tokens']:.0f} tokens on average)" in README
        assert report["environment"]["processor"] in README
        for name, title in (("torch", "PyTorch"), ("transformers", "transformers")):
            assert f"{title} {'.'.join(report['environment']['versions'][name].split('.')[:2])}" in README
    earlier = [
        json.loads((RESULTS / f"cpu_minilm_{dtype}.json").read_text())["results"] for dtype in ("float32", "bfloat16")
    ]
    times = [report["bert_fast, as handed in"]["times_handed_in"] for report in earlier]
    said = re.search(r"it was ([\d.]+)x and ([\d.]+)x", README)
    assert [float(x) for x in said.groups()] == [round(x, 1) for x in times]


def test_a_table_of_the_suites_own_json():
    def row(peer, order, rate, workload="mix news"):
        return {"workload": workload, "peer": peer, "order": order, "dtype": "float32", "tokens_per_s": rate}

    rows = [row("bert_fast", "as handed in", 900.0), row("bert_fast", "sorted", 910.0)]
    rows += [row("transformers", "as handed in", 300.0), row("OpenVINO", "sorted", 600.0)]
    rows.append({"peer": "x", "not run": "y"})
    ((title, found),) = readme_table.lines_of({"sections": {"model": rows}})
    assert title == "float32, mix news"
    assert found == {"bert_fast, as handed in": 900.0, "transformers, as handed in": 300.0, "OpenVINO, sorted": 600.0}
    with pytest.raises(ValueError, match="must hold tokens a second"):
        readme_table.lines_of({"sections": {"model": rows[:2]}})


def test_the_markers_stay_and_what_is_around_them():
    made = readme_table.written(f"a\n{readme_table.BEGIN}\nold\n{readme_table.END}\nb", "new")
    assert made == f"a\n{readme_table.BEGIN}\nnew\n{readme_table.END}\nb"
    with pytest.raises(ValueError, match="must hold"):
        readme_table.written("nothing", "new")
