"""The multi-step loss of MAML++ (Antoniou, Edwards & Storkey 2019, arXiv 1810.09502, §4)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from app.learning.inner_loop import Alpha, descend
from app.learning.learner import Learner
from app.learning.outcome import Outcome, outcome
from app.learning.tasks import Task


def multi_step_maml(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    task: Task,
    steps: int,
    weights: Tensor,
) -> Outcome:
    """Σ_k v_k L(φ_k(θ); query) over the steps k = 1 ... S (their Eq. 3); the score is that of φ_S.

    `weights` are v (S,); see `step_weights`.
    """
    phis, _ = descend(learner, theta, task.support, task.classes, alpha, steps)
    outcomes = [outcome(learner, phi, task.query, task.classes) for phi in phis[1:]]
    losses = torch.stack([result.loss for result in outcomes])
    return Outcome((weights * losses).sum(), outcomes[-1].score)


def step_weights(steps: int, done: float) -> Tensor:
    """The weights v (S,), which sum to one: equal at first, all on the last step at the end.

    Args:
        steps: S.
        done: how much of the annealing is over, in [0, 1]; it is linear, as in their §4.
    """
    early = (1 - min(done, 1.0)) / steps
    weights = torch.full((steps,), early)
    weights[-1] = 1 - early * (steps - 1)
    return weights
