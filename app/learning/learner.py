"""A learner: a network with a head, as pure functions of its parameters."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from app.learning.heads import Head, Params
from app.learning.normalisation import BatchStatisticsNorm
from app.learning.refused import refuse_modules
from app.learning.standardise import Standardise
from app.learning.tasks import Examples

NETWORK = "network."
HEAD = "head."


class Learner:
    """The model of a task, with all parameters passed in.

    Parameters are a flat dict: "network.<name>" and "head.<name>". The network's own parameters
    only give names, shapes and the first values; they are never read after `initial`.

    The inner loop descends on the loss of outputs divided by `temperature`. Where that is above
    one, a support set that is answered with certainty still has a gradient for the next step.

    Inputs go through `standardise` first. `make` makes the network with the first values of a seed;
    without it they come from its modules' `reset_parameters`.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Head,
        features: int,
        temperature: float = 1.0,
        *,
        standardise: Standardise | None = None,
        make: Callable[[int], nn.Module] | None = None,
    ):
        refuse_modules(network)
        self.network = network
        self.head = head
        self.feature_size = features
        self.temperature = temperature
        self.standardise = standardise
        self.make = make
        # To look for parameters that stand in several places takes a while, in every forward pass.
        named = [
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        ]
        self._tied = len({id(tensor) for _, tensor in named}) < len(named)

    @property
    def transductive(self) -> bool:
        """Whether an answer depends on the other queries of the same forward pass."""
        return any(isinstance(module, BatchStatisticsNorm) for module in self.network.modules())

    def twin(self) -> "Learner":
        """The same learner with a network of its own, for another thread."""
        same = {id(parameter): parameter for parameter in self.network.parameters()}
        return Learner(
            # Of parameters only names and shapes count, so that they need no copies.
            copy.deepcopy(self.network, same) if self.make is None else self.make(0),
            self.head,
            self.feature_size,
            self.temperature,
            standardise=self.standardise,
            make=self.make,
        )

    def to(self, device: torch.device) -> None:
        """Moves the network's buffers to a device, and what else is no parameter."""
        for module in self.network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
        if self.standardise is not None:
            self.standardise.to(device)

    def to_answer(self, device: torch.device) -> None:
        """Moves to a device, with the network in the mode that is fastest once θ is made.

        Networks compute the same in both; ours as matrix products in training mode, which is how a
        GPU is fastest.
        """
        self.to(device)
        self.network.train(device.type == "cuda")

    def initial(self, seed: int) -> Params:
        """A fresh θ. The same seed gives the same numbers."""
        network = self._reset(seed) if self.make is None else self.make(seed)
        body = {NETWORK + name: p.detach().clone() for name, p in network.named_parameters()}
        generator = torch.Generator().manual_seed(seed)
        return {**body, **self.head.initial(self.feature_size, generator)}

    def _reset(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for module in self.network.modules():
                reset = getattr(module, "reset_parameters", None)
                if callable(reset):
                    reset()
        return self.network

    def start(self, theta: Mapping[str, Tensor], ways: int) -> Params:
        """φ before the first step, for a task of `ways` classes (padding included)."""
        body = {name: p for name, p in theta.items() if name.startswith(NETWORK)}
        return {**body, **self.head.start(theta, ways)}

    def features(self, phi: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Feature vectors (M, D) of inputs (M, *input_shape)."""
        body = {
            name.removeprefix(NETWORK): p for name, p in phi.items() if name.startswith(NETWORK)
        }
        if self.standardise is not None:
            inputs = self.standardise(inputs)
        features: Tensor = functional_call(self.network, body, (inputs,), tie_weights=self._tied)
        return features

    def logits(self, phi: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs (M, N) for inputs (M, *input_shape), by a φ whose N rows are all classes'."""
        classes = torch.ones(len(phi["head.weight"]), dtype=torch.bool, device=inputs.device)
        return self.head.apply(phi, self.features(phi, inputs), classes)

    def inner_loss(
        self, head: Mapping[str, Tensor], features: Tensor, *, examples: Examples, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the inner loop descends on, with the temperature, and the head's loss itself.

        Args:
            head: the head's part of φ.
            features: of the examples, by φ (M, D).
            examples: what the loss is of.
            classes: (N,) bool, which of the N classes exist.
        """
        outputs = self.head.apply(head, features, classes)
        if self.temperature == 1:
            loss = self.head.loss(outputs, examples, classes)
            return loss, loss
        both = torch.stack([outputs / self.temperature, outputs])
        descended, loss = self.head.loss(both, examples, classes)
        return descended, loss

    def trainable(self, step: int, names: list[str]) -> list[str]:
        """Which of φ's parameters have a gradient in inner step `step`, the first being 0."""
        if step == 0 and self.head.starts_equal:
            return [name for name in names if name.startswith(HEAD)]
        return names
