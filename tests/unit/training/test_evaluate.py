"""Evaluation of θ: against numpy, against chance, and the same for the same seed."""

import math

import numpy as np
import pytest
import torch

from app.data.omniglot import INPUT
from app.data.pools import ClassPool, TaskShape
from app.errors import DataError
from app.learning.inner_loop import adapt
from app.learning.nearest_class_mean import nearest_class_mean
from app.learning.tasks import Examples, Task
from app.registry.registry import build_learner
from app.training import evaluate as module
from app.training.evaluate import Evaluation, evaluate
from tests.unit.training.helpers import make_pool, recipe

TINY = recipe()
LEARNER = build_learner(INPUT, TINY.network.model_dump(), TINY.head)
THETA = LEARNER.initial(seed=1)
ALPHA = {name: torch.tensor([0.1, 0.05]) for name in THETA}


@pytest.fixture
def pool() -> ClassPool:
    return make_pool(10, seed=5)


def measured(pool: ClassPool, **changes) -> Evaluation:
    wanted = {"ways": 4, "shots": 2, "queries": 3, "tasks": 12, "steps": 2, "seed": 9} | changes
    return evaluate(LEARNER, THETA, ALPHA, pool, **wanted)


def lone_tasks(pool: ClassPool, tasks: int, at_once: int) -> list[Task]:
    """The tasks that are measured on, one by one."""
    lone = []
    for done in range(0, tasks, at_once):
        count = min(at_once, tasks - done)
        batch = pool.sample(TaskShape((4, 4), (2, 2), 3), count, [9, done])
        for index in range(count):
            support, query = (
                Examples(*(tensor[index] for tensor in part))
                for part in (batch.support, batch.query)
            )
            lone.append(Task(support, query, batch.classes[index]))
    return lone


def by_hand(task: Task, steps: int) -> float:
    """Evaluation in percent after an adaptation, counted query by query."""
    phi, *_ = adapt(LEARNER, THETA, task.support, task.classes, ALPHA, steps)
    right = [
        LEARNER.logits(phi, query[None]).argmax().item() == label.item()
        for query, label in zip(task.query.inputs, task.query.labels, strict=True)
    ]
    return 100 * sum(right) / len(right)


def nearest_by_hand(task: Task) -> float:
    """Evaluation in percent of the nearest class mean, in numpy."""
    phi = LEARNER.start(THETA, 4)
    support = LEARNER.features(phi, task.support.inputs).detach().numpy().astype(np.float64)
    queries = LEARNER.features(phi, task.query.inputs).detach().numpy().astype(np.float64)
    labels = task.support.labels.numpy()
    means = [support[labels == way].mean(axis=0) for way in range(4)]
    guesses = [
        int(np.argmin([float(((query - mean) ** 2).sum()) for mean in means])) for query in queries
    ]
    return 100 * float(np.mean(np.array(guesses) == task.query.labels.numpy()))


def test_the_figures_are_those_of_counting_task_by_task(pool, monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE_NUMBERS", 5 * 4 * (2 + 3) * 28 * 28)
    result = measured(pool, tasks=12)
    tasks = lone_tasks(pool, 12, at_once=5)
    accuracies = np.array([[by_hand(task, steps) for steps in range(3)] for task in tasks])
    assert 30 < accuracies[:, -1].mean() < 99, "too easy or too hard to tell anything"
    assert result.mean == pytest.approx(accuracies[:, -1].mean())
    assert len(result.by_step) == 3
    assert result.by_step[1:] == pytest.approx(tuple(accuracies.mean(axis=0)[1:]))
    margin = 1.96 * accuracies[:, -1].std(ddof=1) / math.sqrt(12)
    assert margin > 0
    low, high = result.mean - margin, result.mean + margin
    assert result.interval == pytest.approx((low, high))
    baseline = np.array([nearest_by_hand(task) for task in tasks])
    assert result.nearest_class_mean == pytest.approx(baseline.mean())
    margin = 1.96 * baseline.std(ddof=1) / math.sqrt(12)
    assert margin > 0
    ends = (baseline.mean() - margin, baseline.mean() + margin)
    assert result.nearest_class_mean_interval == pytest.approx(ends)


def test_the_nearest_class_mean_ignores_padding_and_weighs_ragged_shots():
    rng = np.random.default_rng(3)
    inputs = torch.from_numpy(rng.uniform(0, 1, (9, 1, 28, 28)).astype(np.float32))
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 0, 0, 0])
    mask = torch.tensor([True] * 6 + [False] * 3)
    query = Examples(inputs[:4].flip(0) + 0.1, torch.zeros(4, dtype=torch.int64), mask[:4])
    task = Task(Examples(inputs, labels, mask), query, torch.ones(3, dtype=torch.bool))
    got = nearest_class_mean(LEARNER, THETA, task).detach().numpy()
    phi = LEARNER.start(THETA, 3)
    features = LEARNER.features(phi, inputs).detach().numpy().astype(np.float64)
    queries = LEARNER.features(phi, query.inputs).detach().numpy().astype(np.float64)
    for row, one in zip(got, queries, strict=True):
        for way, members in enumerate(([0, 1, 2], [3], [4, 5])):
            mean = features[members].mean(axis=0)
            assert row[way] == pytest.approx(-((one - mean) ** 2).sum(), rel=1e-3)


@pytest.mark.parametrize("ways", [2, 5, 8])
def test_before_the_first_step_the_shared_row_answers_by_chance(pool, ways):
    # All logits are equal but for rounding, which breaks ties one way or another.
    assert measured(pool, ways=ways).by_step[0] == pytest.approx(100 / ways, abs=12)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others(pool):
    assert measured(pool) == measured(pool)
    assert measured(pool).by_step != measured(pool, seed=10).by_step


def test_no_steps_measure_theta_itself(pool):
    result = measured(pool, steps=0)
    assert result.by_step == (result.mean,)
    assert result.mean == pytest.approx(25, abs=12)


def test_progress_counts_the_tasks_of_all_batches(pool, monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE_NUMBERS", 5 * 4 * (2 + 3) * 28 * 28)
    told = []
    measured(pool, tasks=12, progress=told.append)
    assert told == [5, 10, 12]


def test_batches_that_are_computed_together_give_the_same_figures(pool, monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE_NUMBERS", 5 * 4 * (2 + 3) * 28 * 28)
    for at_once in (1, 7, 100):
        monkeypatch.setitem(module.COMPUTED_AT_ONCE_NUMBERS, "cpu", at_once * 4 * (2 + 3) * 28 * 28)
        found = measured(pool)
        if at_once == 1:
            expected = found
        assert found.by_step[1:] == pytest.approx(expected.by_step[1:])
        assert found.nearest_class_mean == pytest.approx(expected.nearest_class_mean)
        assert found.interval == pytest.approx(expected.interval)


def test_a_task_larger_than_a_batch_is_measured_alone(pool, monkeypatch):
    monkeypatch.setattr(module, "DRAWN_AT_ONCE_NUMBERS", 1)
    told = []
    measured(pool, tasks=3, progress=told.append)
    assert told == [1, 2, 3]


def test_where_a_class_has_too_few_pictures_there_are_fewer_queries(pool):
    result = measured(pool, shots=7, queries=15)  # of 8 pictures one is left
    assert 0 <= result.mean <= 100
    possible = 100 * np.arange(5) / 4
    lone = measured(pool, shots=7, queries=15, tasks=2)
    assert any(abs(lone.mean - (a + b) / 2) < 1e-6 for a in possible for b in possible)


@pytest.mark.parametrize("changes", [{"shots": 8}, {"ways": 11}])
def test_a_pool_too_small_is_said_so(pool, changes):
    with pytest.raises(DataError, match="ask for smaller tasks"):
        measured(pool, **changes)


def test_measuring_leaves_theta_as_it_was(pool):
    before = {name: value.clone() for name, value in THETA.items()}
    measured(pool)
    assert all(torch.equal(THETA[name], before[name]) for name in before)
    assert not any(value.requires_grad for value in THETA.values())
