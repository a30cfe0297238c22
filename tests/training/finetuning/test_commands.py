"""`bert-fast finetune`, `evaluate` and `predict`: exit statuses, what they print and what they leave."""

import io
import json

import pytest
from training.tasks import generated

from bert_fast import cli


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A checkpoint, tables of rows, and a run made of them by the command."""
    folder = tmp_path_factory.mktemp("commands")
    generated.checkpoint(folder / "base")
    for name, count, seed in (("train", 96, 0), ("dev", 20, 1)):
        lines = [f"{row['label']}\t{row['text']}\n" for row in generated.classification(count, seed)]
        (folder / f"{name}.tsv").write_text("Sentiment\tReview\n" + "".join(lines))
    columns = 'text = "Review"\nlabel = "Sentiment"\n'
    config = f'task = "classification"\nmodel = "{folder}/base"\n{columns}epochs = 9\n'
    (folder / "c.toml").write_text(config)
    line = f"finetune --config {folder}/c.toml --train {folder}/train.tsv --eval {folder}/dev.tsv --output {folder}/run"
    assert (
        cli.main([*line.split(), "--epochs", "4", "--learning-rate", "5e-3", "--warmup", "0", "--set", "batch_size=8"])
        == 0
    )
    return folder


def test_finetune_leaves_a_run(place):
    assert json.loads((place / "run" / "config.json").read_text())["epochs"] == 4  # a flag goes before the file
    assert json.loads((place / "run" / "model" / "config.json").read_text())["label2id"] == {
        "negative": 0,
        "positive": 1,
    }


def test_evaluate_prints_and_writes_scores(place, capsys, tmp_path):
    assert cli.main(["evaluate", f"{place}/dev.tsv", "--model", f"{place}/run", "--output", f"{tmp_path}/s.json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == json.loads((tmp_path / "s.json").read_text())
    assert scores["accuracy"] >= 0.9 and scores["rows"] == 20


def test_predict_writes_a_line_for_each_row(place, capsys, tmp_path):
    output = tmp_path / "out.jsonl"
    line = ["predict", f"{place}/dev.tsv", "--model", f"{place}/run", "--output", str(output), "--keep", "Sentiment"]
    assert cli.main(line) == 0
    assert "20 rows" in capsys.readouterr().err
    lines = [json.loads(text) for text in output.read_text().splitlines()]
    assert [row["Sentiment"] for row in lines] == [row["label"] for row in generated.classification(20, 1)]
    assert sum(row["Sentiment"] == row["label"] for row in lines) >= 18
    assert all(row["score"] == max(row["scores"].values()) for row in lines)

    before = output.read_bytes()
    assert cli.main(line) == 2
    assert "is there already: --overwrite replaces it" in capsys.readouterr().err
    assert cli.main([*line, "--overwrite", "--quiet"]) == 0
    assert output.read_bytes() == before
    assert capsys.readouterr() == ("", "")


def test_predict_from_a_pipe_to_a_pipe(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a good film\nthe film was awful\n")))
    line = ["predict", "-", "--model", f"{place}/run/model", "--output", "-", "--text", "text"]
    assert cli.main(line) == 0
    assert [json.loads(text)["label"] for text in capsys.readouterr().out.splitlines()] == ["positive", "negative"]


def test_a_bad_row_leaves_no_output(place, capsys, tmp_path):
    rows = [{"Review": "fine"}] * 600 + [{"Review": None}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    line = ["predict", f"{tmp_path}/in.jsonl", "--model", f"{place}/run", "--output", f"{tmp_path}/out.jsonl"]
    assert cli.main(line) == 2
    assert "in.jsonl, line 601: column 'Review' holds None, but must hold a string" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("finetune --task classification --model {0}/base --train {0}/train.tsv", "--output is needed"),
        ("finetune --config {0}/c.toml --train {0}/none.tsv --output {1}/r", "no such file"),
        ("finetune --config {0}/c.toml --train {0}/train.tsv --output {1}/r --text Text", "no column 'Text'"),
        ("finetune --config {0}/c.toml --train {0}/train.tsv --output {1}/r --set epochs", "NAME=VALUE is needed"),
        ("finetune --config {0}/c.toml --train {0}/train.tsv --output {1}/r --set x=1", "unknown option 'x'"),
        ("finetune --config {0}/train.tsv", "must end in .yaml, .yml, .toml or .json"),
        ("evaluate {0}/dev.tsv --model {0}/base", "holds no fine-tuned model"),
        ("evaluate {0}/dev.tsv --model {0}/run --label Mood", "no column 'Mood'; there are 'Sentiment', 'Review'"),
        ("predict {0}/dev.tsv --model {0}/run --output {0}/dev.tsv", "is the input itself"),
        ("predict {0}/dev.tsv --model {0}/run --output {1}/o.jsonl --keep Id", "no column 'Id' to keep"),
        ("predict {0}/dev.tsv --model {0}/run --output {1}/none/o.jsonl", "there is no directory"),
        ("predict {0}/dev.tsv --model {0}/run --output {1}/o.jsonl --threads 0", "--threads 0: at least 1"),
    ],
)
def test_bad_input_is_status_2_and_one_line(place, capsys, tmp_path, line, said):
    assert cli.main(line.format(place, tmp_path).split()) == 2
    printed = capsys.readouterr().err
    assert said in printed and printed.count("\n") == 1
