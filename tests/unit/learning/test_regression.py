"""Regression: its head and loss, and MAML on a linear model against the closed form."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import vmap

from app.learning.first_order_maml import first_order_maml
from app.learning.heads import LinearHead, build_head
from app.learning.inner_loop import adapt
from app.learning.learner import HEAD, Learner
from app.learning.losses import mean_squared_error
from app.learning.maml import maml
from app.learning.tasks import Examples, Task
from tests.unit.learning.common import VECTOR, SgdRun, assert_same, existing, theta_of
from tests.unit.learning.small_tasks import (
    gradients,
    leaves,
    random_alpha,
    regression_examples,
    regression_learner,
    regression_task,
    stacked,
)


def test_linear_head_has_a_row_an_output_and_each_moves_on_its_own():
    head = LinearHead(3)
    theta = head.initial(6, torch.Generator().manual_seed(0))
    shapes = {name: tuple(value.shape) for name, value in theta.items()}
    assert shapes == {"head.weight": (3, 6), "head.bias": (3,)}
    assert len(theta["head.weight"].unique()) == 18
    assert_same(head.start(theta, 3), theta, to=0)
    assert head.starts_equal is False
    assert head.rows(8) == 3
    assert head.rate_factor(existing(3)) == 1.0


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_linear_head_takes_no_task_of_another_number_of_outputs(outputs):
    head = LinearHead(3)
    theta = head.initial(6, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f"this θ has 3 outputs, the task has {outputs}"):
        head.start(theta, outputs)


@pytest.mark.parametrize(("name", "outputs"), [("linear-1", 1), ("linear-12", 12)])
def test_linear_heads_are_built_by_name(name, outputs):
    head = build_head(name)
    assert isinstance(head, LinearHead)
    assert head.outputs == outputs


@pytest.mark.parametrize("name", ["linear", "linear-", "linear-0", "linear-x", "linear--1"])
def test_other_names_are_refused_with_the_choices(name):
    with pytest.raises(ValueError, match=f'no head {name!r}: .*"linear-1" for regression'):
        build_head(name)


@pytest.mark.parametrize("outputs", [1, 3])
def test_loss_and_score_are_the_mean_squared_error(outputs):
    examples = regression_examples(7, outputs)
    given = regression_examples(7, outputs, seed=1).labels
    expected = np.square(given.numpy() - examples.labels.numpy()).mean()
    head = LinearHead(outputs)
    for value in (
        mean_squared_error(given, examples),
        head.loss(given, examples, existing(outputs)),
        head.score(given, examples, existing(outputs)),
    ):
        assert float(value) == pytest.approx(expected, abs=1e-12)


def test_of_several_outputs_for_the_same_examples_there_are_as_many_errors():
    examples = regression_examples(5, 2)
    outputs = torch.stack([regression_examples(5, 2, seed=seed).labels for seed in (1, 2, 3)])
    each = [mean_squared_error(one, examples) for one in outputs]
    torch.testing.assert_close(mean_squared_error(outputs, examples), torch.stack(each))


@pytest.mark.parametrize("garbage", [0.0, 1e300, float("inf"), float("nan")])
def test_padding_does_not_reach_the_mean_squared_error(garbage):
    examples = regression_examples(6, 2)
    given = regression_examples(6, 2, seed=1).labels
    mask = torch.tensor([True, False, True, True, False, True])
    padded = examples._replace(mask=mask)
    given[~mask] = garbage
    expected = (given - examples.labels)[mask].square().mean()
    got = mean_squared_error(given, padded)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_mean_squared_error_of_padding_alone_is_zero():
    examples = regression_examples(3, 2)._replace(mask=torch.zeros(3) > 0)
    assert float(mean_squared_error(torch.ones(3, 2, dtype=torch.float64), examples)) == 0.0


def test_mean_squared_error_has_the_right_derivatives_and_none_for_padding():
    examples = regression_examples(5, 2)
    mask = torch.tensor([True, True, False, True, False])
    examples = examples._replace(mask=mask)

    def loss(outputs: torch.Tensor) -> torch.Tensor:
        return mean_squared_error(outputs, examples)

    outputs = regression_examples(5, 2, seed=1).labels.requires_grad_()
    assert torch.autograd.gradcheck(loss, outputs)
    assert torch.autograd.gradgradcheck(loss, outputs)
    (gradient,) = torch.autograd.grad(loss(outputs), outputs)
    expected = (outputs - examples.labels)[mask] * 2 / 6
    torch.testing.assert_close(gradient[mask], expected.detach(), rtol=0, atol=1e-12)
    assert bool((gradient[~mask] == 0).all())


@pytest.mark.parametrize("outputs", [1, 2])
def test_inner_loop_is_plain_sgd_of_the_mean_squared_error(outputs):
    learner = regression_learner(outputs)
    theta, support = theta_of(learner), regression_examples(8, outputs)
    run, losses = SgdRun(learner, theta, outputs), []
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.MSELoss()(run.model(support.inputs), support.labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    phi, told, _ = adapt(learner, theta, support, existing(outputs), 0.1, 5)
    assert_same(phi, run.parameters, to=1e-12)
    assert told[:-1].tolist() == pytest.approx(losses, abs=1e-12)
    assert told[-1] < told[0]


def test_a_batch_of_padded_tasks_is_a_loop_over_the_tasks_as_they_are():
    learner = regression_learner(2)
    theta = leaves(theta_of(learner))

    def cut(examples: Examples, size: int) -> Examples:
        return Examples(*(tensor[:size] for tensor in examples))

    tasks = [regression_task(2, seed) for seed in range(3)]
    sizes = [(8, 6), (3, 1), (5, 4)]
    whole = [
        Task(cut(task.support, first), cut(task.query, second), task.classes)
        for task, (first, second) in zip(tasks, sizes, strict=True)
    ]
    padded = [
        Task(
            task.support._replace(mask=torch.arange(8) < first),
            task.query._replace(mask=torch.arange(6) < second),
            task.classes,
        )
        for task, (first, second) in zip(tasks, sizes, strict=True)
    ]
    batch = vmap(lambda task: maml(learner, theta, 0.1, task, 3).loss)(stacked(padded))
    loop = torch.stack([maml(learner, theta, 0.1, task, 3).loss for task in whole])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-12)
    assert_same(gradients(batch.sum(), theta), gradients(loop.sum(), theta), to=1e-10)


class ClosedForm:
    """A linear model w ∈ R^(K x (D + 1)), its last column the biases: every loss is a quadratic.

    L(w) = |X wᵀ - Y|² / (M K), with ∇L(w) = w H - B, H = 2 Xᵀ X / (M K), B = 2 Yᵀ X / (M K).
    """

    def __init__(self, examples: Examples):
        inputs, self.targets = examples.inputs.numpy(), examples.labels.numpy()
        self.inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
        scale = 2 / self.targets.size
        self.hessian = scale * self.inputs.T @ self.inputs
        self.offset = scale * self.targets.T @ self.inputs

    def loss(self, weights: np.ndarray) -> float:
        return float(np.square(self.inputs @ weights.T - self.targets).mean())

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        return weights @ self.hessian - self.offset


def linear_learner(outputs: int) -> Learner:
    return Learner(nn.Identity(), build_head(f"linear-{outputs}"), *VECTOR)


def as_matrix(parameters: dict[str, torch.Tensor]) -> np.ndarray:
    weight, bias = parameters[HEAD + "weight"], parameters[HEAD + "bias"]
    return torch.cat((weight, bias[:, None]), 1).detach().numpy()


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("outputs", [1, 3])
def test_meta_gradient_of_linear_regression_is_the_closed_form(outputs, steps):
    learner = linear_learner(outputs)
    theta, task = leaves(theta_of(learner)), regression_task(outputs)
    support, query = ClosedForm(task.support), ClosedForm(task.query)
    weights, contraction = as_matrix(theta), np.eye(6) - 0.2 * support.hessian
    for _ in range(steps):
        weights = weights - 0.2 * support.gradient(weights)
    expected = query.gradient(weights) @ np.linalg.matrix_power(contraction, steps)

    outcome = maml(learner, theta, 0.2, task, steps)
    assert outcome.loss.item() == pytest.approx(query.loss(weights), abs=1e-12)
    found = as_matrix(gradients(outcome.loss, theta))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert np.abs(found - query.gradient(weights)).max() > 1e-2


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("outputs", [1, 3])
def test_first_order_gradient_of_linear_regression_is_the_query_gradient_at_phi(outputs, steps):
    learner = linear_learner(outputs)
    theta, task = leaves(theta_of(learner)), regression_task(outputs)
    support, query = ClosedForm(task.support), ClosedForm(task.query)
    weights = as_matrix(theta)
    for _ in range(steps):
        weights = weights - 0.2 * support.gradient(weights)
    found = gradients(first_order_maml(learner, theta, 0.2, task, steps).loss, theta)
    np.testing.assert_allclose(as_matrix(found), query.gradient(weights), rtol=0, atol=1e-12)


def test_with_an_alpha_of_each_step_the_contractions_are_multiplied_last_step_first():
    learner = linear_learner(2)
    theta, task = leaves(theta_of(learner)), regression_task(2)
    alpha = random_alpha(theta, 3)
    support, query = ClosedForm(task.support), ClosedForm(task.query)
    weights, jacobian = as_matrix(theta), np.eye(6)
    for step in range(3):
        # A row's step size is one for the weights and another for the bias.
        of_step = [float(alpha[HEAD + "weight"][step])] * 5 + [float(alpha[HEAD + "bias"][step])]
        weights = weights - support.gradient(weights) * np.array(of_step)
        jacobian = (np.eye(6) - np.diag(of_step) @ support.hessian) @ jacobian
    found = gradients(maml(learner, theta, alpha, task, 3).loss, theta)
    expected = query.gradient(weights) @ jacobian
    np.testing.assert_allclose(as_matrix(found), expected, rtol=0, atol=1e-12)
