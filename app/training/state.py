"""The state of a run, and the one meta-iteration that takes it forward."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from app.errors import Diverged, RecipeError
from app.learning.anil import anil
from app.learning.first_order_maml import first_order_maml
from app.learning.heads import Params
from app.learning.inner_loop import Alpha
from app.learning.learned_rates import initial_rates, rates
from app.learning.learner import HEAD, NETWORK, Learner
from app.learning.maml import maml
from app.learning.multi_step_loss import multi_step_maml, step_weights
from app.learning.outcome import Outcome
from app.learning.pretraining import pretrain_on_classes, pretrain_on_tasks
from app.learning.reptile import reptile
from app.learning.tasks import Examples, Task
from app.recordings import CannotRecord, Compute, Recordings
from app.training.recipe import PretrainingStage, Recipe, Stage

Objective = Callable[[Learner, Mapping[str, Tensor], Alpha, Task, int], Outcome]
OBJECTIVES: dict[str, Objective] = {
    "maml": maml,
    "first-order-maml": first_order_maml,
    "anil": anil,
    "pretraining-on-tasks": pretrain_on_tasks,
}
RATE = "rate."
CLASSIFIER = "classifier"
LARGE_TASK = 1_000_000
"""Numbers in the inputs of a task above which a CPU computes tasks faster one by one."""


@dataclass
class State:
    """Everything that a run must keep to go on as if nothing had happened.

    `parameters` are θ by name, the parameters of α by "rate." and name, and in pre-training the
    classifier's; `optimizer` is Adam over them.
    """

    parameters: Params
    optimizer: torch.optim.Adam
    rate_form: str
    iteration: int = 0
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    """Most memory that a process of the run has held, on a GPU its own memory."""
    loss: float | None = None
    """Running mean over the meta-iterations, None before the first."""
    score: float | None = None
    """The same of the score: accuracy in [0, 1], or mean squared error."""
    recordings: Recordings = field(default_factory=Recordings)
    """Of the gradients for these very tensors."""

    @property
    def theta(self) -> Params:
        """θ by name; the tensors themselves."""
        return {
            name: value
            for name, value in self.parameters.items()
            if not name.startswith(RATE) and name != CLASSIFIER
        }

    @property
    def alpha(self) -> Params:
        """The inner step sizes by θ's names, see `app.learning.learned_rates`."""
        of_rates = {
            name.removeprefix(RATE): value
            for name, value in self.parameters.items()
            if name.startswith(RATE)
        }
        return rates(of_rates, self.rate_form)  # type: ignore[arg-type]


def initial_state(
    recipe: Recipe,
    learner: Learner,
    device: torch.device,
    *,
    classes: int = 0,
    initial: Mapping[str, Tensor] | None = None,
) -> State:
    """θ by the recipe's seed, α at its first values.

    Args:
        recipe: gives the seed and α.
        learner: what θ belongs to.
        device: where to hold it.
        classes: how many classes pre-training tells apart; 0 without pre-training.
        initial: parameters of θ to begin with instead.
    """
    theta = learner.initial(recipe.seed) | dict(initial or {})
    inner = recipe.inner
    first = {
        name: inner.alpha_head if name.startswith(HEAD) else inner.alpha_network for name in theta
    }
    alpha = initial_rates(theta, first, inner.alpha_form)
    of_rates = {RATE + name: value for name, value in alpha.items()}
    classifier = {CLASSIFIER: torch.zeros(classes, learner.feature_size)} if classes else {}
    parameters = {
        name: value.to(device).requires_grad_()
        for name, value in (theta | classifier | of_rates).items()
    }
    groups = [
        {"params": [parameters[name] for name in (*theta, *classifier)]},
        {"params": [parameters[name] for name in of_rates]},
    ]
    return State(parameters, torch.optim.Adam(groups, foreach=True), inner.alpha_form)


def meta_gradient(
    learner: Learner,
    state: State,
    stage: Stage,
    tasks: Task,
    *,
    total: int | None = None,
    done: float = 0.0,
) -> Outcome:
    """Sets `grad` to the gradient of the query loss of tasks, as a share of a meta-batch.

    The tasks are one batched computation, or several of as many as `stage.tasks_at_once` allows; a
    CPU computes large tasks one by one. On a GPU `grad` and what is returned hold until the next
    call.

    Args:
        learner: what the parameters belong to.
        state: where θ and α stand; its gradients are replaced.
        stage: gives the algorithm and the number of inner steps.
        tasks: a meta-batch or a part of it, (B, ...) tensors.
        total: tasks in the whole meta-batch; None: these are all.
        done: how much of the stage's cosine is over, in [0, 1).

    Returns:
        Loss and score, sums over the tasks divided by `total`.
    """
    total = total or len(tasks.classes)
    inputs = tasks, step_weights(stage.steps, done).to(tasks.classes.device)

    def compute(inputs: tuple[Task, Tensor]) -> tuple[list[Tensor | None], Outcome]:
        return _in_chunks(learner, state, stage, *inputs, total)

    what = (stage.algorithm, stage.steps, stage.tasks_at_once, total)
    return _recorded(state, what, compute, inputs)


def pretraining_gradient(
    learner: Learner, state: State, examples: Examples, *, total: int | None = None
) -> Outcome:
    """The same for pictures (M, ...) labelled by class, with a classifier of all classes."""
    share = len(examples.labels) / (total or len(examples.labels))

    def compute(examples: Examples) -> tuple[list[Tensor | None], Outcome]:
        result = pretrain_on_classes(learner, state.theta, state.parameters[CLASSIFIER], examples)
        gradients = _gradients(state, result.loss * share)
        return gradients, Outcome(*(value.detach() * share for value in result))

    return _recorded(state, ("pretraining", share), compute, examples)


def outer_step(recipe: Recipe, state: State) -> None:
    """One step of Adam (Kingma & Ba 2015) along the meta-gradient, in place.

    Raises:
        Diverged: the gradient is not finite; the state is untouched.
    """
    stage, done = recipe.stage_at(state.iteration)
    alpha_rate = 0.0 if isinstance(stage, PretrainingStage) else stage.alpha_learning_rate
    theta_group, alpha_group = state.optimizer.param_groups
    moving = theta_group["params"] + (alpha_group["params"] if alpha_rate else [])
    norm = torch.nn.utils.clip_grad_norm_(moving, recipe.gradient_clip)
    if not bool(norm.isfinite()):
        raise Diverged(
            f"The meta-gradient is not finite at iteration {state.iteration}: "
            "lower the learning rate or the first values of α."
        )
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    span = stage.learning_rate - stage.final_learning_rate
    theta_group["lr"] = stage.final_learning_rate + span * cosine
    alpha_group["lr"] = alpha_rate * cosine
    state.optimizer.step()
    state.iteration += 1


def _in_chunks(
    learner: Learner, state: State, stage: Stage, tasks: Task, weights: Tensor, total: int
) -> tuple[list[Tensor | None], Outcome]:
    """The gradients of all parameters, and the outcome."""
    count = len(tasks.classes)
    numbers = tasks.support.inputs[0].numel() + tasks.query.inputs[0].numel()
    lone = tasks.classes.device.type == "cpu" and numbers > LARGE_TASK
    at_once = stage.tasks_at_once or (1 if lone else count)
    gradients: list[Tensor | None] = [None] * len(state.parameters)
    loss = score = torch.zeros((), device=tasks.classes.device)
    for first in range(0, count, at_once):
        chunk = tree_map(lambda tensor, at=first: tensor[at : at + at_once], tasks)
        more, outcome = _of_chunk(learner, state, stage, chunk, weights, total)
        gradients = [_sum(one, other) for one, other in zip(gradients, more, strict=True)]
        loss, score = loss + outcome.loss, score + outcome.score
    return gradients, Outcome(loss, score)


def _of_chunk(
    learner: Learner, state: State, stage: Stage, tasks: Task, weights: Tensor, total: int
) -> tuple[list[Tensor | None], Outcome]:
    """The same of tasks that are one batched computation."""
    theta, alpha, steps = state.theta, state.alpha, stage.steps
    # The library's convolutions are faster on a CPU where nothing is batched or derived twice.
    lone = tasks.classes.device.type == "cpu" and len(tasks.classes) == 1
    learner.network.train(not lone or _is_derived_twice(learner, alpha, stage))
    if stage.algorithm == "reptile":
        with torch.no_grad():
            moves, outcomes = vmap(lambda task: reptile(learner, theta, alpha, task, steps))(tasks)
        gradients = [
            moves[name].sum(0) / total if name in moves else None for name in state.parameters
        ]
        return gradients, Outcome(*(value.sum() / total for value in outcomes))
    if stage.algorithm == "multi-step-maml":
        outcomes = vmap(lambda task: multi_step_maml(learner, theta, alpha, task, steps, weights))(
            tasks
        )
    else:
        objective = OBJECTIVES[stage.algorithm]
        outcomes = vmap(lambda task: objective(learner, theta, alpha, task, steps))(tasks)
    gradients = _gradients(state, outcomes.loss.sum() / total)
    return gradients, Outcome(*(value.detach().sum() / total for value in outcomes))


def _is_derived_twice(learner: Learner, alpha: Params, stage: Stage) -> bool:
    """Whether the meta-gradient goes through a gradient of the network."""
    moved = learner.trainable(stage.steps - 1, list(alpha))  # no step moves more than the last
    return stage.second_order and any(name.startswith(NETWORK) for name in moved)


def _gradients(state: State, loss: Tensor) -> list[Tensor | None]:
    """The loss's gradients for all parameters, None for what it does not depend on.

    Each in memory of its own that is laid out as its parameter's: what autograd gives may be
    expanded, or one tensor for two parameters, and is scaled in place later.
    """
    parameters = list(state.parameters.values())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [
        None if gradient is None else torch.empty_like(parameter).copy_(gradient)
        for parameter, gradient in zip(parameters, gradients, strict=True)
    ]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return one if other is None else other if one is None else one + other


def _recorded(state: State, what: Hashable, compute: Compute, inputs: Any) -> Outcome:
    """Computes gradients and an outcome, recorded where the device is a GPU; sets the gradients."""
    try:
        gradients, outcome = state.recordings.run(what, compute, inputs)
    except CannotRecord as error:
        raise RecipeError(
            f"The recipe's [network] cannot be trained on a GPU, {error}. Mend that, or train it "
            "with --device cpu"
        ) from error
    except torch.OutOfMemoryError as error:
        raise RecipeError(
            "The GPU's memory does not suffice for the recipe's tasks: lower a stage's "
            f"tasks_at_once, tasks or ways ({str(error).splitlines()[0]})"
        ) from error
    for parameter, gradient in zip(state.parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    computed: Outcome = outcome
    return computed
