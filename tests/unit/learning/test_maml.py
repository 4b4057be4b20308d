from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from app.learning.first_order_maml import first_order_maml
from app.learning.inner_loop import descend
from app.learning.losses import query_accuracy
from app.learning.maml import maml
from app.learning.tasks import Examples, Task
from tests.unit.learning.common import (
    PICTURE,
    assert_same,
    conv_learner,
    examples_of,
    existing,
    loop_loss,
    theta_of,
)

X = "network.x"


class Quadratic:
    """A learner whose support loss is ½ (φ - c)ᵀ A (φ - c), with A and c as the two "inputs".

    Its features are φ itself, and it has no head.
    """

    def start(self, theta, ways):
        return dict(theta)

    def features(self, phi, inputs):
        return phi[X]

    def inner_loss(self, head, features, *, examples, classes):
        matrix, centre = examples.inputs[:-1], examples.inputs[-1]
        off = features - centre
        loss = 0.5 * off @ matrix @ off
        return loss, loss

    def trainable(self, step, names):
        return names


@pytest.fixture
def quadratic() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    theta, centre, goal = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return {"A": root @ root.T / 4 + torch.eye(4), "theta": theta, "c": centre, "goal": goal}


def descend_quadratic(quadratic, theta, alpha, steps, first_order=False) -> list[Tensor]:
    inputs = torch.cat((quadratic["A"], quadratic["c"][None]))
    unused = Examples(inputs, torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.bool))
    rates = {X: alpha} if isinstance(alpha, Tensor) else alpha
    phis, _ = descend(
        Quadratic(), {X: theta}, unused, existing(2), rates, steps, first_order=first_order
    )
    return [phi[X] for phi in phis]


@pytest.mark.parametrize("first_order", [False, True])
def test_every_phi_of_a_quadratic_is_the_closed_form(quadratic, first_order):
    contraction = torch.eye(4) - 0.1 * quadratic["A"]
    phis = descend_quadratic(quadratic, quadratic["theta"], 0.1, 6, first_order)
    off = quadratic["theta"] - quadratic["c"]
    for step, phi in enumerate(phis):
        expected = quadratic["c"] + torch.linalg.matrix_power(contraction, step) @ off
        torch.testing.assert_close(phi, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_meta_gradient_of_a_quadratic_is_the_closed_form(quadratic, steps):
    A, centre, goal = quadratic["A"], quadratic["c"], quadratic["goal"]  # noqa: N806
    contraction = torch.eye(4) - 0.1 * A
    power = torch.linalg.matrix_power(contraction, steps)
    power_before = torch.linalg.matrix_power(contraction, steps - 1)
    theta = quadratic["theta"].clone().requires_grad_()
    alpha = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    phi = descend_quadratic(quadratic, theta, alpha, steps)[-1]
    (0.5 * (phi - goal) @ (phi - goal)).backward()

    off = theta.detach() - centre
    residual = centre + power @ off - goal
    torch.testing.assert_close(theta.grad, power.T @ residual, rtol=0, atol=1e-12)
    by_alpha = -steps * residual @ A @ power_before @ off
    torch.testing.assert_close(alpha.grad, by_alpha[None], rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_first_order_gradient_of_a_quadratic_takes_the_jacobian_as_identity(quadratic, steps):
    A, centre, goal = quadratic["A"], quadratic["c"], quadratic["goal"]  # noqa: N806
    theta = quadratic["theta"].clone().requires_grad_()
    alpha = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    phi = descend_quadratic(quadratic, theta, alpha, steps, first_order=True)[-1]
    (0.5 * (phi - goal) @ (phi - goal)).backward()

    contraction = torch.eye(4) - 0.1 * A
    off = theta.detach() - centre
    powers = [torch.linalg.matrix_power(contraction, step) for step in range(steps + 1)]
    residual = centre + powers[-1] @ off - goal
    torch.testing.assert_close(theta.grad, residual, rtol=0, atol=1e-12)
    by_alpha = -sum(residual @ A @ power @ off for power in powers[:-1])
    torch.testing.assert_close(alpha.grad, by_alpha[None], rtol=0, atol=1e-12)


def conv_task() -> Task:
    return Task(
        examples_of(PICTURE, (1, 3, 2), seed=1), examples_of(PICTURE, (2, 1, 3), 2), existing(3)
    )


def alpha_of(theta: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {
        name: 0.1 + 0.3 * torch.rand(steps, generator=generator, dtype=torch.float64)
        for name in theta
    }


def leaves(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}


@pytest.mark.parametrize("head", ["shared-row", "fixed-3"])
def test_meta_gradient_of_theta_and_alpha_is_that_of_central_differences(head):
    learner, task, h = conv_learner(head), conv_task(), 1e-6
    theta = leaves(theta_of(learner))
    alpha = leaves(alpha_of(theta, 2))
    maml(learner, theta, alpha, task, 2).loss.backward()

    def slopes(loss_of: Callable[[Tensor], Tensor], centre: Tensor) -> Tensor:
        """Of a loss by each entry: every shifted parameter is a task of one batch."""
        shifts = h * torch.eye(centre.numel(), dtype=torch.float64).view(-1, *centre.shape)
        above, below = (vmap(loss_of)(centre + sign * shifts) for sign in (1, -1))
        return ((above - below) / (2 * h)).view(centre.shape)

    with torch.no_grad():
        for name in theta:
            by_theta = slopes(
                lambda value, name=name: maml(learner, {**theta, name: value}, alpha, task, 2).loss,
                theta[name],
            )
            by_alpha = slopes(
                lambda value, name=name: maml(learner, theta, {**alpha, name: value}, task, 2).loss,
                alpha[name],
            )
            for got, slope in ((theta[name].grad, by_theta), (alpha[name].grad, by_alpha)):
                torch.testing.assert_close(got, slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("head", ["shared-row", "fixed-3"])
def test_first_order_gradient_is_the_query_gradient_at_phi_mapped_back(head):
    learner, task = conv_learner(head), conv_task()
    theta = leaves(theta_of(learner))
    alpha = alpha_of(theta, 3)
    outcome = first_order_maml(learner, theta, alpha, task, 3)
    outcome.loss.backward()

    phis, _ = descend(learner, theta, task.support, task.classes, alpha, 3)
    phi = leaves(phis[-1])
    loss = loop_loss(learner.logits(phi, task.query.inputs), task.query.labels)
    loss.backward()
    at_phi = {name: value.grad for name, value in phi.items()}
    if head == "shared-row":  # every row starts as the one row, so its gradient is their sum
        at_phi["head.weight"] = at_phi["head.weight"].sum(0, keepdim=True)
        at_phi["head.bias"] = at_phi["head.bias"].sum(0, keepdim=True)
    torch.testing.assert_close(outcome.loss, loss, rtol=0, atol=1e-12)
    assert_same({name: value.grad for name, value in theta.items()}, at_phi, to=1e-12)


def test_both_forms_agree_on_the_outcome_and_not_on_the_gradient():
    learner, task = conv_learner(), conv_task()
    gradients = []
    outcomes = []
    for objective in (maml, first_order_maml):
        theta = leaves(theta_of(learner))
        outcomes.append(objective(learner, theta, 0.3, task, 3))
        outcomes[-1].loss.backward()
        gradients.append(theta["network.convs.0.weight"].grad)
    torch.testing.assert_close(outcomes[0].loss, outcomes[1].loss, rtol=0, atol=1e-14)
    assert outcomes[0].score == outcomes[1].score
    assert (gradients[0] - gradients[1]).abs().max() > 1e-4


def test_accuracy_is_the_mean_over_classes_of_the_share_answered_right():
    # Class 0 has one query of four right, class 1 its only one, class 2 one of two.
    labels = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    guesses = torch.tensor([0, 1, 1, 2, 1, 2, 0])
    logits = 5 * torch.nn.functional.one_hot(guesses, 3).double()
    query = Examples(torch.zeros(7, 1, dtype=torch.float64), labels, torch.ones(7) > 0)
    accuracy = query_accuracy(logits, query, existing(3))
    assert float(accuracy) == pytest.approx((1 / 4 + 1 + 1 / 2) / 3, abs=1e-12)


def test_a_class_that_does_not_exist_is_never_the_answer():
    logits = torch.tensor([[1.0, 0.0, 9.0], [0.0, 1.0, 9.0]])
    query = Examples(torch.zeros(2, 1), torch.tensor([0, 1]), torch.ones(2) > 0)
    assert float(query_accuracy(logits, query, torch.tensor([True, True, False]))) == 1.0
