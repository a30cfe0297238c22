"""The comparison of live models: every architecture with an adapter has a row, and its numbers are the models'."""

import json

import pytest

transformers = pytest.importorskip("transformers")
from benchmarks import live_models  # noqa: E402
from bert_fast.integrations.table import known  # noqa: E402

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
DISTIL = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48}


def test_every_architecture_with_an_adapter_is_measured():
    assert sorted(live_models.ARCHITECTURES) == known()


def test_the_table_has_what_was_measured(tmp_path, monkeypatch, capsys):
    names = ["DistilBertModel", "AlbertModel", "MPNetModel"]
    sizes = {"DistilBertModel": DISTIL, "AlbertModel": {**TINY, "embedding_size": 16}, "MPNetModel": TINY}
    monkeypatch.setattr(live_models, "ARCHITECTURES", {n: {**sizes[n], "vocab_size": 5000} for n in names})
    line = ["--rounds", "1", "--threads", "1", "--json", str(tmp_path / "out.json"), "--architectures", *names]
    assert live_models.main(line) == 0
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert list(results) == names
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in capsys.readouterr().out.splitlines()[-3:]]
    for name, row in zip(names, rows, strict=True):
        measured = results[name]
        assert row[0] == name.removesuffix("Model")
        assert 0 < measured["float32"] < 2e-5 and row[1] == f"{measured['float32']:.1e}"
        assert row[-1] == ", ".join(measured["runs_its_own_code"]) and "attentions" in row[-1]


def test_a_broken_bound_is_an_exit_status(monkeypatch):
    row = {"float32": 1e-6, "bfloat16": 1.0, "gradient": 2.5, "speed": {"exact": 1.0, "zero": 1.0}, "padding": 0.5}
    monkeypatch.setattr(live_models, "_architecture", lambda *given: {**row, "runs_its_own_code": []})
    assert live_models.main(["--architectures", "BertModel", "--threads", "1"]) == 1
