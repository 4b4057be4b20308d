"""Sinusoids, against the oracle's inputs: they hold x, A and p."""

import numpy as np
import pytest
import torch

from app.data.augment import Jitter
from app.data.pools import Augmentation, TaskShape
from app.data.sinusoid import Sinusoids
from app.errors import DataError
from app.learning.tasks import Task

SHAPE = TaskShape((1, 1), (5, 5), 10)
PLAIN, ORACLE = Sinusoids(), Sinusoids(oracle=True)


def assert_equal(one: Task, other: Task) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def examples(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of support and query together, float64."""
    inputs = torch.cat([task.support.inputs, task.query.inputs], 1)
    targets = torch.cat([task.support.labels, task.query.labels], 1)
    return inputs.double().numpy(), targets.double().numpy()


def test_every_target_is_the_amplitude_times_the_sine_of_input_minus_phase():
    inputs, targets = examples(ORACLE.sample(SHAPE, 50, [1]))
    x, amplitude, phase = np.moveaxis(inputs, -1, 0)
    np.testing.assert_allclose(targets[..., 0], amplitude * np.sin(x - phase), atol=5e-6)


def test_a_task_has_one_amplitude_and_one_phase_and_tasks_have_others():
    inputs, _ = examples(ORACLE.sample(SHAPE, 50, [1]))
    for column in (1, 2):
        assert (inputs[..., column] == inputs[:, :1, column]).all()
        assert len(set(inputs[:, 0, column])) == 50
    assert len(set(inputs[..., 0].ravel())) == 50 * 15


def test_the_oracle_sees_the_same_tasks_as_the_others_and_more_of_them():
    plain, oracle = (source.sample(SHAPE, 20, [4, 2]) for source in (PLAIN, ORACLE))
    for one, other in ((plain.support, oracle.support), (plain.query, oracle.query)):
        assert torch.equal(one.inputs, other.inputs[..., :1])
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("column", "low", "high"), [(0, -5.0, 5.0), (1, 0.1, 5.0), (2, 0.0, np.pi)]
)
def test_inputs_amplitudes_and_phases_are_uniform_in_the_papers_ranges(column, low, high):
    inputs, _ = examples(ORACLE.sample(SHAPE, 4000, [3]))
    values = inputs[..., column].ravel() if column == 0 else inputs[:, 0, column]
    assert low <= values.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < values.max() <= high + 1e-6
    shares, _ = np.histogram(values, 4, (low, high + 1e-6))
    np.testing.assert_allclose(shares / len(values), 0.25, atol=0.035)  # five standard deviations


def test_shapes_and_types():
    for source, width in ((PLAIN, 1), (ORACLE, 3)):
        task = source.sample(SHAPE, 7, [0])
        assert source.input.kind == "values"
        assert source.input.shape == (width,)
        for part, each in ((task.support, 5), (task.query, 10)):
            assert part.inputs.shape == (7, each, width)
            assert part.labels.shape == (7, each, 1)
            assert (part.inputs.dtype, part.labels.dtype) == (torch.float32, torch.float32)
            assert part.mask.shape == (7, each)
            assert bool(part.mask.all())
        assert task.classes.tolist() == [[True]] * 7


def test_the_same_seed_draws_the_same_tasks_and_another_seed_others():
    first = PLAIN.sample(SHAPE, 4, [3, 7])
    np.random.default_rng(0).random()
    assert_equal(PLAIN.sample(SHAPE, 4, [3, 7]), first)
    others = [PLAIN.sample(SHAPE, 4, seed) for seed in ([3, 8], [4, 7])]
    assert not any(torch.equal(other.support.inputs, first.support.inputs) for other in others)


def test_parts_are_the_whole_batch_to_the_bit():
    whole = ORACLE.sample(SHAPE, 7, [5])
    parts = [ORACLE.sample(SHAPE, 7, [5], part=slice(*ends)) for ends in ((0, 2), (2, 3), (3, 7))]
    assert [len(part.classes) for part in parts] == [2, 1, 4]
    for name in ("support", "query"):
        for field in range(3):
            together = torch.cat([getattr(part, name)[field] for part in parts])
            assert torch.equal(together, getattr(whole, name)[field])


def test_there_is_nothing_to_augment():
    augmentation = Augmentation(True, Jitter(20), Jitter(10))
    assert_equal(PLAIN.sample(SHAPE, 4, [1], augmentation), PLAIN.sample(SHAPE, 4, [1]))


def test_there_are_as_many_queries_as_anybody_asks_for():
    assert PLAIN.most_queries(10) >= 100_000
    assert PLAIN.sample(TaskShape((1, 1), (1, 1), 5000), 1, [0]).query.inputs.shape[1] == 5000


@pytest.mark.parametrize(
    "shape",
    [TaskShape((2, 2), (5, 5), 1), TaskShape((1, 2), (5, 5), 1), TaskShape((1, 1), (4, 5), 1)],
)
def test_tasks_of_classes_or_of_ragged_shots_are_refused(shape):
    with pytest.raises(DataError, match=r"one output, ways = \[1, 1\], and one number of shots"):
        PLAIN.sample(shape, 2, [0])
