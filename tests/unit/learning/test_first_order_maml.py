"""First-order MAML: the query gradient at φ, taken for that at θ."""

import pytest
import torch
from torch import nn
from torch.func import vmap

from app.learning.first_order_maml import first_order_maml
from app.learning.learner import HEAD
from app.learning.maml import maml
from tests.unit.learning.common import (
    VECTOR,
    SgdRun,
    assert_same,
    loop_loss,
    mlp_learner,
    theta_of,
)
from tests.unit.learning.small_tasks import (
    gradients,
    leaves,
    random_alpha,
    regression_learner,
    regression_task,
    stacked,
    task_of,
)

SHOTS, QUERIES = (2, 1, 3), (2, 3, 1)


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_gradient_is_that_of_a_network_trained_by_sgd_on_the_query_set(head, steps):
    learner = mlp_learner(head)
    theta, task = leaves(theta_of(learner)), task_of(VECTOR, SHOTS, QUERIES)
    factor = 3 if head == "shared-row" else 1
    run = SgdRun(learner, theta, 3)
    run.train(
        task.support, steps, lambda name, step: 0.2 * (factor if name.startswith(HEAD) else 1)
    )
    run.model.zero_grad()
    loss = loop_loss(run.model(task.query.inputs), task.query.labels)
    loss.backward()
    expected = {
        # A row that all classes begin with gets the sum over the classes.
        name: p.grad.sum(0, keepdim=True) if factor > 1 and name.startswith(HEAD) else p.grad
        for name, p in run.parameters.items()
    }
    outcome = first_order_maml(learner, theta, 0.2, task, steps)
    torch.testing.assert_close(outcome.loss, loss, rtol=0, atol=1e-12)
    assert_same(gradients(outcome.loss, theta), expected, to=1e-12)


def test_regressions_gradient_is_that_at_phi():
    learner = regression_learner(2)
    theta, task = leaves(theta_of(learner)), regression_task(2)
    run = SgdRun(learner, theta, 2)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        nn.MSELoss()(run.model(task.support.inputs), task.support.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    nn.MSELoss()(run.model(task.query.inputs), task.query.labels).backward()
    found = gradients(first_order_maml(learner, theta, 0.1, task, 3).loss, theta)
    assert_same(found, {name: p.grad for name, p in run.parameters.items()}, to=1e-12)


def test_with_no_step_it_is_maml():
    learner = mlp_learner("fixed-3")
    theta, task = leaves(theta_of(learner)), task_of(VECTOR, SHOTS, QUERIES)
    found = gradients(first_order_maml(learner, theta, 0.2, task, 0).loss, theta)
    assert_same(found, gradients(maml(learner, theta, 0.2, task, 0).loss, theta), to=0)


def test_outcome_is_mamls_and_the_gradient_is_not():
    learner = mlp_learner("fixed-3")
    theta, task = leaves(theta_of(learner)), task_of(VECTOR, SHOTS, QUERIES)
    alpha = random_alpha(theta, 2)
    first, second = (f(learner, theta, alpha, task, 3) for f in (first_order_maml, maml))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-14)
    name = "network.layers.0.weight"
    difference = gradients(first.loss, theta)[name] - gradients(second.loss, theta)[name]
    assert difference.abs().max() > 1e-4


def test_a_batch_of_tasks_is_a_loop_over_them():
    learner = mlp_learner()
    theta = leaves(theta_of(learner))
    alpha = leaves(random_alpha(theta, 2))
    wanted = theta | {f"α of {name}": value for name, value in alpha.items()}
    tasks = [task_of(VECTOR, SHOTS, QUERIES, seed) for seed in range(3)]
    batch = vmap(lambda task: first_order_maml(learner, theta, alpha, task, 2).loss)(stacked(tasks))
    loop = torch.stack([first_order_maml(learner, theta, alpha, task, 2).loss for task in tasks])
    assert_same(gradients(batch.sum(), wanted), gradients(loop.sum(), wanted), to=1e-10)
