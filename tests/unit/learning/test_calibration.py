"""Confidence against arithmetic done by hand, in loops and in NumPy."""

import math

import numpy as np
import pytest
import torch

from app.learning.calibration import (
    area_under_roc,
    class_means,
    expected_calibration_error,
    outlier_probability,
    outlier_terms,
    task_size,
    temperature,
)
from app.learning.tasks import Examples


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_class_means_leave_padding_out_and_are_zero_without_examples():
    features = normal(5, 3)
    labels = torch.tensor([1, 0, 1, 0, 0])
    mask = torch.tensor([True, True, True, True, False])
    means = class_means(features, Examples(torch.zeros(5, 1), labels, mask), 3)
    torch.testing.assert_close(means[0], (features[1] + features[3]) / 2)
    torch.testing.assert_close(means[1], (features[0] + features[2]) / 2)
    assert means[2].tolist() == [0, 0, 0]


def test_a_tasks_size_is_its_classes_and_the_harmonic_mean_of_their_shots():
    shots, classes = torch.tensor([1, 4, 2, 0]), torch.tensor([True, True, True, False])
    expected = [math.log(3), math.log(3 / (1 + 1 / 4 + 1 / 2))]
    assert task_size(shots, classes).tolist() == pytest.approx(expected)
    assert task_size(torch.tensor([5, 5]), torch.tensor([True, True])).tolist() == pytest.approx(
        [math.log(2), math.log(5)]
    )


def test_the_temperature_is_linear_in_the_logarithms():
    size = torch.tensor([[math.log(20), math.log(5)], [0.0, 0.0]])
    expected = [math.exp(0.5) * 20**0.25 * 5**-0.125, math.exp(0.5)]
    assert temperature((0.5, 0.25, -0.125), size).tolist() == pytest.approx(expected)


def test_outlier_terms_are_of_the_nearest_class_that_exists():
    features, means = normal(4, 3), normal(3, 3, seed=1)
    means[2] = features[0]  # it does not exist, so nothing is near it
    size = torch.tensor([math.log(2), math.log(7)], dtype=torch.float64)
    got = outlier_terms(features, means, torch.tensor([True, True, False]), size)
    for row, feature in zip(got.numpy(), features.numpy(), strict=True):
        squares = [((feature - mean) ** 2).sum() for mean in means[:2].numpy()]
        near = math.log(min(squares))
        share = near - math.log(sum(squares) / 2)
        expected = [1, near, share, math.log(2), math.log(7), near * math.log(2)]
        np.testing.assert_allclose(row, expected, rtol=1e-9)


def test_an_input_that_is_a_class_mean_itself_has_a_finite_answer():
    means = normal(2, 3).float()
    size = torch.tensor([math.log(2), 0.0])
    terms = outlier_terms(means, means, torch.tensor([True, True]), size)
    assert bool(terms.isfinite().all())
    near = outlier_probability((0, 1.0, 1.0, 0, 0, 0), terms)
    assert near.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_outlier_probability_is_the_logistic_function():
    terms = torch.tensor([[1.0, 2, 0, 0, 0, 0], [1, -2, 3, 0, 0, 1]])
    weights = (0.5, 1.0, -1.0, 9, 9, 0.25)
    expected = [1 / (1 + math.exp(-2.5)), 1 / (1 + math.exp(4.25))]
    assert outlier_probability(weights, terms).tolist() == pytest.approx(expected)


def test_the_calibration_error_is_the_gap_of_each_bin_weighed_by_its_size():
    confidence = torch.tensor([0.9, 0.92, 0.91, 0.3, 1.0])  # bins 13, 13, 13, 4 and 14
    correct = torch.tensor([True, True, False, True, True])
    expected = abs(0.9 + 0.92 + 0.91 - 2) / 5 + abs(0.3 - 1) / 5 + 0
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected, abs=1e-6)


def test_sure_and_right_is_no_error_and_sure_and_wrong_is_the_greatest():
    sure = torch.ones(8)
    assert expected_calibration_error(sure, torch.ones(8, dtype=torch.bool)) == 0
    assert expected_calibration_error(sure, torch.zeros(8, dtype=torch.bool)) == 1


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order_ties_counting_half():
    positive = torch.tensor([0.9, 0.5, 0.5, 0.1])
    negative = torch.tensor([0.5, 0.2, 0.1])
    pairs = [(p > n) + (p == n) / 2 for p in positive.tolist() for n in negative.tolist()]
    assert area_under_roc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))
    assert area_under_roc(negative, positive) == pytest.approx(1 - sum(pairs) / len(pairs))


def test_outlier_terms_of_a_query_are_the_same_among_many():
    generator = torch.Generator().manual_seed(4)
    queries = 30 + torch.randn(60, 512, generator=generator)
    means = 30 + torch.randn(40, 512, generator=generator)
    size, classes = torch.tensor([40.0, 1.0]).log(), torch.ones(40, dtype=torch.bool)
    among = outlier_terms(queries, means, classes, size)
    alone = torch.cat([outlier_terms(query[None], means, classes, size) for query in queries])
    torch.testing.assert_close(among, alone, rtol=0, atol=2e-6)
