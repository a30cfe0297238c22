"""Logits to predictions."""

import numpy as np
import pytest
from training.tasks import generated

from bert_fast.training.data import Example
from bert_fast.training.tasks import task_from


def test_a_label_and_its_probabilities():
    task = task_from("classification", {"labels": ("no", "yes")})
    found = task.prediction(task.record({"text": "a"}, False), [], [np.array([0.0, np.log(3)], np.float32)])
    assert found == {"label": "yes", "score": 0.75, "scores": {"no": 0.25, "yes": 0.75}}


def test_labels_above_the_threshold():
    logits = [np.array([0.0, -5.0, 3.0], np.float32)]
    for threshold, labels in ((0.5, ["c", "a"]), (0.6, ["c"]), (0.99, [])):
        task = task_from("multilabel", {"labels": ("a", "b", "c"), "threshold": threshold})
        assert task.prediction(task.record({"text": ""}, False), [], logits)["labels"] == labels


def test_a_number():
    task = task_from("regression")
    assert task.prediction(task.record({"text": ""}, False), [], [np.array([1.25], np.float32)]) == {"score": 1.25}


def test_the_right_choice():
    task = task_from("choice")
    record = task.record({"text": "", "choices": ["a", "b"]}, False)
    assert task.prediction(record, [], [np.array([np.log(4), 0], np.float32)])["scores"] == [0.8, 0.2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return generated.tokenizer(generated.checkpoint(tmp_path_factory.mktemp("base")))


def test_a_word_is_judged_where_it_has_most_context(tokenizer):
    """Each window's logits name the window; every word must take its label from the one where it stands deepest."""
    task = task_from("tokens", {"labels": tuple(f"w{n}" for n in range(9))})
    record = task.record({"tokens": ["good", "xyz"] * 12}, False)
    (windows,) = task.encoded([record], tokenizer, 16, whole=True).examples
    logits = [np.eye(9, dtype=np.float32)[[number] * len(window)] for number, window in enumerate(windows)]
    labels = task.prediction(record, windows, logits)["labels"]
    for word, label in enumerate(labels):
        room = {}
        for number, window in enumerate(windows):
            places = [p for p in np.flatnonzero(window.info["first"]) if window.info["words"][p] == word]
            room.update({f"w{number}": min(p, len(window) - 1 - p) for p in places})
        assert room[label] == max(room.values())


def test_words_of_which_nothing_is_left(tokenizer):
    for labels, wanted in ((("B-X", "O"), "O"), (("A", "B"), "")):
        task = task_from("tokens", {"labels": labels})
        record = task.record({"tokens": ["\u200b", "good"], "labels": [labels[0]] * 2})
        (windows,) = task.encoded([record], tokenizer, 16).examples
        found = task.prediction(record, windows, [np.full((len(windows[0]), 2), [1, 0], np.float32)])
        assert found["labels"] == [wanted, labels[0]]
        scores = task.scores()
        task.score(scores, record, found)
        assert scores.compute()["accuracy"] == 0.5


def test_entities_are_listed():
    task = task_from("tokens", {"labels": ("B-PER", "I-PER", "O")})
    record = task.record({"tokens": ["kim", "lee", "ran"]}, False)
    example = Example(
        [1, 5, 6, 7, 2], info={"words": np.array([-1, 0, 1, 2, -1]), "first": np.array([0, 1, 1, 1, 0], bool)}
    )
    logits = 9 * np.eye(3, dtype=np.float32)[[2, 0, 1, 2, 2]]
    found = task.prediction(record, [example], [logits])
    assert found["labels"] == ["B-PER", "I-PER", "O"]
    assert found["entities"] == [{"type": "PER", "start": 0, "end": 2, "text": "kim lee"}]


CONTEXT = "ann saw bob"
OFFSETS = np.array([[-1, -1], [-1, -1], [0, 3], [4, 7], [8, 11], [-1, -1]])


def answered(logits, **options):
    task = task_from("qa", {"no_answer": False, **options})
    record = task.record({"question": "who ?", "context": CONTEXT}, False)
    windows = [Example(range(6), info={"offsets": OFFSETS}) for _ in logits]
    return task.prediction(record, windows, [np.array(rows, np.float32).reshape(6, 2) for rows in logits])


def scored(**places):
    """Logits that are 0 but for ``s4=3`` (token 4 as a start) and the like."""
    rows = np.zeros((6, 2))
    for name, value in places.items():
        rows[int(name[1:]), "se".index(name[0])] = value
    return rows


def test_the_best_span_over_windows():
    found = answered([scored(s2=3, e2=2), scored(s4=4, e4=4)])
    assert (found["answer"], found["start"], found["end"]) == ("bob", 8, 11)
    assert found["n_best"][0]["answer"] == "bob"
    assert "no_answer_score" not in found
    assert sum(entry["score"] for entry in found["n_best"]) == pytest.approx(1, abs=1e-5)
    assert len({(entry["start"], entry["end"]) for entry in found["n_best"]}) == len(found["n_best"]) == 6


def test_neither_question_nor_special_tokens_nor_backward_spans_answer():
    assert answered([scored(s1=99, e1=99, s0=99, e5=99, s4=3, e2=3, e4=1)])["answer"] == "bob"


def test_answers_are_not_too_long():
    assert answered([scored(s2=5, e4=5, e3=4)])["answer"] == CONTEXT
    assert answered([scored(s2=5, e4=5, e3=4)], max_answer_length=2)["answer"] == "ann saw"


def test_no_answer_against_the_best_span():
    silent = [scored(s0=3, e0=3, s2=2, e2=2), scored(s0=5, e0=5)]  # 6 in the cheapest window, 4 for the span
    found = answered(silent, no_answer=True)
    assert (found["answer"], found["start"], found["end"]) == ("", None, None)
    assert found["no_answer_score"] == 2
    assert found["n_best"][0] == {"answer": "", "start": None, "end": None, "score": found["score"]}
    assert answered(silent, no_answer=True, no_answer_threshold=2.5)["answer"] == "ann"
    assert answered(silent, no_answer=False)["answer"] == "ann"


def test_an_empty_context_has_no_answer():
    task = task_from("qa", {"no_answer": False})
    record = task.record({"question": "who ?", "context": ""}, False)
    example = Example(range(4), info={"offsets": np.full((4, 2), -1)})
    found = task.prediction(record, [example], [np.zeros((4, 2), np.float32)])
    assert (found["answer"], found["start"]) == ("", None)
