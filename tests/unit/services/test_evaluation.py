from math import sqrt

import numpy as np
import pytest

from app.services.evaluation import Z_95, evaluate, wilson_interval


def score_bound(correct: int, n: int, low: float, high: float) -> float:
    """By bisection: the p between `low` and `high` that is z standard errors from correct / n."""

    def excess(p: float) -> float:
        return abs(correct / n - p) - Z_95 * sqrt(p * (1 - p) / n)

    rising = excess(high) > excess(low)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if (excess(middle) > 0) == rising else (middle, high)
    return (low + high) / 2


@pytest.mark.parametrize(("correct", "n"), [(19, 20), (1, 2), (3, 7), (999, 1000), (50, 100)])
def test_the_interval_holds_the_proportions_that_the_score_test_does_not_reject(correct, n):
    low, high = wilson_interval(correct, n)
    assert low == pytest.approx(score_bound(correct, n, 0, correct / n), abs=1e-9)
    assert high == pytest.approx(score_bound(correct, n, correct / n, 1), abs=1e-9)


def test_z_leaves_five_percent_in_both_tails():
    steps = np.linspace(-Z_95, Z_95, 200_001)
    density = np.exp(-(steps**2) / 2) / np.sqrt(2 * np.pi)
    assert np.trapezoid(density, steps) == pytest.approx(0.95, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_all_right_or_all_wrong_still_has_a_width_and_stays_within_zero_and_one(n):
    z2 = Z_95**2
    assert wilson_interval(0, n) == (0.0, pytest.approx(z2 / (n + z2)))
    assert wilson_interval(n, n) == (pytest.approx(n / (n + z2)), 1.0)


def test_confusion_counts_true_by_predicted_over_all_labels():
    probabilities = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.7, 0], [0, 1, 0]], np.float32)
    got = evaluate(["a", "b", "c"], np.array([0, 0, 1, 1]), probabilities)
    assert (got.n, got.accuracy) == (4, 0.75)
    assert got.confidence_interval_95 == wilson_interval(3, 4)
    assert got.confusion == {
        "a": {"a": 1, "b": 1, "c": 0},
        "b": {"a": 0, "b": 2, "c": 0},
        "c": {"a": 0, "b": 0, "c": 0},
    }
