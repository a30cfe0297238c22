"""Every task from rows to a saved model, and from that to scores and predictions."""

import json
import shutil
import warnings

import pytest
import torch
import transformers
from training.tasks import generated

import bert_fast
from bert_fast.training import FineTuned, finetune
from bert_fast.training.data import InputError
from bert_fast.training.finetuning import TASK_FILE, predict_file

OPTIONS = {"epochs": 4, "batch_size": 8, "learning_rate": 5e-3, "warmup": 0.0}
OF_TASK = {"qa": {"stride": 4, "max_length": 32}}
LEARNED = {"classification": 0.9, "regression": 0.7, "multilabel": 0.5, "tokens": 0.9, "qa": 60, "choice": 0.8}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    return generated.checkpoint(tmp_path_factory.mktemp("base"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def trained(name, base, folder, **options):
    train = write(folder / "t.jsonl", generated.ROWS[name](96, 0))
    held_out = write(folder / "e.jsonl", generated.ROWS[name](40, 1))
    given = {**OPTIONS, **OF_TASK.get(name, {}), **options}
    return finetune(name, base, train, held_out, folder / "run", **given), held_out


@pytest.fixture(scope="module", params=generated.ROWS)
def done(request, base, tmp_path_factory):
    """A task that was learned: its name, the folder of its files, the outcome, and the rows that were held out."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    return request.param, folder, *trained(request.param, base, folder)


def test_a_task_is_learned_saved_evaluated_and_predicted(done, tmp_path):
    name, folder, tuned, held_out = done
    assert tuned.metrics[tuned.task.metric] >= LEARNED[name]
    assert tuned.metrics["rows"] == 40

    loaded = FineTuned.load(folder / "run")
    assert loaded.task == tuned.task and loaded.max_length == tuned.max_length
    assert loaded.evaluate(held_out) == pytest.approx(tuned.metrics, rel=1e-4, abs=1e-5)

    output = tmp_path / "out.jsonl"
    assert predict_file(loaded, held_out, output) == 40
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    if name == "qa":
        assert [line.pop("id") for line in lines] == [row["id"] for row in generated.qa(40, 1)]
    assert lines == list(loaded.predict(held_out))
    one_by_one = [next(iter(loaded.predict([row]))) for row in list(generated.ROWS[name](40, 1))[:5]]
    for alone, line in zip(one_by_one, lines, strict=False):
        for key in ("label", "labels", "choice", "answer"):
            assert alone.get(key) == line.get(key)
    logged = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("rows" in line for line in logged) == OPTIONS["epochs"]
    assert json.loads((folder / "run" / "config.json").read_text())["epochs"] == OPTIONS["epochs"]


CLASSES = {
    "classification": ("BertForSequenceClassification", "single_label_classification"),
    "regression": ("BertForSequenceClassification", "regression"),
    "multilabel": ("BertForSequenceClassification", "multi_label_classification"),
    "tokens": ("BertForTokenClassification", None),
    "qa": ("BertForQuestionAnswering", None),
    "choice": ("BertForMultipleChoice", None),
}


def test_what_is_saved_loads_in_transformers(done):
    name, place, tuned, _ = done
    folder = place / "run" / "model"
    kind, problem = CLASSES[name]
    theirs, report = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert theirs.config.problem_type == problem
    if hasattr(tuned.task, "labels"):
        assert [theirs.config.id2label[n] for n in range(len(tuned.task.labels))] == list(tuned.task.labels)
    text = "ann saw a good film"
    encoded = transformers.AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    if name == "choice":
        encoded = {key: value[:, None] for key, value in encoded.items()}
    with torch.no_grad():
        expected = theirs.eval()(**encoded).to_tuple()[0]
        got = tuned.model(**encoded).to_tuple()[0]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_fine_tuned_model_of_transformers_needs_no_file_of_ours(done, tmp_path):
    name, place, tuned, held_out = done
    folder = shutil.copytree(place / "run" / "model", tmp_path / "model")
    (folder / TASK_FILE).unlink()
    loaded = FineTuned.load(folder, **({"stride": 4} if name == "qa" else {}))
    assert type(loaded.task) is type(tuned.task)
    assert getattr(loaded.task, "labels", ()) == getattr(tuned.task, "labels", ())
    wanted, got = (next(iter(model.predict(held_out))) for model in (tuned, loaded))
    assert {k: v for k, v in got.items() if k != "n_best"} == {k: v for k, v in wanted.items() if k != "n_best"}


def test_the_best_evaluation_is_kept_and_early_stopping_stops(base, tmp_path):
    tuned, held_out = trained(
        "classification", base, tmp_path, epochs=40, early_stopping=2, best_metric="-eval_loss", learning_rate=2e-2
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(losses) < 40
    assert tuned.metrics["eval_loss"] == min(losses) == losses[-3]
    assert FineTuned.load(tmp_path / "run").evaluate(held_out)["eval_loss"] == pytest.approx(min(losses), rel=1e-4)


def test_a_run_that_is_done_is_not_done_again(base, tmp_path):
    first, held_out = trained("classification", base, tmp_path, epochs=2)
    again, _ = trained("classification", base, tmp_path, epochs=2)
    assert again.metrics == first.metrics
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])
    with pytest.raises(ValueError, match="holds a run"):
        trained("classification", base, tmp_path, epochs=2, resume=False)


def test_in_memory_and_without_evaluation(base):
    tuned = finetune(
        "classification", base, list(generated.classification(16)), epochs=1, labels=["positive", "negative"]
    )
    assert tuned.metrics == {}
    assert tuned.task.labels == ("positive", "negative")
    assert tuned.model.config.id2label == {0: "positive", 1: "negative"}
    assert not tuned.model.training


def test_numbers_of_a_data_set_have_its_names(base):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    columns = {"tokens": [["ann", "was"], ["kim"]], "labels": [[1, 0], [1]]}
    tags = datasets.ClassLabel(names=["O", "B-PER"])
    features = {"tokens": datasets.Sequence(datasets.Value("string")), "labels": datasets.Sequence(tags)}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    tuned = finetune("tokens", base, rows, rows, epochs=1)
    assert tuned.model.config.id2label == {0: "O", 1: "B-PER"}
    assert "f1/PER" in tuned.metrics


def test_a_head_for_the_same_labels_is_kept_and_another_is_new(base, tmp_path):
    first, _ = trained("classification", base, tmp_path)
    first.save(tmp_path / "saved")
    rows = list(generated.classification(8))
    again = finetune("classification", tmp_path / "saved", rows, rows, epochs=1, learning_rate=0.0)
    assert torch.equal(again.model.classifier.weight, first.model.classifier.weight)
    turned = finetune("classification", base, rows, epochs=1, learning_rate=0.0, labels=["positive", "negative"])
    turned.save(tmp_path / "turned")
    again = finetune("classification", tmp_path / "turned", rows, epochs=1, learning_rate=0.0)
    assert again.task.labels == ("positive", "negative")
    assert torch.equal(again.model.classifier.weight, turned.model.classifier.weight)
    named = [{**row, "label": row["label"][:3]} for row in rows]
    other = finetune("classification", tmp_path / "saved", named, epochs=1, learning_rate=0.0)
    assert not torch.equal(other.model.classifier.weight, first.model.classifier.weight)
    third = [*named, {"text": "a", "label": "third"}]
    other = finetune("classification", tmp_path / "saved", third, epochs=1, learning_rate=0.0)
    assert other.model.classifier.weight.shape == (3, 32)


def test_rows_that_were_cut_are_counted(base):
    rows = list(generated.classification(16))
    with pytest.warns(UserWarning, match="of 16 rows were longer than 6 tokens and were cut"):
        tuned = finetune("classification", base, rows, epochs=1, max_length=6)
    with pytest.warns(UserWarning, match="1 of 2 rows were longer than 6 tokens and were cut"):
        assert len(list(tuned.predict([{"text": "a"}, {"text": "a " * 5}]))) == 2


def test_windows_of_a_long_context_are_one_prediction(base, tmp_path):
    tuned, _ = trained("qa", base, tmp_path, epochs=1)
    context = "the film was seen today and a film was seen by " * 8 + "ann"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (found,) = tuned.predict([{"question": "who ?", "context": context}])
    assert context[found["start"] : found["end"]] == found["answer"]
    assert len({(entry["start"], entry["end"]) for entry in found["n_best"]}) == len(found["n_best"]) == 20


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"epoch": 3}, ValueError, "unknown option 'epoch'. Of the task 'classification': text, pair, label"),
        ({"warmup": 2}, ValueError, "warmup must be a share of all steps"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a number of at least 0"),
        ({"max_length": 65}, ValueError, "max_length must be 1 to 64"),
        ({"class_weights": "equal"}, ValueError, "class_weights must be 'balanced'"),
        ({"class_weights": {"neutral": 2.0}}, ValueError, "class_weights names 'neutral', which is none of"),
        ({"text": "review"}, InputError, "row 1: no column 'review'; there are 'text', 'label'"),
        ({"labels": ["positive"]}, InputError, "label 'negative', which is none of 'positive'"),
        ({"best_metric": "f2", "steps": 1}, ValueError, "best_metric is 'f2', but the evaluation gave accuracy"),
    ],
)
def test_options_that_are_not_allowed(base, options, error, said):
    rows = list(generated.classification(8))
    with pytest.raises(error) as raised:
        finetune("classification", base, rows, rows, **options)
    assert said in str(raised.value)


def test_an_unknown_label_in_the_evaluation_names_file_and_line(base, tmp_path):
    train = write(tmp_path / "t.jsonl", generated.classification(8))
    held_out = write(tmp_path / "e.jsonl", [*generated.classification(2), {"text": "x", "label": "neutral"}])
    with pytest.raises(InputError, match="e.jsonl, line 3: column 'label' holds the label 'neutral', which is none of"):
        finetune("classification", base, train, held_out, epochs=1)


def test_what_is_no_fine_tuned_model(base, tmp_path):
    with pytest.raises(ValueError, match="holds no fine-tuned model: it has no bert_fast_task.json"):
        FineTuned.load(base)
    bert_fast.BertConfig().save_pretrained(tmp_path)
    (tmp_path / TASK_FILE).write_text('{"task": "poetry"}')
    with pytest.raises(ValueError, match="names no task; there are classification"):
        FineTuned.load(tmp_path)
