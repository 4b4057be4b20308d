"""The inner loop of MAML: gradient steps of size α from θ on one support set. No other copy exists.

    φ_0 = θ,   φ_{k+1} = φ_k - α_k ∇ L(φ_k; support)       (Finn, Abbeel & Levine 2017, Eq. 1)

It is a pure function. It can be differentiated to second order, and `torch.func.vmap` over support
sets makes it one batched computation for many tasks; θ is shared, so the network's first forward
pass then runs all tasks' examples through one set of weights.

The gradient is taken in two parts, of the loss for the head and the features, and on from the
features to the network: features are computed again only once the network has moved.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.func
from torch import Tensor

from app.learning.heads import Params
from app.learning.learner import HEAD, NETWORK, Learner
from app.learning.tasks import Examples
from app.learning.vjp import Vjp

Alpha = float | Mapping[str, Tensor | Sequence[Tensor]]
"""One inner step size for all, or by parameter name the step sizes of T steps: (T,), or (T, *shape)
with one for every number of the parameter (see `app.learning.learned_rates`), or each of them.

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
    vjp: Vjp = torch.func.vjp,
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
        vjp: how to differentiate; `app.learning.vjp.vjp_once` where nothing outside does.

    Returns:
        φ_0 ... φ_steps, and the support loss before each step (one fewer).
    """
    phi = learner.start(theta, classes.shape[-1])
    has_alpha = [name for name in phi if not isinstance(alpha, Mapping) or name in alpha]
    movable = [name for name in has_alpha if name.startswith(NETWORK)]
    phis, losses = [phi], []
    features: Tensor | None = None
    for step in range(steps):
        batch = support if minibatches is None else minibatches[step % len(minibatches)]
        if features is None or minibatches is not None:
            features, to_network = _features(learner, phi, movable, batch.inputs, vjp)
        head = {name: value for name, value in phi.items() if name.startswith(HEAD)}
        loss_of = partial(learner.inner_loss, examples=batch, classes=classes)
        descended, to_head, loss = vjp(loss_of, head, features, has_aux=True)
        gradient, of_features = to_head(torch.ones_like(descended))
        names = learner.trainable(step, has_alpha)
        if movable and set(movable) <= set(names):
            gradient |= to_network(of_features)[0]
            features = None
        if first_order:
            gradient = {name: g.detach() for name, g in gradient.items()}
        phi = dict(phi)
        for name in names:
            rate = _rate(alpha, name, step, phi[name])
            if name.startswith(HEAD):
                rate = rate * learner.head.rate_factor(classes)
            phi[name] = torch.addcmul(phi[name], gradient[name], rate, value=-1)
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
    vjp: Vjp = torch.func.vjp,
) -> Adaptation:
    """Takes the inner steps to their end; arguments as in `descend`."""
    phis, losses = descend(learner, theta, support, classes, alpha, steps, vjp=vjp)
    features = learner.features(phis[-1], support.inputs)
    outputs = learner.head.apply(phis[-1], features, classes)
    final = learner.head.loss(outputs, support, classes)
    return Adaptation(phis[-1], torch.stack([*losses, final]), features)


def _features(
    learner: Learner, phi: Params, movable: Sequence[str], inputs: Tensor, vjp: Vjp
) -> tuple[Tensor, Any]:
    """φ's features (M, D), and how their gradient becomes that of the network's parameters."""

    def of_network(network: Params) -> Tensor:
        return learner.features({**phi, **network}, inputs)

    network = {name: phi[name] for name in movable}
    if not network:
        return of_network(network), None
    features, to_network = vjp(of_network, network)
    return features, to_network


def _rate(alpha: Alpha, name: str, step: int, parameter: Tensor) -> Tensor:
    if isinstance(alpha, Mapping):
        rates = alpha[name]
        return rates[min(step, len(rates) - 1)]
    # A plain float times N, an integer tensor, would be rounded to the default precision.
    return torch.full((), alpha, dtype=parameter.dtype, device=parameter.device)
