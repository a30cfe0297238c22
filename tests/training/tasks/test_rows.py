"""What tasks read of rows, and what they say of rows that they cannot read."""

import numpy as np
import pytest

from bert_fast.training.data import InputError, read_rows
from bert_fast.training.tasks import TASKS, task_from

GOOD = {
    "classification": {"text": "a", "label": "yes"},
    "regression": {"text": "a", "label": 1},
    "multilabel": {"text": "a", "labels": ["x"]},
    "tokens": {"tokens": ["a"], "labels": ["O"]},
    "qa": {"question": "q", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}},
    "choice": {"text": "a", "choices": ["b", "c"], "label": 0},
}


@pytest.mark.parametrize("name", TASKS)
def test_a_good_row(name):
    record = task_from(name).record(GOOD[name])
    assert record.target is not None
    assert task_from(name).record(GOOD[name], labelled=False) == (record.inputs, None)


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_not_asked_for_where_there_is_nothing_to_learn(name):
    row = {column: value for column, value in GOOD[name].items() if column not in ("label", "labels", "answers")}
    assert task_from(name).record(row, labelled=False).inputs
    with pytest.raises(ValueError, match=r"no column '(label|labels|answers)'; there are "):
        task_from(name).record(row)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("classification", {"text": None}, "column 'text' holds None, but must hold a string"),
        ("classification", {"label": 1.5}, "column 'label' holds 1.5, but must hold a label: a string or an integer"),
        ("classification", {"label": None}, "holds None, but must hold a label"),
        ("classification", {"label": True}, "holds True, but must hold a label"),
        ("classification", {"label": ""}, "column 'label' is empty"),
        ("regression", {"label": "high"}, "column 'label' holds 'high', but must hold a finite number"),
        ("regression", {"label": float("nan")}, "must hold a finite number"),
        ("regression", {"label": False}, "must hold a finite number"),
        ("multilabel", {"labels": 3}, "column 'labels' holds 3, but must hold a list of labels"),
        ("multilabel", {"labels": ["a", None]}, "holds None, but must hold a label"),
        ("tokens", {"labels": ["O", "O"]}, "column 'labels' holds 2 labels for the 1 words of 'tokens'"),
        ("tokens", {"tokens": [1]}, "column 'tokens' holds 1, but must hold words"),
        ("tokens", {"tokens": 7}, "must hold a list of words"),
        ("qa", {"answers": {"text": ["b"], "answer_start": [0]}}, "the answer 'b' is not at character 0 of 'context'"),
        ("qa", {"answers": {"text": ["b"], "answer_start": [-1]}}, "is not at character -1"),
        ("qa", {"answers": {"text": ["b"], "answer_start": [99]}}, "where '' stands"),
        ("qa", {"answers": {"text": ["b"], "answer_start": []}}, "equally many of both"),
        ("qa", {"answers": {"text": [""], "answer_start": [0]}}, "texts that are not empty"),
        ("qa", {"answers": {"text": ["b"], "answer_start": ["2"]}}, "where each one starts"),
        ("qa", {"answers": 3}, "column 'answers' holds 3"),
        ("qa", {"answers": "b"}, "column 'answers' holds 'b'"),
        ("qa", {"context": ["a"]}, "column 'context' holds ['a'], but must hold a string"),
        ("choice", {"label": 2}, "column 'label' holds 2, but must hold the right choice's number, 0 to 1"),
        ("choice", {"label": "b"}, "the right choice's number"),
        ("choice", {"choices": ["b"]}, "must hold a list of two strings or more"),
        ("choice", {"choices": ["b", 1]}, "must hold a list of two strings or more"),
    ],
)
def test_a_bad_row_is_described(name, changed, said):
    with pytest.raises(ValueError) as error:
        task_from(name).record({**GOOD[name], **changed})
    assert said in str(error.value)


def test_the_file_and_the_line_are_named(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("text,label\ngood,yes\nbad,perhaps\n")
    task = task_from("classification", {"labels": ("no", "yes")})
    with pytest.raises(InputError) as error:
        list(read_rows(file).map(task.record))
    assert str(error.value) == f"{file}, line 3: column 'label' holds the label 'perhaps', which is none of 'no', 'yes'"


def test_labels_as_names_and_as_numbers():
    named = task_from("classification", {"labels": ("no", "yes")})
    assert named.record({"text": "a", "label": 1}).target == "yes"
    assert named.record({"text": "a", "label": "no"}).target == "no"
    with pytest.raises(ValueError, match="label '2', which is none of 'no', 'yes'"):
        named.record({"text": "a", "label": 2})
    digits = task_from("classification", {"labels": ("1", "2")})  # a name goes before a number
    assert digits.record({"text": "a", "label": 1}).target == "1"


@pytest.mark.parametrize(
    ("found", "order"),
    [(["b", "a", "b"], ("a", "b")), ([10, 9, 2], ("2", "9", "10")), (["10", "9", "x"], ("10", "9", "x"))],
)
def test_labels_are_learned_in_order(found, order):
    task = task_from("classification")
    assert task.learned(task.record({"text": "", "label": label}) for label in found).labels == order


def test_given_labels_are_kept_and_nothing_is_read():
    def never():
        raise AssertionError("read")
        yield

    assert task_from("classification", {"labels": ("z", "a")}).learned(never()).labels == ("z", "a")


def test_what_cannot_be_labels():
    task = task_from("classification")
    with pytest.raises(ValueError, match="more than 10000 different values"):
        task.learned(task.record({"text": "", "label": n}) for n in range(10_001))
    with pytest.raises(ValueError, match="no row holds a label in column"):
        task.learned([])


def test_several_labels_as_a_list_a_string_and_columns():
    assert task_from("multilabel").record({"text": "", "labels": "x, y ,"}).target == ("x", "y")
    assert task_from("multilabel").record({"text": "", "labels": []}).target == ()
    columns = task_from("multilabel", {"label_columns": ("toxic", "rude")})
    assert columns.record({"text": "", "toxic": "1", "rude": 0}).target == ("toxic",)
    assert columns.labels == ("toxic", "rude")
    with pytest.raises(ValueError, match="column 'rude' holds 2, but must hold 0 or 1"):
        columns.record({"text": "", "toxic": 1, "rude": 2})


def test_words_as_a_string():
    record = task_from("tokens").record({"tokens": "a b", "labels": "O B-X"})
    assert record == (["a", "b"], ["O", "B-X"])


@pytest.mark.parametrize(
    "answers",
    [
        {"text": np.array(["b"]), "answer_start": np.array([2])},
        [{"text": "b", "answer_start": 2}],
        '{"text": ["b"], "answer_start": [2]}',
    ],
)
def test_answers_in_other_forms(answers):
    assert task_from("qa").record({"question": "", "context": "a b", "answers": answers}).target == [("b", 2)]


def test_whether_there_may_be_no_answer_is_learned():
    task = task_from("qa")
    with_answer, without = GOOD["qa"], {**GOOD["qa"], "answers": {"text": [], "answer_start": []}}
    assert task.learned([task.record(with_answer)]).no_answer is False
    assert task.learned(map(task.record, [with_answer, without])).no_answer is True


def test_choices_in_columns_and_with_a_common_beginning():
    task = task_from("choice", {"choices": ("e0", "e1"), "beginning": "sent2", "text": "sent1"})
    row = {"sent1": "s", "sent2": "He", "e0": "ran.", "e1": "fell.", "label": "1"}
    assert task.record(row) == (("s", ["He ran.", "He fell."]), 1)


def test_all_rows_have_as_many_choices_as_the_first():
    task = task_from("choice")
    task = task.learned([task.record(GOOD["choice"])])
    assert task.count == 2
    with pytest.raises(ValueError, match="holds 3 choices, but must hold 2"):
        task.record({"text": "a", "choices": ["b", "c", "d"], "label": 0})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("classify", {}, "task 'classify': allowed are classification, regression, multilabel, tokens, qa, choice"),
        ("classification", {"stride": 1}, "the task 'classification' has no option 'stride'; it has text, pair"),
        ("classification", {"labels": ("a", "a")}, "labels must each be named once"),
        ("classification", {"labels": "ab"}, "labels must be a list of names"),
        ("multilabel", {"threshold": 1.0}, "threshold must be between 0 and 1"),
        ("multilabel", {"label_columns": ("a",), "labels": ("b",)}, "labels are label_columns"),
        ("tokens", {"label_pieces": "last"}, "label_pieces must be 'first' or 'all'"),
        ("qa", {"stride": -1}, "stride must be at least 0"),
        ("choice", {"choices": ()}, "choices must name at least one column"),
    ],
)
def test_options_that_are_not_allowed(name, options, said):
    with pytest.raises(ValueError) as error:
        task_from(name, options)
    assert said in str(error.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_made_again_from_what_is_saved(name):
    task = task_from(name)
    task = task.learned([task.record(GOOD[name])])
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in task.to_dict().items()}
    assert task_from(saved.pop("task"), saved) == task
