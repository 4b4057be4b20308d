"""ANIL: inner steps of the head alone, an outer gradient for everything."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from app.learning.anil import anil
from app.learning.learner import HEAD, NETWORK, Learner
from app.learning.maml import maml
from tests.unit.learning.common import (
    PICTURE,
    VECTOR,
    assert_same,
    conv_learner,
    loop_loss,
    mlp_learner,
    theta_of,
)
from tests.unit.learning.small_tasks import gradients, leaves, random_alpha, stacked, task_of

SHOTS, QUERIES = (2, 1, 3), (2, 3, 1)


class Watched(Learner):
    """Writes down every φ that it computes features by."""

    def features(self, phi, inputs):
        self.seen.append(dict(phi))
        return super().features(phi, inputs)


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
@pytest.mark.parametrize("steps", [1, 4])
def test_network_of_phi_is_thetas_at_every_step(head, steps):
    plain = mlp_learner(head)
    learner = Watched(plain.network, plain.head, plain.feature_size)
    learner.seen = []
    theta = theta_of(plain)
    task = task_of(VECTOR, SHOTS, QUERIES)
    anil(learner, theta, random_alpha(theta, 2), task, steps)
    assert len(learner.seen) == 2, "the support set once for all steps, and the query set"
    body = {name: value for name, value in theta.items() if name.startswith(NETWORK)}
    for phi in learner.seen:
        assert_same({name: phi[name] for name in body}, body, to=0)
    assert (learner.seen[-1][HEAD + "weight"] - theta[HEAD + "weight"]).abs().max() > 1e-2


def by_a_head_on_fixed_features(
    learner: Learner, theta: dict[str, Tensor], alpha: dict[str, Tensor], task, steps: int
) -> Tensor:
    """The query loss of a linear layer fitted to θ's features by gradient steps."""
    support = learner.features(theta, task.support.inputs)
    query = learner.features(theta, task.query.inputs)
    weight, bias = theta[HEAD + "weight"], theta[HEAD + "bias"]
    for step in range(steps):
        loss = loop_loss(support @ weight.T + bias, task.support.labels)
        by_weight, by_bias = torch.autograd.grad(loss, (weight, bias), create_graph=True)
        weight = weight - alpha[HEAD + "weight"][min(step, 1)] * by_weight
        bias = bias - alpha[HEAD + "bias"][min(step, 1)] * by_bias
    return loop_loss(query @ weight.T + bias, task.query.labels)


@pytest.mark.parametrize("steps", [1, 3])
def test_loss_and_gradients_are_those_of_a_head_fitted_to_fixed_features(steps):
    learner = mlp_learner("fixed-3")
    theta = leaves(theta_of(learner))
    alpha = leaves(random_alpha(theta, 2))
    task = task_of(VECTOR, SHOTS, QUERIES)
    loss = anil(learner, theta, alpha, task, steps).loss
    expected = by_a_head_on_fixed_features(learner, theta, alpha, task, steps)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    wanted = theta | {f"α of {name}": rate for name, rate in alpha.items()}
    assert_same(gradients(loss, wanted), gradients(expected, wanted), to=1e-12)


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_outer_gradient_of_the_network_is_that_of_central_differences_and_not_zero(head):
    learner, h = mlp_learner(head), 1e-6
    theta = leaves(theta_of(learner))
    alpha, task = random_alpha(theta, 3), task_of(VECTOR, SHOTS, QUERIES)
    found = gradients(anil(learner, theta, alpha, task, 3).loss, theta)
    body = {name: value.detach() for name, value in theta.items() if name.startswith(NETWORK)}
    for name, centre in body.items():
        shifts = h * torch.eye(centre.numel(), dtype=torch.float64).view(-1, *centre.shape)

        def loss_at(value: Tensor, name: str = name) -> Tensor:
            return anil(learner, {**theta, name: value}, alpha, task, 3).loss

        with torch.no_grad():
            above, below = vmap(loss_at)(centre + shifts), vmap(loss_at)(centre - shifts)
        slopes = ((above - below) / (2 * h)).view(centre.shape)
        torch.testing.assert_close(found[name], slopes, rtol=1e-5, atol=1e-8)
        assert found[name].abs().max() > 1e-3, name


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_it_is_maml_with_no_alpha_for_the_network(head):
    learner = conv_learner(head)
    theta = leaves(theta_of(learner))
    alpha, task = random_alpha(theta, 2), task_of(PICTURE, SHOTS, QUERIES)
    of_head = {name: alpha[name] for name in (HEAD + "weight", HEAD + "bias")}
    outcome, expected = anil(learner, theta, alpha, task, 3), maml(learner, theta, of_head, task, 3)
    assert outcome == expected
    assert_same(gradients(outcome.loss, theta), gradients(expected.loss, theta), to=1e-14)
    of_all = maml(learner, theta, alpha, task, 3)
    assert (of_all.loss - outcome.loss).abs() > 1e-3


def test_alpha_of_the_network_has_no_gradient():
    learner = mlp_learner()
    theta = theta_of(learner)
    alpha = leaves(random_alpha(theta, 2))
    found = gradients(anil(learner, theta, alpha, task_of(VECTOR, SHOTS, QUERIES), 2).loss, alpha)
    assert found[HEAD + "weight"].abs().min() > 1e-4
    assert all(bool((found[name] == 0).all()) for name in theta if name.startswith(NETWORK))


def test_one_alpha_for_all_parameters_is_refused():
    learner = mlp_learner()
    with pytest.raises(ValueError, match="ANIL needs α by parameter"):
        anil(learner, theta_of(learner), 0.1, task_of(VECTOR, SHOTS, QUERIES), 1)


def test_a_batch_of_tasks_is_a_loop_over_them():
    learner = conv_learner()
    theta = leaves(theta_of(learner))
    alpha = random_alpha(theta, 2)
    tasks = [task_of(PICTURE, SHOTS, QUERIES, seed) for seed in range(3)]
    batch = vmap(lambda task: anil(learner, theta, alpha, task, 2).loss)(stacked(tasks))
    loop = torch.stack([anil(learner, theta, alpha, task, 2).loss for task in tasks])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-12)
    assert_same(gradients(batch.sum(), theta), gradients(loop.sum(), theta), to=1e-10)
