"""What a user meets on the first day: mistakes are said before a model is trained, and nothing is lost to them."""

import json
import warnings

import pytest
import torch
from training.tasks import generated

from bert_fast import cli
from bert_fast.training import FineTuned, finetune
from bert_fast.training.data import InputError
from bert_fast.training.finetuning import run

ROWS = list(generated.classification(12))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return generated.checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    """The folder of a run, of rows in a file beside it."""
    folder = tmp_path_factory.mktemp("tuned")
    write(folder / "rows.jsonl", ROWS)
    finetune("classification", base, folder / "rows.jsonl", output=folder / "run", epochs=1)
    return folder


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "options", "error", "said"),
    [
        ([*ROWS, {"text": "a", "label": "neutral"}], {}, InputError, "e.jsonl, line 13: .* the label 'neutral'"),
        ([*ROWS, {"text": "a"}], {}, InputError, "e.jsonl, line 13: no column 'label'"),
        ([], {}, ValueError, "e.jsonl: there are no rows to evaluate on"),
        (ROWS, {"best_metric": "f2"}, ValueError, "best_metric is 'f2', but the evaluation gave accuracy"),
        (None, {"best_metric": "accuracy"}, ValueError, "best_metric needs eval, rows to evaluate on"),
        (None, {"early_stopping": 1}, ValueError, "early_stopping needs eval"),
    ],
)
def test_what_is_wrong_with_the_evaluation_is_known_before_training(
    base, tmp_path, monkeypatch, rows, options, error, said
):
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("it is being trained"))
    held_out = None if rows is None else write(tmp_path / "e.jsonl", rows)
    with pytest.raises(error, match=said):
        finetune("classification", base, ROWS, held_out, **options)


def test_files_without_rows_and_rows_without_labels(base, tmp_path):
    with pytest.raises(ValueError, match=r"t\.jsonl: there are no rows to train on"):
        finetune("classification", base, write(tmp_path / "t.jsonl", []))
    with pytest.raises(ValueError, match="no row holds a label in column 'labels'"):
        finetune("multilabel", base, [{"text": "a", "labels": []}])
    with pytest.raises(InputError, match="is a folder: give the files in it"):
        finetune("classification", base, tmp_path)


def test_rows_of_one_label_teach_nothing(base):
    rows = [row for row in ROWS if row["label"] == "positive"]
    with pytest.warns(UserWarning, match="every row is labelled 'positive'") as seen:
        tuned = finetune("classification", base, rows, rows, epochs=1)
    assert tuned.metrics["accuracy"] == 1 and tuned.metrics["matthews_correlation"] == 0
    assert len(seen) == 1  # and none of scikit-learn


def test_iterators_are_rows_as_often_as_they_are_needed(base):
    tuned = finetune("classification", base, iter(ROWS), iter(ROWS), epochs=2)
    assert tuned.metrics["rows"] == len(ROWS)
    with pytest.raises(ValueError, match="train is read more than once: give a file, not standard input"):
        finetune("classification", base, "-")


def test_a_models_folder_is_not_written_over(base):
    before = (base / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds a config\.json, but no run: give a run a folder of its own"):
        finetune("classification", base, ROWS, output=base)
    assert (base / "config.json").read_bytes() == before


def test_a_run_is_a_model_to_go_on_with(tuned):
    again = finetune("classification", tuned / "run", ROWS, epochs=1, learning_rate=0.0)
    loaded = FineTuned.load(tuned / "run")
    assert torch.equal(again.model.classifier.weight, loaded.model.classifier.weight)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 2}, "began with epochs=1, not 2"),
        ({"epochs": 1, "learning_rate": 1e-3}, "began with learning_rate=5e-05, not 0.001"),
        ({"epochs": 1, "labels": ("a", "b")}, "label 'positive', which is none of 'a', 'b'|began with labels"),
    ],
)
def test_a_run_is_not_gone_on_with_in_another_way(base, tuned, options, said):
    """Its schedule is saved with it: more epochs would be trained with a rate of 0, another rate would be forgotten."""
    with pytest.raises(ValueError, match=said):
        finetune("classification", base, tuned / "rows.jsonl", output=tuned / "run", **options)


def test_a_damaged_checkpoint_is_named(base, tmp_path):
    options = {"output": tmp_path / "run", "epochs": 1}
    finetune("classification", base, ROWS, **options)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    (saved / "training.pt").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"step-00000001 cannot be read: .* the run goes on from the one before"):
        finetune("classification", base, ROWS, **options)


def test_choices_that_were_cut_are_counted_by_rows(base):
    rows = [{"text": "a film " * 40, "choices": ["good", "bad"], "label": 0}, *generated.choice(1)]
    rows[1]["choices"] = rows[1]["choices"][:2]
    rows[1]["label"] = 0
    with pytest.warns(UserWarning, match="1 of 2 rows were longer than 64 tokens"):
        finetune("choice", base, rows, epochs=1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("predict {0}/rows.jsonl --model {0}/run --output {1}/o --labels a b c", "run/model has 2 labels, not 3"),
        (
            "predict {0}/rows.jsonl --model {0}/run --output {1}/o --max-tokens 0",
            "max_tokens must be at least 1, not 0",
        ),
        ("predict {0}/rows.jsonl --model {0}/run --output {1}/o --keep label", "the column 'label' cannot be kept"),
        ("evaluate {0}/rows.jsonl --model {0}/run --output {1}/no/o.json", "there is no such folder to write in"),
        ("finetune --config {1}/c.yaml", "c.yaml: there is no option 'resume'"),
    ],
)
def test_mistakes_on_the_command_line(tuned, tmp_path, capsys, line, said):
    (tmp_path / "c.yaml").write_text("resume: false\n")
    assert cli.main(line.format(tuned, tmp_path).split()) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU")
def test_a_gpu_that_is_not_there(tuned, tmp_path, capsys):
    line = f"predict {tuned}/rows.jsonl --model {tuned}/run --output {tmp_path}/o --device cuda"
    assert cli.main(line.split()) == 2
    assert "--device cuda: PyTorch finds no CUDA GPU here" in capsys.readouterr().err


def test_words_of_which_the_tokenizer_leaves_nothing(base):
    """Zero-width characters, soft hyphens, empty rows: the words stay, are predicted O, and count."""
    rows = [
        {"tokens": ["ann", "\u200b", "\u00ad", "", "seen"], "labels": ["B-PER", "I-PER", "O", "O", "O"]},
        {"tokens": [], "labels": []},
        {"tokens": ["\u200b"], "labels": ["B-PER"]},
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned = finetune("tokens", base, rows, rows, epochs=1)
    assert tuned.metrics["rows"] == 3
    found = list(tuned.predict(rows))
    assert [prediction["tokens"] for prediction in found] == [row["tokens"] for row in rows]
    assert found[0]["labels"][1:4] == ["O"] * 3 and found[2]["labels"] == ["O"]
    assert found[0]["scores"][1:4] == [0.0] * 3
