import numpy as np
import pytest

from app.engine.requests import Adapted, Answers
from app.errors import InvalidInput, Issue
from app.services.answers import TOO_LARGE, check_adapted, check_answers, predictions

ROWS = np.array([[0.25, 0.5, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]], np.float32)
LABELS = ["d", "c", "b", "a"]
ANSWERS = Answers(ROWS, np.array([0.75, 0.125], np.float32))


def test_probabilities_stand_in_the_order_of_the_labels():
    first, _ = predictions(LABELS, ANSWERS, top=None)
    assert (first.label, first.probability) == ("c", 0.5)
    assert list(first.probabilities.items()) == [
        ("d", 0.25),
        ("c", 0.5),
        ("b", 0.125),
        ("a", 0.125),
    ]


def test_top_keeps_the_most_probable_most_probable_first():
    first, _ = predictions(LABELS, ANSWERS, top=3)
    assert (first.label, first.probability) == ("c", 0.5)
    assert list(first.probabilities.items()) == [("c", 0.5), ("d", 0.25), ("b", 0.125)]


def test_every_prediction_has_its_own_outlier_probability_or_none_has_one():
    assert [answer.outlier for answer in predictions(LABELS, ANSWERS, top=None)] == [0.75, 0.125]
    uncalibrated = predictions(LABELS, Answers(ROWS, None), top=None)
    assert [answer.outlier for answer in uncalibrated] == [None, None]


def test_of_equal_labels_the_first_is_predicted_and_ranked_first():
    _, second = predictions(LABELS, ANSWERS, top=2)
    assert second.label == "d"
    assert list(second.probabilities) == ["d", "c"]


def test_top_beyond_the_number_of_labels_ranks_them_all():
    first, _ = predictions(LABELS, ANSWERS, top=99)
    assert list(first.probabilities) == ["c", "d", "b", "a"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_an_adaptation_that_overflowed_is_the_supports_fault(loss):
    with pytest.raises(InvalidInput) as caught:
        check_adapted(Adapted(support_loss=(1.0, loss), answers=None))
    assert caught.value.issues == (Issue("/support", TOO_LARGE),)


def test_each_query_that_overflowed_is_named_and_no_other():
    rows = np.array([[0.5, 0.5], [np.nan, np.nan], [1, 0], [np.nan, 1]], np.float32)
    with pytest.raises(InvalidInput) as caught:
        check_answers(Answers(rows, None), "/examples/{}/input")
    assert [issue.pointer for issue in caught.value.issues] == [
        "/examples/1/input",
        "/examples/3/input",
    ]


def test_a_query_whose_outlier_probability_overflowed_is_named():
    rows = np.array([[0.5, 0.5], [1, 0]], np.float32)
    with pytest.raises(InvalidInput) as caught:
        check_answers(Answers(rows, np.array([0.1, np.nan], np.float32)), "/query/{}")
    assert [issue.pointer for issue in caught.value.issues] == ["/query/1"]
