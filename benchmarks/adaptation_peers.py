"""One adaptation and its answers as other libraries compute them: one request after the other.

Each peer is a function from a `Serving` to one that answers a request. All take first-order steps,
as a server needs no derivative through them, with the rates of θ by parameter and step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from app.learning.learner import HEAD, NETWORK
from app.registry import LoadedModel


class PlainRequest(NamedTuple):
    """Support set (M, *shape) with labels (M,), and queries (Q, *shape)."""

    support: Tensor
    labels: Tensor
    query: Tensor


class PlainClassifier(nn.Module):
    """The model's network with a linear layer whose rows are all θ's one row."""

    def __init__(self, model: LoadedModel, ways: int):
        super().__init__()
        self.network = model.learner.network
        weight = model.theta[HEAD + "weight"]
        self.head = nn.Linear(weight.shape[1], ways)
        given = {NETWORK + name: value for name, value in self.network.named_parameters()}
        with torch.no_grad():
            for name, parameter in given.items():
                parameter.copy_(model.theta[name])
            self.head.weight.copy_(weight.expand(ways, -1))
            self.head.bias.copy_(model.theta[HEAD + "bias"].expand(ways))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (M, N)."""
        logits: Tensor = self.head(self.network(inputs))
        return logits


@dataclass(frozen=True)
class Serving:
    """What requests are answered with."""

    classifier: PlainClassifier
    rates: Sequence[Mapping[str, float]]
    """For each step by parameter; those of the head are times N already."""
    temperature: float
    """What logits are divided by in the inner loss."""
    certainty: float
    """What they are divided by in the answer, which is calibrated."""

    def loss(self, logits: Tensor, request: PlainRequest) -> Tensor:
        """What a step descends on; every class has as many examples."""
        return F.cross_entropy(logits / self.temperature, request.labels)

    def answer(self, logits: Tensor) -> Tensor:
        """Probabilities (Q, N)."""
        return (logits.detach() / self.certainty).softmax(-1)


Answer = Callable[[PlainRequest], Tensor]
Peer = Callable[[Serving], Answer]


def autograd(serving: Serving) -> Answer:
    """`torch.autograd.grad`, and no library."""
    classifier = serving.classifier
    theta = dict(classifier.named_parameters())

    def answer(request: PlainRequest) -> Tensor:
        phi: dict[str, Tensor] = dict(theta)
        for rates in serving.rates:
            loss = serving.loss(functional_call(classifier, phi, (request.support,)), request)
            gradient = torch.autograd.grad(loss, tuple(phi.values()))
            phi = {
                name: torch.add(value.detach(), slope, alpha=-rates[name]).requires_grad_()
                for (name, value), slope in zip(phi.items(), gradient, strict=True)
            }
        with torch.no_grad():
            return serving.answer(functional_call(classifier, phi, (request.query,)))

    return answer


def higher(serving: Serving) -> Answer:
    """`higher` (Grefenstette et al. 2019, arXiv 1910.01727), made functional once."""
    library = import_module("higher")
    classifier = serving.classifier
    theta = dict(classifier.named_parameters())
    functional = library.monkeypatch(
        classifier, copy_initial_weights=False, track_higher_grads=False
    )
    groups = [{"params": [parameter], "lr": 1.0} for parameter in theta.values()]
    descent = library.get_diff_optim(
        torch.optim.SGD(groups), list(theta.values()), track_higher_grads=False
    )
    overrides = [{"lr": [rates[name] for name in theta]} for rates in serving.rates]

    def answer(request: PlainRequest) -> Tensor:
        phi = list(theta.values())
        for override in overrides:
            loss = serving.loss(functional(request.support, params=phi), request)
            phi = descent.step(loss, params=phi, override=override)
        with torch.no_grad():
            return serving.answer(functional(request.query, params=phi))

    return answer


def torchopt(serving: Serving) -> Answer:
    """`torchopt.sgd` (Ren et al. 2022, arXiv 2211.06934), its gradients scaled by the rates."""
    library = import_module("torchopt")
    classifier = serving.classifier
    theta = dict(classifier.named_parameters())
    descent = library.sgd(lr=1.0)
    at_start = descent.init(theta)

    def answer(request: PlainRequest) -> Tensor:
        phi: dict[str, Tensor] = dict(theta)
        state = at_start
        for rates in serving.rates:
            loss = serving.loss(functional_call(classifier, phi, (request.support,)), request)
            gradient = torch.autograd.grad(loss, tuple(phi.values()))
            slopes = {
                name: slope.mul_(rates[name]) for name, slope in zip(phi, gradient, strict=True)
            }
            updates, state = descent.update(slopes, state, inplace=True)
            phi = {
                name: value.detach().requires_grad_()
                for name, value in library.apply_updates(phi, updates, inplace=False).items()
            }
        with torch.no_grad():
            return serving.answer(functional_call(classifier, phi, (request.query,)))

    return answer


PEERS: dict[str, Peer] = {"autograd": autograd, "higher": higher, "torchopt": torchopt}
