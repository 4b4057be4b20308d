"""The inner loop of MAML: gradient steps of size α from θ on one support set. No other copy exists.

    φ_0 = θ,   φ_{k+1} = φ_k - α_k ∇ L(φ_k; support)       (Finn, Abbeel & Levine 2017, Eq. 1)

It is a pure function. It can be differentiated to second order, and `torch.func.vmap` over support
sets makes it one batched computation for many tasks; θ is shared, so the first forward pass then
runs all tasks' examples through one set of weights.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad_and_value

from app.learning.heads import Params, logits
from app.learning.learner import Learner
from app.learning.tasks import Examples

Alpha = float | Mapping[str, Tensor]
"""One inner step size for all, or by parameter name the step sizes of T steps: (T,), or (T, *shape)
with one for every number of the parameter (see `app.learning.learned_rates`).

A step beyond T takes the last one. A parameter that has none stays as it is in θ."""


class Adaptation(NamedTuple):
    """Where the inner loop ends.

    φ, the support loss (steps + 1,) before the first step and after each, and φ's features of the
    support set (M, D).
    """

    phi: Params
    support_loss: Tensor
    features: Tensor


def descend(
    learner: Learner,
    theta: Mapping[str, Tensor],
    support: Examples,
    classes: Tensor,
    alpha: Alpha,
    steps: int,
    *,
    first_order: bool = False,
    minibatches: Sequence[Examples] | None = None,
) -> tuple[Sequence[Params], Sequence[Tensor]]:
    """Takes the inner steps and returns every φ on the way.

    Args:
        learner: the network and head that the parameters belong to.
        theta: the initialisation.
        support: the support set, (M, ...) tensors.
        classes: (N,) bool, which of the N classes exist.
        alpha: the inner step sizes.
        steps: how many steps, at least 0.
        first_order: whether gradients are constants for the outer derivative (Finn et al. 2017,
            §5.2).
        minibatches: what each step descends on instead of the whole support set, in turn.

    Returns:
        φ_0 ... φ_steps, and the support loss before each step (one fewer).
    """
    phi = learner.start(theta, classes.shape[-1])
    phis, losses = [phi], []
    for step in range(steps):
        names = [
            name
            for name in learner.trainable(step, list(phi))
            if not isinstance(alpha, Mapping) or name in alpha
        ]
        moving = {name: phi[name] for name in names}
        batch = support if minibatches is None else minibatches[step % len(minibatches)]
        gradient, (_, loss) = grad_and_value(_inner_loss, has_aux=True)(
            moving, phi, learner, batch, classes
        )
        if first_order:
            gradient = {name: g.detach() for name, g in gradient.items()}
        phi = {
            **phi,
            **{
                name: phi[name]
                - _rate(alpha, name, step, phi[name])
                * learner.rate_factor(name, classes)
                * gradient[name]
                for name in names
            },
        }
        phis.append(phi)
        losses.append(loss)
    return phis, losses


def adapt(
    learner: Learner,
    theta: Mapping[str, Tensor],
    support: Examples,
    classes: Tensor,
    alpha: Alpha,
    steps: int,
) -> Adaptation:
    """Takes the inner steps to their end; arguments as in `descend`."""
    phis, losses = descend(learner, theta, support, classes, alpha, steps)
    features = learner.features(phis[-1], support.inputs)
    final = learner.head.loss(logits(phis[-1], features), support, classes)
    return Adaptation(phis[-1], torch.stack([*losses, final]), features)


def _inner_loss(
    moving: Params, phi: Params, learner: Learner, support: Examples, classes: Tensor
) -> tuple[Tensor, Tensor]:
    return learner.inner_loss({**phi, **moving}, support, classes)


def _rate(alpha: Alpha, name: str, step: int, parameter: Tensor) -> Tensor:
    if isinstance(alpha, Mapping):
        rates = alpha[name]
        return rates[min(step, rates.shape[0] - 1)]
    # A plain float times N, an integer tensor, would be rounded to the default precision.
    return torch.full((), alpha, dtype=parameter.dtype, device=parameter.device)
