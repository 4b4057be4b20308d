"""The multi-step loss against the sum of the query losses by hand, and its annealed weights."""

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from app.learning.inner_loop import descend
from app.learning.maml import maml
from app.learning.multi_step_loss import multi_step_maml, step_weights
from tests.unit.learning.common import (
    PICTURE,
    VECTOR,
    assert_same,
    conv_learner,
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
UNEVEN = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_loss_is_the_weighted_sum_over_every_phi_after_the_first(head):
    learner = conv_learner(head)
    theta, task = theta_of(learner), task_of(PICTURE, SHOTS, QUERIES)
    alpha = random_alpha(theta, 3)
    phis, _ = descend(learner, theta, task.support, task.classes, alpha, 3)
    losses = [
        loop_loss(learner.logits(phi, task.query.inputs), task.query.labels) for phi in phis[1:]
    ]
    expected = 0.2 * losses[0] + 0.5 * losses[1] + 0.3 * losses[2]
    outcome = multi_step_maml(learner, theta, alpha, task, 3, UNEVEN)
    torch.testing.assert_close(outcome.loss, expected, rtol=0, atol=1e-12)
    assert len({round(float(loss), 6) for loss in losses}) == 3


def test_score_is_that_of_the_last_phi():
    learner = mlp_learner("fixed-3")
    theta, task = theta_of(learner), task_of(VECTOR, (3, 3, 3), (9, 8, 7))
    scores = [maml(learner, theta, 1.0, task, steps).score for steps in range(1, 5)]
    assert scores[-1] not in scores[:-1]
    only_first = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert multi_step_maml(learner, theta, 1.0, task, 4, only_first).score == scores[-1]


@pytest.mark.parametrize("head", ["fixed-3", "shared-row"])
def test_gradients_are_the_weighted_sum_of_mamls_with_so_many_steps(head):
    learner = mlp_learner(head)
    theta = leaves(theta_of(learner))
    alpha = leaves(random_alpha(theta, 3))
    wanted = theta | {f"α of {name}": rate for name, rate in alpha.items()}
    task = task_of(VECTOR, SHOTS, QUERIES)
    loss = multi_step_maml(learner, theta, alpha, task, 3, UNEVEN).loss
    by_steps = [
        gradients(maml(learner, theta, alpha, task, steps).loss, wanted) for steps in (1, 2, 3)
    ]
    expected = {
        name: sum(
            weight * found[name] for weight, found in zip(UNEVEN.tolist(), by_steps, strict=True)
        )
        for name in wanted
    }
    assert_same(gradients(loss, wanted), expected, to=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_all_weight_on_the_last_step_it_is_maml(steps):
    learner = conv_learner()
    theta = leaves(theta_of(learner))
    alpha = leaves(random_alpha(theta, 2))
    wanted = theta | {f"α of {name}": rate for name, rate in alpha.items()}
    task = task_of(PICTURE, SHOTS, QUERIES)
    outcome = multi_step_maml(learner, theta, alpha, task, steps, step_weights(steps, 1.0))
    expected = maml(learner, theta, alpha, task, steps)
    torch.testing.assert_close(outcome, expected, rtol=0, atol=1e-14)
    assert_same(gradients(outcome.loss, wanted), gradients(expected.loss, wanted), to=1e-13)


def test_a_batch_of_tasks_is_a_loop_over_them():
    learner = conv_learner()
    theta = leaves(theta_of(learner))

    def loss(task) -> Tensor:
        return multi_step_maml(learner, theta, 0.2, task, 3, UNEVEN).loss

    tasks = [task_of(PICTURE, SHOTS, QUERIES, seed) for seed in range(3)]
    batch, loop = vmap(loss)(stacked(tasks)), torch.stack([loss(task) for task in tasks])
    torch.testing.assert_close(batch, loop, rtol=0, atol=1e-12)
    assert_same(gradients(batch.sum(), theta), gradients(loop.sum(), theta), to=1e-10)


def test_regression_sums_mean_squared_errors():
    learner = regression_learner(2)
    theta, task = theta_of(learner), regression_task(2)
    phis, _ = descend(learner, theta, task.support, task.classes, 0.1, 3)
    errors = [
        (learner.logits(phi, task.query.inputs) - task.query.labels).square().mean() for phi in phis
    ]
    outcome = multi_step_maml(learner, theta, 0.1, task, 3, UNEVEN)
    expected = 0.2 * errors[1] + 0.5 * errors[2] + 0.3 * errors[3]
    torch.testing.assert_close(outcome.loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(outcome.score, errors[3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("done", [0.0, 0.1, 0.5, 0.99, 1.0, 1.5])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_weights_sum_to_one_and_none_is_negative(steps, done):
    weights = step_weights(steps, done)
    assert weights.shape == (steps,)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-6)
    assert bool((weights >= 0).all())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_weights_are_equal_at_first_and_all_on_the_last_step_at_the_end(steps):
    assert step_weights(steps, 0.0).tolist() == pytest.approx([1 / steps] * steps, abs=1e-7)
    assert step_weights(steps, 1.0).tolist() == [0.0] * (steps - 1) + [1.0]


def test_weights_move_in_a_straight_line_between():
    assert step_weights(4, 0.5).tolist() == [0.125, 0.125, 0.125, 0.625]
    assert step_weights(4, 0.75).tolist() == [0.0625, 0.0625, 0.0625, 0.8125]


def test_weights_stay_where_they_are_past_the_end():
    assert step_weights(3, 7.0).tolist() == [0.0, 0.0, 1.0]
