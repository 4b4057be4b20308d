"""The parameters of learned inner rates, and the steps and gradients that they give."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from app.learning.inner_loop import adapt
from app.learning.learned_rates import initial_rates, rates
from app.learning.learner import HEAD, Learner
from app.learning.maml import maml
from tests.unit.learning.common import (
    VECTOR,
    SgdRun,
    assert_same,
    loop_loss,
    mlp_learner,
    theta_of,
)
from tests.unit.learning.small_tasks import gradients, leaves, stacked, task_of

SHOTS, QUERIES = (2, 1, 3), (2, 3, 1)
THETA = {"network.weight": torch.zeros(4, 3), "network.bias": torch.zeros(4)}
FIRST = {"network.weight": [0.1, 0.2, 0.4], "network.bias": [0.5]}


def test_rates_by_step_are_one_number_a_step():
    parameters = initial_rates(THETA, FIRST, "step")
    assert {name: tuple(value.shape) for name, value in parameters.items()} == {
        "network.weight": (3,),
        "network.bias": (1,),
    }
    alpha = rates(parameters, "step")
    for name, expected in FIRST.items():
        assert alpha[name].tolist() == pytest.approx(expected, rel=1e-6)


def test_rates_by_parameter_are_one_number_for_each_of_theta_and_for_all_steps():
    alpha = rates(initial_rates(THETA, FIRST, "parameter"), "parameter")
    torch.testing.assert_close(alpha["network.weight"], torch.full((1, 4, 3), 0.1))
    torch.testing.assert_close(alpha["network.bias"], torch.full((1, 4), 0.5))


@pytest.mark.parametrize("form", ["step", "parameter"])
def test_without_first_values_there_is_no_alpha(form):
    parameters = initial_rates(THETA, {"network.weight": [], "network.bias": [0.5]}, form)
    assert set(parameters) == {"network.bias"}
    assert set(rates(parameters, form)) == {"network.bias"}
    assert initial_rates(THETA, dict.fromkeys(THETA, ()), form) == {}


def test_rates_by_step_are_positive_wherever_their_parameters_go():
    parameters = {"a": torch.tensor([-40.0, -1.0, 0.0, 3.0])}
    alpha = rates(parameters, "step")["a"]
    assert bool((alpha > 0).all())
    assert alpha.tolist() == pytest.approx([4.2484e-18, 0.36788, 1, 20.0855], rel=1e-4)


def test_rates_by_parameter_may_change_their_sign():
    assert rates({"a": torch.tensor([-0.5, 0.0])}, "parameter")["a"].tolist() == [-0.5, 0.0]


def alpha_of_each_number(theta: dict[str, Tensor], seed: int = 4) -> dict[str, Tensor]:
    """Of either sign and no two the same."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.1 + 0.3 * torch.randn((1, *value.shape), generator=generator, dtype=torch.float64)
        for name, value in theta.items()
    }


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_step_by_parameter_is_alpha_times_the_gradient_number_by_number(head):
    learner = mlp_learner(head)
    theta, task = theta_of(learner), task_of(VECTOR, SHOTS, QUERIES)
    alpha = alpha_of_each_number(theta)
    run = SgdRun(learner, theta, 3)
    before = {name: value.detach().clone() for name, value in run.parameters.items()}
    run.train(task.support, 1, lambda name, step: 0.0)
    phi, *_ = adapt(learner, theta, task.support, task.classes, alpha, 1)
    factor = 3 if head == "shared-row" else 1
    expected = {
        name: before[name]
        - (factor if name.startswith(HEAD) else 1) * alpha[name][0] * run.first_gradient[name]
        for name in theta
    }
    assert_same(phi, expected, to=1e-12)


def test_every_step_takes_the_same_alpha_by_parameter():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_of(VECTOR, SHOTS, QUERIES)
    alpha = alpha_of_each_number(theta)
    expected = theta
    for _ in range(3):
        run = SgdRun(learner, expected, 3)
        run.train(task.support, 1, lambda name, step: 0.0)
        expected = {
            name: value - alpha[name][0] * run.first_gradient[name]
            for name, value in expected.items()
        }
    phi, *_ = adapt(learner, theta, task.support, task.classes, alpha, 3)
    assert_same(phi, expected, to=1e-12)


def test_equal_alphas_by_parameter_are_one_alpha():
    learner = mlp_learner()
    theta, task = theta_of(learner), task_of(VECTOR, SHOTS, QUERIES)
    parameters = initial_rates(theta, dict.fromkeys(theta, (0.25,)), "parameter")
    alpha = rates(parameters, "parameter")
    phi, losses, _ = adapt(learner, theta, task.support, task.classes, alpha, 3)
    expected, other, _ = adapt(learner, theta, task.support, task.classes, 0.25, 3)
    assert_same(phi, expected, to=1e-14)
    torch.testing.assert_close(losses, other, rtol=0, atol=1e-14)


def query_and_support_gradients(
    learner: Learner, theta: dict[str, Tensor], alpha: dict[str, Tensor], task
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """∇L_query at φ after one step, and ∇L_support at θ, by an ordinary network."""
    run = SgdRun(learner, theta, 3)
    run.train(task.support, 1, lambda name, step: 0.0)
    with torch.no_grad():
        for name, parameter in run.parameters.items():
            parameter -= alpha[name][0] * run.first_gradient[name]
    run.model.zero_grad()
    loop_loss(run.model(task.query.inputs), task.query.labels).backward()
    return {name: p.grad for name, p in run.parameters.items()}, run.first_gradient


def test_gradient_of_alpha_by_parameter_is_the_product_of_both_gradients():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_of(VECTOR, SHOTS, QUERIES)
    alpha = leaves(alpha_of_each_number(theta))
    found = gradients(maml(learner, theta, alpha, task, 1).loss, alpha)
    of_query, of_support = query_and_support_gradients(learner, theta, alpha, task)
    expected = {name: -(of_query[name] * of_support[name])[None] for name in theta}
    assert_same(found, expected, to=1e-12)
    assert all(value.abs().max() > 1e-5 for value in expected.values())


def test_gradient_of_the_logarithm_of_alpha_by_step_is_alpha_times_the_inner_product():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_of(VECTOR, SHOTS, QUERIES)
    first = {name: [0.1 + 0.05 * index] for index, name in enumerate(theta)}
    parameters = leaves(
        {name: value.double() for name, value in initial_rates(theta, first, "step").items()}
    )
    alpha = rates(parameters, "step")
    found = gradients(maml(learner, theta, alpha, task, 1).loss, parameters)
    fixed = {name: value.detach() for name, value in alpha.items()}
    of_query, of_support = query_and_support_gradients(learner, theta, fixed, task)
    expected = {
        name: -fixed[name] * (of_query[name] * of_support[name]).sum() for name in parameters
    }
    assert_same(found, expected, to=1e-12)


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_a_batch_of_tasks_with_alpha_by_parameter_is_a_loop_over_them(head):
    learner = mlp_learner(head)
    theta = leaves(theta_of(learner))
    alpha = leaves(alpha_of_each_number(theta))
    wanted = theta | {f"α of {name}": value for name, value in alpha.items()}
    tasks = [task_of(VECTOR, SHOTS, QUERIES, seed) for seed in range(3)]
    batch = vmap(lambda task: maml(learner, theta, alpha, task, 2).loss)(stacked(tasks))
    loop = torch.stack([maml(learner, theta, alpha, task, 2).loss for task in tasks])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-12)
    assert_same(gradients(batch.sum(), wanted), gradients(loop.sum(), wanted), to=1e-10)
