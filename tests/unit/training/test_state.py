"""The outer step: which learning rate, which gradient, and what stays untouched."""

import math

import pytest
import torch

from app.data.omniglot import INPUT
from app.errors import Diverged
from app.learning.maml import maml
from app.registry.registry import build_learner
from app.training.recipe import Recipe
from app.training.state import State, initial_state, meta_gradient, outer_step
from tests.unit.training.helpers import make_pool, recipe

CPU = torch.device("cpu")


def fresh(tiny: Recipe) -> tuple[State, object]:
    learner = build_learner(INPUT, tiny.network.model_dump(), tiny.head)
    return initial_state(tiny, learner, CPU), learner


def give_gradients(state: State, norm: float) -> None:
    """Random gradients for all parameters, of one norm together."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(p.shape, generator=generator) for p in state.parameters.values()]
    scale = norm / math.sqrt(sum(g.square().sum().item() for g in gradients))
    for parameter, gradient in zip(state.parameters.values(), gradients, strict=True):
        parameter.grad = gradient * scale


def copies(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def test_theta_starts_by_the_seed_and_alpha_at_the_recipes_values():
    state, learner = fresh(recipe())
    torch.testing.assert_close(state.theta, learner.initial(3))
    assert set(state.alpha) == set(state.theta)
    for name, value in state.alpha.items():
        first = [0.1, 0.05] if name.startswith("head.") else [0.01, 0.005]
        torch.testing.assert_close(value.detach(), torch.tensor(first))
    other, _ = fresh(recipe(("seed = 3", "seed = 4")))
    assert not torch.equal(other.theta["head.weight"], state.theta["head.weight"])


@pytest.mark.parametrize(
    ("iteration", "theta_rate", "alpha_rate"),
    [
        (0, 0.01, 0.02),
        (2, (0.01 + 0.001) / 2, 0.01),
        (3, 0.001 + 0.009 * (1 - math.sqrt(0.5)) / 2, 0.02 * (1 - math.sqrt(0.5)) / 2),
        (4, 0.005, 0.01),
        (5, 0.005 * 0.75, 0.01 * 0.75),
        (6, 0.005 * 0.25, 0.01 * 0.25),
    ],
)
def test_the_learning_rates_fall_by_a_cosine_in_every_stage(iteration, theta_rate, alpha_rate):
    tiny = recipe()
    state, _ = fresh(tiny)
    state.iteration = iteration
    give_gradients(state, norm=1.0)
    outer_step(tiny, state)
    rates = [group["lr"] for group in state.optimizer.param_groups]
    assert rates == pytest.approx([theta_rate, alpha_rate])
    assert state.iteration == iteration + 1


def test_the_first_step_moves_theta_by_its_rate_and_log_alpha_by_its_own():
    """The first step of Adam is the learning rate, against the sign of the gradient."""
    tiny = recipe()
    state, _ = fresh(tiny)
    before = copies(state.parameters)
    give_gradients(state, norm=5.0)
    signs = {name: value.grad.sign() for name, value in state.parameters.items()}
    outer_step(tiny, state)
    for name, value in state.parameters.items():
        rate = 0.02 if name.startswith("rate.") else 0.01
        moved = value.detach() - before[name]
        torch.testing.assert_close(moved, -rate * signs[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("norm", "clipped"), [(40.0, 2.5), (2.0, 2.0)])
def test_a_gradient_is_cut_to_the_recipes_norm_and_keeps_its_direction(norm, clipped):
    tiny = recipe(("gradient_clip = 10.0", "gradient_clip = 2.5"))
    state, _ = fresh(tiny)
    give_gradients(state, norm)
    raw = copies({name: value.grad for name, value in state.parameters.items()})
    outer_step(tiny, state)
    beta1, _ = state.optimizer.defaults["betas"]
    for name, value in state.parameters.items():
        first_moment = state.optimizer.state[value]["exp_avg"]
        want = (1 - beta1) * raw[name] * clipped / norm
        torch.testing.assert_close(first_moment, want, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("learned", [True, False])
def test_alpha_is_learned_only_where_the_recipe_says_so(learned):
    kept = [(f"alpha_learning_rate = {rate}\n", "") for rate in (0.02, 0.01)]
    tiny = recipe(*([] if learned else kept))
    state, learner = fresh(tiny)
    theta, alpha = copies(state.theta), copies(state.alpha)
    pool = make_pool(6, seed=1)
    for _ in range(6):
        stage, _ = tiny.stage_at(state.iteration)
        tasks = pool.sample(stage.shape(), stage.tasks, (state.iteration,))
        meta_gradient(learner, state, stage, tasks)
        outer_step(tiny, state)
    assert any(not torch.equal(state.theta[name], theta[name]) for name in theta)
    if learned:
        assert all(not torch.equal(state.alpha[name], alpha[name]) for name in alpha)
        assert all((value > 0).all() for value in state.alpha.values())
    else:
        assert all(torch.equal(state.alpha[name], alpha[name]) for name in alpha)


def test_the_meta_gradient_is_the_mean_over_the_tasks_taken_one_by_one():
    tiny = recipe()
    state, learner = fresh(tiny)
    stage = tiny.stages[0].model_copy(update={"steps": 2, "tasks": 3})
    tasks = make_pool(6, seed=1).sample(stage.shape(), stage.tasks, (0,))
    outcome = meta_gradient(learner, state, stage, tasks)
    batched = copies({name: value.grad for name, value in state.parameters.items()})
    state.optimizer.zero_grad()
    lone = []
    for index in range(3):
        task = type(tasks)(
            type(tasks.support)(*(tensor[index] for tensor in tasks.support)),
            type(tasks.query)(*(tensor[index] for tensor in tasks.query)),
            tasks.classes[index],
        )
        lone.append(maml(learner, state.theta, state.alpha, task, steps=2))
        (lone[-1].loss / 3).backward()
    for name, value in state.parameters.items():
        torch.testing.assert_close(batched[name], value.grad, rtol=1e-3, atol=1e-5)
    losses = [one.loss.item() for one in lone]
    accuracies = [one.score.item() for one in lone]
    assert outcome.loss.item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert outcome.score.item() == pytest.approx(sum(accuracies) / 3, abs=1e-6)


def test_the_gradient_of_an_alpha_that_stays_does_not_cut_that_of_theta():
    tiny = recipe(
        ("gradient_clip = 10.0", "gradient_clip = 2.5"), ("alpha_learning_rate = 0.02\n", "")
    )
    state, _ = fresh(tiny)
    give_gradients(state, norm=1.0)
    for name, value in state.parameters.items():
        if name.startswith("rate."):
            value.grad *= 1000
    raw = copies({name: value.grad for name, value in state.theta.items()})
    outer_step(tiny, state)
    for name, value in state.theta.items():
        torch.testing.assert_close(value.grad, raw[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    tiny = recipe()
    state, _ = fresh(tiny)
    before = copies(state.parameters)
    give_gradients(state, norm=1.0)
    state.parameters["head.weight"].grad[0, 0] = bad
    with pytest.raises(Diverged, match="not finite at iteration 0"):
        outer_step(tiny, state)
    assert state.iteration == 0
    assert not state.optimizer.state
    assert all(torch.equal(state.parameters[name], before[name]) for name in before)
