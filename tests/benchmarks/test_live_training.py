"""LoRA before and after: the script trains both alike, and says so by its exit status."""

import json

import pytest
from integrations.families import model
from integrations.test_live_libraries import tokenizer

pytest.importorskip("peft")
pytest.importorskip("accelerate")
from benchmarks import live_training  # noqa: E402


@pytest.fixture
def line(tmp_path):
    model("BertModel").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "imdb_cf").mkdir()
    texts = [("Negative", "a b"), ("Positive", '"c ""d"" e f g h"'), ("Negative", "i"), ("Positive", "k l m")]
    rows = "".join(f"{label}\t{text}\n" for label, text in texts * 3)
    (tmp_path / "imdb_cf/orig_train.tsv").write_text("Sentiment\tText\n" + rows)
    folders = ["--data", str(tmp_path), "--model", str(tmp_path / "model"), "--json", str(tmp_path / "out.json")]
    return [*folders, "--steps", "3", "--batch-size", "4", "--threads", "1", "--learning-rate", "0.05"]


def test_both_are_trained_alike(line, tmp_path, capsys):
    assert live_training.main(line) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    theirs, ours = results["losses"]["untouched"], results["losses"]["accelerated"]
    assert len(theirs) == len(ours) == 3 and len(set(theirs)) == 3
    assert results["largest_relative_difference"] == max(abs(a - b) / a for a, b in zip(theirs, ours, strict=True))
    assert results["packed_calls"] == {"untouched": [0], "accelerated": [3]} and results["own_code"] == []
    assert f"{ours[-1]:.6f}" in capsys.readouterr().out


def test_a_model_that_was_not_accelerated_is_no_result(line, monkeypatch):
    monkeypatch.setattr(live_training.bert_fast, "accelerate", lambda net: net)
    assert live_training.main(line) == 1


def test_losses_that_differ_are_an_exit_status(line, monkeypatch):
    losses = iter(([1.0, 2.0], [1.0, 2.01]))
    run = {"seconds": 1.0, "packed_calls": 3, "own_code": []}
    monkeypatch.setattr(live_training, "_run", lambda *given: {"losses": next(losses), **run})
    assert live_training.main(line) == 1
