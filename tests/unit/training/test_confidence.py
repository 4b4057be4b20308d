"""Fitting confidence: on tasks whose answers are known to be too sure, or to be of no class."""

import math

import numpy as np
import pytest
import torch

from app.data.pools import ClassPool, TaskShape
from app.errors import Diverged
from app.learning.calibration import temperature
from app.learning.heads import build_head
from app.learning.learner import Learner
from app.learning.networks import Mlp
from app.training import confidence
from app.training.confidence import Cell, calibrate

CLASSES = 24


def learner_of(head: str = "shared-row") -> Learner:
    network = Mlp((1, 4, 4), hidden=(16,))
    return Learner(network, build_head(head), network.features)


LEARNER = learner_of()
THETA = LEARNER.initial(3)
ALPHA = {name: torch.tensor([0.5 if name.startswith("head.") else 0.05]) for name in THETA}


def pool_of(noise: int, classes: int = CLASSES, pictures: int = 12, seed: int = 0) -> ClassPool:
    """Noisy copies of one random picture a class."""
    rng = np.random.default_rng(seed)
    plain = rng.integers(256, size=(classes, 1, 1, 4, 4))
    noisy = plain + rng.integers(-noise, noise + 1, size=(classes, pictures, 1, 4, 4))
    images = noisy.clip(0, 255).astype(np.uint8)
    return ClassPool(images, tuple(f"class {number}" for number in range(classes)))


def synthetic(ways: int, sharpness: float, seed: int = 0, count: int = 4000) -> Cell:
    """Labels drawn from softmax(logits), of which the model reports `sharpness` times as much."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, ways, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    size = torch.tensor([math.log(ways), 0.0], dtype=torch.float64)
    return Cell(sharpness * logits, labels, torch.empty(0, 6), torch.empty(0, 6), size)


def test_the_temperature_that_is_fitted_is_how_many_times_too_sharp_the_logits_are():
    cells = [synthetic(ways, 3.0, seed=ways) for ways in (2, 5, 20)]
    weights = confidence._fit_temperature(cells)
    for cell in cells:
        assert float(temperature(weights, cell.size)) == pytest.approx(3.0, rel=0.1)


def test_sharpness_that_grows_with_the_classes_is_followed():
    cells = [synthetic(ways, ways**0.5, seed=ways) for ways in (2, 5, 20, 50)]
    weights = confidence._fit_temperature(cells)
    for ways, cell in zip((2, 5, 20, 50), cells, strict=True):
        assert float(temperature(weights, cell.size)) == pytest.approx(ways**0.5, rel=0.12)


def test_the_outlier_weights_that_are_fitted_are_those_the_labels_were_drawn_by():
    generator = torch.Generator().manual_seed(1)
    terms = torch.randn(40_000, 6, generator=generator, dtype=torch.float64)
    terms[:, 0] = 1
    terms[:, 5] = terms[:, 1] * terms[:, 3]
    true = torch.tensor([0.3, 1.5, -1.0, 0.2, 0.0, 0.5], dtype=torch.float64)
    outlier = torch.rand(40_000, generator=generator) < (terms @ true).sigmoid()
    cell = Cell(*[torch.empty(0)] * 2, terms[~outlier], terms[outlier], torch.empty(2))
    got = torch.tensor(confidence._fit_outlier([cell]), dtype=torch.float64)
    # Both halves weigh the same, which moves the first weight by the odds and no other.
    odds = math.log((~outlier).sum().item() / outlier.sum().item())
    torch.testing.assert_close(got[1:], true[1:], rtol=0, atol=0.06)
    assert got[0].item() == pytest.approx(true[0].item() + odds, abs=0.06)


def test_a_term_that_never_varies_has_no_weight():
    cell = synthetic(5, 2.0)
    _, of_ways, of_shots = confidence._fit_temperature([cell])
    assert of_ways == of_shots == 0


def test_cells_are_the_queries_of_the_first_half_of_the_classes_and_of_the_second():
    pool, seed = pool_of(20), 4
    shape = TaskShape((6, 6), (2, 2), 3)
    cell = confidence._answer(LEARNER, THETA, ALPHA, pool, shape, 2, 20, seed)
    assert cell.logits.shape == (2 * 3 * 3, 3)
    assert cell.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] * 2
    assert cell.known.shape == cell.unknown.shape == (2 * 3 * 3, 6)
    assert cell.size.tolist() == pytest.approx([math.log(3), math.log(2)])
    assert (cell.logits.argmax(-1) == cell.labels).float().mean() > 0.9
    assert cell.known[:, 1].mean() < cell.unknown[:, 1].mean(), "the unknown are farther away"


def test_a_calibrated_model_is_honest_on_other_classes():
    calibration = calibrate(LEARNER, THETA, ALPHA, pool_of(120), shots=5, steps=2, seed=1)
    assert calibration is not None
    options = {"ways": 5, "shots": 2, "tasks": 60, "steps": 2, "seed": 2}
    others = pool_of(120, seed=9)
    told = confidence.confidence(LEARNER, THETA, ALPHA, others, calibration, **options)
    error, area = told.calibration_error, told.outlier_auroc
    assert error < 0.06
    assert area > 0.6
    doubled = calibration.model_copy(
        update={"temperature": (calibration.temperature[0] - 1.5, *calibration.temperature[1:])}
    )
    worse = confidence.confidence(LEARNER, THETA, ALPHA, others, doubled, **options)
    assert worse.calibration_error > 2 * error


def test_sizes_are_as_many_ways_as_the_pool_has_twice_and_shots_as_asked_for():
    assert set(confidence._sizes(LEARNER, pool_of(9), 2)) == {
        (ways, shots) for ways in (2, 5, 10) for shots in (1, 2)
    }
    few = pool_of(9, pictures=3)
    assert {shots for _, shots in confidence._sizes(LEARNER, few, 10)} == {1, 2}
    fixed = learner_of("fixed-3")
    assert set(confidence._sizes(fixed, pool_of(9), 1)) == {(3, 1)}


def test_a_pool_without_other_classes_gives_no_confidence():
    small = pool_of(9, classes=3)
    assert calibrate(LEARNER, THETA, ALPHA, small, shots=1, steps=1, seed=0) is None
    calibration = calibrate(LEARNER, THETA, ALPHA, pool_of(9), shots=1, steps=1, seed=0)
    options = {"shots": 1, "tasks": 4, "steps": 1, "seed": 2}
    told = confidence.confidence(LEARNER, THETA, ALPHA, small, calibration, ways=2, **options)
    assert told is None


def test_the_same_seed_fits_the_same_and_progress_is_told():
    told = []
    fits = [
        calibrate(
            LEARNER,
            THETA,
            ALPHA,
            pool_of(60),
            shots=1,
            steps=1,
            seed=7,
            progress=lambda done, total: told.append((done, total)),
        )
        for _ in range(2)
    ]
    assert fits[0] == fits[1]
    assert told[:3] == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("classes", [5, 9])
def test_a_pool_for_two_classes_alone_tells_outliers_of_five_too(classes, monkeypatch):
    monkeypatch.setattr(confidence, "CELL_QUERIES", 400)
    few = pool_of(noise=60, classes=classes, seed=1)
    fitted = calibrate(LEARNER, THETA, ALPHA, few, shots=2, steps=1, seed=1)
    told = confidence.confidence(
        LEARNER, THETA, ALPHA, pool_of(noise=60), fitted, ways=5, shots=1, tasks=40, steps=1, seed=2
    )
    assert told.known.median() < 0.5 < told.unknown.median()
    assert told.outlier_auroc > 0.8


def test_an_inner_loop_that_diverges_is_said_so():
    far = {name: value * 1e30 for name, value in ALPHA.items()}
    with pytest.raises(Diverged, match="diverges on some 2-way 1-shot tasks: lower α"):
        calibrate(LEARNER, THETA, far, pool_of(noise=60), shots=1, steps=2, seed=1)
