"""SQuAD's scores: the official script's values, and torchmetrics' where it is installed."""

import random

import pytest

from bert_fast.training.metrics import SquadScores, exact_match, normalize_answer, token_f1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Panthers' defense.", "panthers defense"),
        ("a an the", ""),
        ("theatre", "theatre"),
        ("U.S.", "us"),
        ("20\u201310", "20\u201310"),  # only ASCII punctuation goes
        ("an A, THE b", "b"),
        ("\u00c9cole\tde\nParis", "\u00e9cole de paris"),
    ],
)
def test_normalisation(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answer", "exact", "f1"),
    [
        ("308", "308", 1, 1),
        ("The 308 points!", "308 points", 1, 1),
        ("308 points", "308", 0, 2 / 3),
        ("b b c", "b c c", 0, 2 / 3),  # a word counts as often as both have it
        ("x", "y", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("x", "", 0, 0),
        ("", "x", 0, 0),
    ],
)
def test_one_pair(prediction, answer, exact, f1):
    assert exact_match(prediction, answer) == exact
    assert token_f1(prediction, answer) == pytest.approx(f1)


def test_the_best_answer_counts():
    scores = SquadScores()
    scores.add("Denver Broncos", ["Broncos", "the Denver Broncos", "Denver"])
    scores.add("gold", ["golden", "gold anniversary"])
    assert scores.compute() == pytest.approx({"exact_match": 50, "f1": 100 * (1 + 2 / 3) / 2})


def test_questions_without_an_answer():
    scores = SquadScores()
    scores.add("", [])  # right
    scores.add("something", ["the"])  # an answer that normalises to nothing is none
    scores.add("x y", ["x"])
    result = scores.compute()
    assert result["no_answer_exact_match"] == result["no_answer_f1"] == 50
    assert result["has_answer_exact_match"] == 0
    assert result["has_answer_f1"] == pytest.approx(200 / 3)
    assert result["exact_match"] == pytest.approx(100 / 3)
    assert result["f1"] == pytest.approx(500 / 9)


def test_no_question_at_all():
    assert SquadScores().compute() == {"exact_match": 0, "f1": 0}


def test_as_torchmetrics_scores():
    squad = pytest.importorskip("torchmetrics.functional.text", reason="torchmetrics is not installed").squad
    words = ["the", "a", "an", "Gold,", "gold.", "1,000", "U.S.", "Panthers'", "\u201cnew\u201d", "York-based", "x"]
    draw = random.Random(0)

    def text():
        return " ".join(draw.choices(words, k=draw.randrange(1, 5)))

    predictions, answers = [text() for _ in range(300)], [[text() for _ in range(3)] for _ in range(300)]
    # torchmetrics has no rule for answers that normalise to nothing (SQuAD 2 drops them)
    answers = [[a for a in some if normalize_answer(a)] or ["x"] for some in answers]
    scores = SquadScores()
    for prediction, some in zip(predictions, answers, strict=True):
        scores.add(prediction, some)
    ids = [str(i) for i in range(300)]
    theirs = squad(
        [{"prediction_text": p, "id": i} for p, i in zip(predictions, ids, strict=True)],
        [
            {"answers": {"text": some, "answer_start": [0] * len(some)}, "id": i}
            for some, i in zip(answers, ids, strict=True)
        ],
    )
    assert scores.compute() == pytest.approx({name: value.item() for name, value in theirs.items()}, rel=1e-5)
