"""Nearest class mean against distances in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

from app.learning.heads import build_head
from app.learning.learner import HEAD, Learner
from app.learning.nearest_class_mean import nearest_class_mean
from app.learning.tasks import Examples, Task
from tests.unit.learning.common import (
    PICTURE,
    VECTOR,
    conv_learner,
    examples_of,
    existing,
    mlp_learner,
    theta_of,
)
from tests.unit.learning.small_tasks import stacked, task_of

KINDS = {"mlp": (mlp_learner, VECTOR), "conv": (conv_learner, PICTURE)}


def by_hand(learner: Learner, theta: dict[str, torch.Tensor], task: Task) -> torch.Tensor:
    support = learner.features(theta, task.support.inputs).numpy()
    query = learner.features(theta, task.query.inputs).numpy()
    labels = task.support.labels.numpy()
    means = [support[labels == label].mean(0) for label in range(len(task.classes))]
    distances = [[((row - mean) ** 2).sum() for mean in means] for row in query]
    return -torch.from_numpy(np.array(distances))


@pytest.mark.parametrize("shots", [(1, 1), (3, 1, 2), (1,) * 30, (20, 30)])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_negative_squared_distances_to_the_class_means(kind, shots):
    learner_of, shape = KINDS[kind]
    learner = learner_of()
    theta, task = theta_of(learner), task_of(shape, shots, (2,) * len(shots))
    got = nearest_class_mean(learner, theta, task)
    assert got.shape == (2 * len(shots), len(shots))
    torch.testing.assert_close(got, by_hand(learner, theta, task), rtol=0, atol=1e-10)


def test_answer_is_the_class_whose_mean_is_nearest():
    learner = Learner(nn.Flatten(), build_head("shared-row"), 2)
    theta = {HEAD + "weight": torch.ones(1, 2), HEAD + "bias": torch.zeros(1)}
    inputs = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 1.0]])
    support = Examples(inputs, torch.tensor([1, 1, 0]), torch.ones(3) > 0)
    query = torch.tensor([[4.0, 1.0], [6.0, 1.0], [0.0, 9.0]])
    task = Task(support, Examples(query, torch.tensor([1, 0, 1]), torch.ones(3) > 0), existing(2))
    got = nearest_class_mean(learner, theta, task)
    expected = torch.tensor([[-36.0, -16.0], [-16.0, -36.0], [-164.0, -64.0]])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    assert got.argmax(1).tolist() == [1, 0, 1]


@pytest.mark.parametrize("garbage", [0.0, 1.0, 1e6])
def test_padding_of_the_support_set_has_no_influence(garbage):
    learner = conv_learner()
    theta, task = theta_of(learner), task_of(PICTURE, (3, 1, 2), (2, 2, 2))
    more = examples_of(PICTURE, (2, 2, 1), seed=5)
    support = Examples(
        torch.cat((garbage * more.inputs, task.support.inputs)),
        torch.cat((more.labels, task.support.labels)),
        torch.cat((torch.zeros(5) > 0, task.support.mask)),
    )
    padded = Task(support, task.query, torch.tensor([True, True, True, False, False]))
    got = nearest_class_mean(learner, theta, padded)
    assert got.shape == (6, 5)
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got[:, :3], by_hand(learner, theta, task), rtol=0, atol=1e-10)


def test_padded_classes_are_never_the_answer_of_the_score():
    learner = Learner(nn.Flatten(), build_head("shared-row"), 2)
    theta = {HEAD + "weight": torch.ones(1, 2), HEAD + "bias": torch.zeros(1)}
    inputs, labels = torch.tensor([[9.0, 9.0], [9.0, -9.0]]), torch.tensor([0, 1])
    support = Examples(inputs, labels, torch.ones(2) > 0)
    # Nearer to zero, which stands where the mean of a class without examples would, than to any.
    query = Examples(inputs / 9, labels, torch.ones(2) > 0)
    task = Task(support, query, torch.tensor([True, True, False]))
    logits = nearest_class_mean(learner, theta, task)
    assert float(learner.head.score(logits, query, task.classes)) == 1.0


def test_head_has_no_influence():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_of(VECTOR, (2, 1, 3), (1, 1, 1))
    other = {name: value + 5 if name.startswith(HEAD) else value for name, value in theta.items()}
    assert torch.equal(
        nearest_class_mean(learner, theta, task), nearest_class_mean(learner, other, task)
    )


def test_permuting_the_labels_permutes_the_logits():
    learner = mlp_learner()
    theta, task = theta_of(learner), task_of(VECTOR, (2, 1, 3), (1, 1, 1))
    order = torch.tensor([2, 0, 1])
    renamed = task._replace(support=task.support._replace(labels=order[task.support.labels]))
    got = nearest_class_mean(learner, theta, renamed)[:, order]
    expected = nearest_class_mean(learner, theta, task)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shots", [(2, 1, 3), (1,) * 30])
def test_a_batch_of_tasks_is_a_loop_over_them(shots):
    learner = conv_learner()
    theta = theta_of(learner)
    tasks = [task_of(PICTURE, shots, (1,) * len(shots), seed) for seed in range(3)]
    batch = vmap(lambda task: nearest_class_mean(learner, theta, task))(stacked(tasks))
    for got, task in zip(batch, tasks, strict=True):
        torch.testing.assert_close(got, by_hand(learner, theta, task), rtol=0, atol=1e-10)
