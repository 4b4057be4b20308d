"""Pre-training against cross-entropy and its gradient in NumPy, and an ordinary network."""

from math import log

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

from app.learning.learner import HEAD, NETWORK
from app.learning.pretraining import pretrain_on_classes, pretrain_on_tasks
from tests.unit.learning.common import (
    PICTURE,
    VECTOR,
    SgdRun,
    assert_same,
    conv_learner,
    examples_of,
    loop_loss,
    mlp_learner,
    theta_of,
)
from tests.unit.learning.small_tasks import (
    gradients,
    leaves,
    regression_learner,
    regression_task,
    stacked,
    task_of,
)

SHOTS = (3, 1, 5, 2)
"""Uneven: in pre-training every picture weighs the same, not every class."""


def classifier_of(classes: int, features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(classes, features, generator=generator, dtype=torch.float64)


def test_on_classes_it_is_the_cross_entropy_and_accuracy_of_the_pictures_by_hand():
    learner, examples = conv_learner(), examples_of(PICTURE, SHOTS)
    theta = theta_of(learner)
    classifier = classifier_of(4, learner.feature_size).requires_grad_()
    outcome = pretrain_on_classes(learner, theta, classifier, examples)

    features = learner.features(theta, examples.inputs).numpy()
    logits, labels = features @ classifier.detach().numpy().T, examples.labels.numpy()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    losses = -np.log(shares[np.arange(11), labels])
    assert outcome.loss.item() == pytest.approx(losses.mean(), abs=1e-12)
    assert float(outcome.score) == pytest.approx((logits.argmax(1) == labels).mean(), abs=1e-12)
    (gradient,) = torch.autograd.grad(outcome.loss, classifier)
    expected = (shares - np.eye(4)[labels]).T @ features / 11
    torch.testing.assert_close(gradient, torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_on_classes_the_network_learns_as_one_network_under_a_linear_layer():
    learner, examples = conv_learner(), examples_of(PICTURE, SHOTS)
    theta = leaves(theta_of(learner))
    classifier = classifier_of(4, learner.feature_size)
    run = SgdRun(learner, theta, 4)
    layer = nn.Linear(learner.feature_size, 4, bias=False).double()
    layer.load_state_dict({"weight": classifier})
    logits = layer(run.model[0](examples.inputs))
    nn.CrossEntropyLoss()(logits, examples.labels).backward()
    found = gradients(pretrain_on_classes(learner, theta, classifier, examples).loss, theta)
    assert_same(
        {name: value for name, value in found.items() if name.startswith(NETWORK)},
        {name: p.grad for name, p in run.parameters.items() if name.startswith(NETWORK)},
        to=1e-12,
    )
    assert all(bool((found[name] == 0).all()) for name in found if name.startswith(HEAD))


@pytest.mark.parametrize("classes", [2, 64])
def test_a_classifier_of_zeros_costs_log_of_the_number_of_classes(classes):
    learner, examples = mlp_learner(), examples_of(VECTOR, (3, 2))
    classifier = torch.zeros(classes, learner.feature_size, dtype=torch.float64)
    outcome = pretrain_on_classes(learner, theta_of(learner), classifier, examples)
    assert float(outcome.loss) == pytest.approx(log(classes), abs=1e-12)


def test_score_has_no_gradient():
    learner, examples = mlp_learner(), examples_of(VECTOR, SHOTS)
    classifier = classifier_of(4, learner.feature_size).requires_grad_()
    outcome = pretrain_on_classes(learner, theta_of(learner), classifier, examples)
    assert outcome.loss.requires_grad
    assert not outcome.score.requires_grad


def test_on_tasks_it_is_the_query_loss_at_theta():
    learner = mlp_learner("fixed-3")
    theta, task = leaves(theta_of(learner)), task_of(VECTOR, (2, 1, 3), (2, 3, 1))
    run = SgdRun(learner, theta, 3)
    loss = loop_loss(run.model(task.query.inputs), task.query.labels)
    loss.backward()
    outcome = pretrain_on_tasks(learner, theta, 0.1, task, 5)
    torch.testing.assert_close(outcome.loss, loss, rtol=0, atol=1e-12)
    expected = {name: p.grad for name, p in run.parameters.items()}
    assert_same(gradients(outcome.loss, theta), expected, to=1e-12)


def test_on_tasks_of_regression_it_is_the_mean_squared_error_at_theta():
    learner = regression_learner(2)
    theta, task = theta_of(learner), regression_task(2)
    run = SgdRun(learner, theta, 2)
    expected = nn.MSELoss()(run.model(task.query.inputs), task.query.labels).detach()
    outcome = pretrain_on_tasks(learner, theta, 0.1, task, 5)
    torch.testing.assert_close(outcome.loss, expected, rtol=0, atol=1e-12)
    assert outcome.score == outcome.loss


def test_on_tasks_support_set_steps_and_alpha_have_no_influence():
    learner = regression_learner(1)
    theta, task = theta_of(learner), regression_task(1)
    other = task._replace(support=regression_task(1, seed=5).support)
    first = pretrain_on_tasks(learner, theta, 0.1, task, 1)
    assert pretrain_on_tasks(learner, theta, 9.0, other, 7) == first


def test_on_a_batch_of_tasks_it_is_a_loop_over_them():
    learner = regression_learner(1)
    theta = leaves(theta_of(learner))
    tasks = [regression_task(1, seed) for seed in range(3)]
    batch = vmap(lambda task: pretrain_on_tasks(learner, theta, 0.1, task, 1).loss)(stacked(tasks))
    loop = torch.stack([pretrain_on_tasks(learner, theta, 0.1, task, 1).loss for task in tasks])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-12)
    assert_same(gradients(batch.sum(), theta), gradients(loop.sum(), theta), to=1e-12)
