"""Reptile (Nichol, Achiam & Schulman 2018, arXiv 1803.02999)."""

from collections.abc import Mapping

from torch import Tensor

from app.learning.heads import Params
from app.learning.inner_loop import Alpha, descend
from app.learning.learner import Learner
from app.learning.outcome import Outcome, outcome
from app.learning.tasks import Examples, Task


def reptile(
    learner: Learner, theta: Mapping[str, Tensor], alpha: Alpha, task: Task, steps: int
) -> tuple[Params, Outcome]:
    """θ - φ, which stands for the gradient of θ (their Algorithm 2 and §3), and φ's outcome.

    Each inner step descends on a part of its own of the support set: with the same examples in
    every step the term that makes different minibatches of a task agree is lost (their §5.1, §6.2).
    A class's examples are dealt out in turn, so every part has all classes. There is no query set
    in Reptile; the task's only tells how well φ does.
    """
    parts = [_part(task.support, task.classes.shape[-1], steps, step) for step in range(steps)]
    phis, _ = descend(learner, theta, task.support, task.classes, alpha, steps, minibatches=parts)
    phi = phis[-1]
    return (
        {name: value - phi[name] for name, value in theta.items()},
        outcome(learner, phi, task.query, task.classes),
    )


def _part(support: Examples, ways: int, steps: int, step: int) -> Examples:
    """Every `steps`-th example of each class, from the one numbered `step`.

    The examples of the classes must lie one class after the other, each with as many.
    """
    shots = support.mask.shape[0] // ways
    if shots % steps:
        raise ValueError(f"{shots} shots cannot be dealt out to {steps} steps evenly")
    return Examples(
        *(
            tensor.reshape(ways, shots, *tensor.shape[1:])[:, step::steps].flatten(0, 1)
            for tensor in support
        )
    )
