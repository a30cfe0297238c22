"""Scores of labels and numbers, against values made by hand: scikit-learn is called, not tested."""

import pytest

from bert_fast.training.metrics import LabelScores, MultiLabelScores, NumberScores


def added(scores, pairs):
    for predicted, actual in pairs:
        scores.add(predicted, actual)
    return scores.compute()


def test_one_label_a_row():
    # yes: 2 right, 1 false alarm, 1 missed
    result = added(LabelScores(["no", "yes", "never"]), [(1, 1), (1, 1), (1, 0), (0, 1), (0, 0)])
    assert result["accuracy"] == 0.6
    assert result["f1/yes"] == pytest.approx(4 / 6)
    assert result["f1/no"] == pytest.approx(2 / 4)
    assert result["f1_macro"] == pytest.approx((4 / 6 + 2 / 4) / 2)  # a label that never occurs has no part in it
    assert "f1/never" not in result
    assert result["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)


def test_any_number_of_labels_a_row():
    result = added(MultiLabelScores(["a", "b", "c"]), [([1, 0, 0], [1, 1, 0]), ([0, 1, 0], [0, 1, 0])])
    assert result["f1/a"] == 1
    assert result["f1/b"] == pytest.approx(2 / 3)
    assert result["f1/c"] == 0
    assert result["f1_micro"] == pytest.approx(2 * 2 / (2 + 3))
    assert result["f1_macro"] == pytest.approx((1 + 2 / 3) / 3)
    assert result["accuracy"] == 0.5


def test_a_single_label_that_holds_or_not():
    result = added(MultiLabelScores(["a"]), [([1], [1]), ([0], [1]), ([0], [0])])
    assert result == pytest.approx({"f1_micro": 2 / 3, "f1_macro": 2 / 3, "f1/a": 2 / 3, "accuracy": 2 / 3})


def test_numbers():
    result = added(NumberScores(), [(1.0, 10.0), (2.0, 20.0), (4.0, 30.0)])
    assert result["spearman"] == pytest.approx(1)
    assert result["pearson"] == pytest.approx(30 / (14 / 3 * 200) ** 0.5)
    assert result["mse"] == pytest.approx((81 + 324 + 676) / 3)
    assert result["mae"] == pytest.approx((9 + 18 + 26) / 3)


def test_numbers_that_do_not_vary_have_no_correlation():
    assert added(NumberScores(), [(1.0, 1.0), (1.0, 2.0)])["pearson"] == 0
    assert added(NumberScores(), [(1.0, 1.0)])["spearman"] == 0


@pytest.mark.parametrize("scores", [LabelScores(["a"]), MultiLabelScores(["a"]), NumberScores()])
def test_no_row_gives_no_score(scores):
    assert scores.compute() == {}
