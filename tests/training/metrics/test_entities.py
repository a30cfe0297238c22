"""Entities against seqeval where it is installed, and against counts made by hand."""

import random
import warnings

import pytest

from bert_fast.training.metrics import Entity, EntityScores, are_entity_tags, entities

TAGS = ["O", *(f"{prefix}-{kind}" for prefix in "BIES" for kind in ("PER", "LOC", "a-b"))]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ([], []),
        (["O", "O"], []),
        (["B-P", "I-P", "O"], [("P", 0, 2)]),
        (["I-P", "I-P"], [("P", 0, 2)]),  # IOB1 needs no B
        (["B-P", "B-P"], [("P", 0, 1), ("P", 1, 2)]),
        (["B-P", "I-L"], [("P", 0, 1), ("L", 1, 2)]),  # another type begins another entity
        (["B-P", "I-P", "E-P", "S-P"], [("P", 0, 3), ("P", 3, 4)]),  # IOBES
        (["E-P", "E-P"], [("P", 0, 1), ("P", 1, 2)]),
        (["S-P", "I-P"], [("P", 0, 1), ("P", 1, 2)]),
        (["B-a-b", "I-a-b"], [("a-b", 0, 2)]),  # a type may hold hyphens
    ],
)
def test_entities_by_hand(tags, found):
    assert entities(tags) == [Entity(*entity) for entity in found]


@pytest.mark.parametrize("tag", ["", "B", "B-", "X-PER", "NOUN", "-PER", "o"])
def test_what_is_no_tag_is_named(tag):
    with pytest.raises(ValueError, match="no entity tag"):
        entities(["O", tag])


def test_which_labels_are_entity_tags():
    assert are_entity_tags(["O", "B-PER", "I-PER"])
    assert not are_entity_tags(["O"])
    assert not are_entity_tags(["NOUN", "I-PER"])


def test_scores_by_hand():
    scores = EntityScores()
    scores.add(["B-P", "I-P", "O", "B-L"], ["B-P", "I-P", "O", "B-P"])  # one right, one of the wrong type
    scores.add(["O", "B-L"], ["B-L", "B-L"])  # one found, one missed
    result = scores.compute()
    assert result["precision"] == 2 / 3
    assert result["recall"] == 2 / 4
    assert result["f1"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert result["accuracy"] == 4 / 6
    assert result["f1/P"] == pytest.approx(2 / 3)
    assert result["f1/L"] == 0.5
    with pytest.raises(ValueError, match="1 predicted tags for 2 words"):
        scores.add(["O"], ["O", "O"])


def test_nothing_to_find_and_nothing_found_is_zero():
    scores = EntityScores()
    scores.add(["O"], ["O"])
    assert scores.compute() == {"precision": 0, "recall": 0, "f1": 0, "accuracy": 1}
    assert EntityScores().compute()["accuracy"] == 0


@pytest.mark.parametrize("seed", range(5))
def test_as_seqeval_counts(seed):
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval, the reference, is not installed")
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(seed)
    actual = [[draw.choice(TAGS) for _ in range(draw.randrange(1, 15))] for _ in range(60)]
    predicted = [[tag if draw.random() < 0.6 else draw.choice(TAGS) for tag in row] for row in actual]
    scores = EntityScores()
    for ours, theirs in zip(predicted, actual, strict=True):
        scores.add(ours, theirs)
        assert [(e.type, e.start, e.end - 1) for e in entities(theirs)] == get_entities(theirs)
    result = scores.compute()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = seqeval.classification_report(actual, predicted, output_dict=True)
    for name in ("precision", "recall", "f1"):
        wanted = report["micro avg"]["f1-score" if name == "f1" else name]
        assert result[name] == pytest.approx(wanted, abs=1e-12)
    assert result["accuracy"] == pytest.approx(seqeval.accuracy_score(actual, predicted))
    for kind in ("PER", "LOC", "a-b"):
        assert result[f"f1/{kind}"] == pytest.approx(report[kind]["f1-score"], abs=1e-12)
