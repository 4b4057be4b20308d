"""The state of a run, and the one meta-iteration that takes it forward."""

import math
from dataclasses import dataclass

import torch
from torch.func import vmap

from app.errors import Diverged
from app.learning.heads import Params
from app.learning.learner import HEAD, Learner
from app.learning.maml import Outcome, first_order_maml, maml
from app.learning.tasks import Task
from app.training.recipe import Recipe, Stage

OBJECTIVES = {"maml": maml, "first-order-maml": first_order_maml}
LOG_ALPHA = "log_alpha."


@dataclass
class State:
    """Everything that a run must keep to go on as if nothing had happened.

    `parameters` are θ by name, and log α (T,) by "log_alpha." and name; `optimizer` is Adam over
    them.
    """

    parameters: Params
    optimizer: torch.optim.Adam
    iteration: int = 0
    wall_seconds: float = 0.0
    loss: float | None = None
    """Running mean over the meta-iterations, None before the first."""
    accuracy: float | None = None
    """The same of the accuracy, in [0, 1]."""

    @property
    def theta(self) -> Params:
        """θ by name; the tensors themselves."""
        return {k: v for k, v in self.parameters.items() if not k.startswith(LOG_ALPHA)}

    @property
    def alpha(self) -> Params:
        """The inner step sizes (T,) by θ's names, positive by construction."""
        return {
            name.removeprefix(LOG_ALPHA): value.exp()
            for name, value in self.parameters.items()
            if name.startswith(LOG_ALPHA)
        }


def initial_state(recipe: Recipe, learner: Learner, device: torch.device) -> State:
    """θ by the recipe's seed, α at its first values."""
    theta = learner.initial(recipe.seed)
    inner = recipe.inner
    first = {
        name: inner.alpha_head if name.startswith(HEAD) else inner.alpha_network for name in theta
    }
    log_alpha = {LOG_ALPHA + name: torch.tensor(first[name]).log() for name in theta}
    parameters = {
        name: value.to(device).requires_grad_() for name, value in (theta | log_alpha).items()
    }
    groups = [
        {"params": [parameters[name] for name in theta]},
        {"params": [parameters[name] for name in log_alpha]},
    ]
    return State(parameters, torch.optim.Adam(groups, foreach=True))


def meta_gradient(learner: Learner, state: State, stage: Stage, tasks: Task) -> Outcome:
    """Sets `grad` of all parameters to that of the mean query loss over a meta-batch.

    The whole meta-batch is one batched computation.

    Args:
        learner: what the parameters belong to.
        state: where θ and α stand.
        stage: gives the objective and the number of inner steps.
        tasks: a meta-batch, (B, ...) tensors.

    Returns:
        Loss and accuracy, means over the meta-batch.
    """
    theta, alpha, objective = state.theta, state.alpha, OBJECTIVES[stage.algorithm]
    outcomes = vmap(lambda task: objective(learner, theta, alpha, task, stage.steps))(tasks)
    outcome = Outcome(outcomes.loss.mean(), outcomes.accuracy.mean())
    state.optimizer.zero_grad()
    outcome.loss.backward()  # type: ignore[no-untyped-call]
    return Outcome(*(value.detach() for value in outcome))


def outer_step(recipe: Recipe, state: State) -> None:
    """One step of Adam (Kingma & Ba 2015) along the meta-gradient, in place.

    Raises:
        Diverged: the gradient is not finite; the state is untouched.
    """
    stage, done = recipe.stage_at(state.iteration)
    moving = state.parameters if stage.alpha_learning_rate else state.theta
    norm = torch.nn.utils.clip_grad_norm_(moving.values(), recipe.gradient_clip)
    if not bool(norm.isfinite()):
        raise Diverged(
            f"The meta-gradient is not finite at iteration {state.iteration}: "
            "lower the learning rate or the first values of α."
        )
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    span = stage.learning_rate - stage.final_learning_rate
    theta_group, alpha_group = state.optimizer.param_groups
    theta_group["lr"] = stage.final_learning_rate + span * cosine
    alpha_group["lr"] = stage.alpha_learning_rate * cosine
    state.optimizer.step()
    state.iteration += 1
