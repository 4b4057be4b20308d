"""Small learners and tasks, and the inner loop done again with nothing but torch.nn and SGD."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from app.learning.heads import Params, build_head
from app.learning.learner import HEAD, NETWORK, Learner
from app.learning.networks import ConvNet, Mlp
from app.learning.tasks import Examples

PICTURE = (1, 6, 6)
VECTOR = (5,)


def conv_learner(head: str = "shared-row") -> Learner:
    network = ConvNet(PICTURE, filters=4, blocks=2, groups=2)
    return Learner(network, build_head(head), network.features)


def mlp_learner(head: str = "shared-row") -> Learner:
    network = Mlp(VECTOR, hidden=(7, 6))
    return Learner(network, build_head(head), network.features)


def theta_of(learner: Learner, seed: int = 1) -> Params:
    """A θ in float64 none of whose entries is zero or one by default, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value.double() + 0.1 * torch.randn(value.shape, generator=generator).double()
        for name, value in learner.initial(seed).items()
    }


def examples_of(shape: Sequence[int], shots: Sequence[int], seed: int = 0) -> Examples:
    """shots[c] random examples of class c, in random order, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(len(shots)).repeat_interleave(torch.tensor(shots))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    inputs = torch.rand((len(labels), *shape), generator=generator, dtype=torch.float64)
    return Examples(inputs, labels, torch.ones(len(labels), dtype=torch.bool))


def existing(ways: int) -> Tensor:
    return torch.ones(ways, dtype=torch.bool)


def loop_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over classes of the mean cross-entropy over a class's examples, by explicit loops."""
    by_class: dict[int, list[Tensor]] = {}
    for row, label in zip(logits, labels.tolist(), strict=True):
        by_class.setdefault(label, []).append(row.exp().sum().log() - row[label])
    means = [sum(losses) / len(losses) for losses in by_class.values()]
    return sum(means) / len(means)


class SgdRun:
    """An ordinary network and linear layer of N explicit rows, trained by torch.optim.SGD.

    Every gradient is computed in every step, the network's in the first step too.
    """

    def __init__(self, learner: Learner, theta: Mapping[str, Tensor], ways: int):
        network = deepcopy(learner.network).double()
        network.load_state_dict(
            {k.removeprefix(NETWORK): v for k, v in theta.items() if k.startswith(NETWORK)}
        )
        linear = nn.Linear(learner.feature_size, ways).double()
        rows, biases = theta[HEAD + "weight"], theta[HEAD + "bias"]
        with torch.no_grad():
            linear.weight.copy_(torch.cat([rows] * (ways // len(rows))))
            linear.bias.copy_(torch.cat([biases] * (ways // len(biases))))
        self.model = nn.Sequential(network, linear)
        self.parameters = {NETWORK + name: p for name, p in network.named_parameters()}
        self.parameters |= {HEAD + "weight": linear.weight, HEAD + "bias": linear.bias}
        self.temperature = learner.temperature
        self.first_gradient: Params = {}
        self.losses: list[float] = []

    def train(self, support: Examples, steps: int, rate: Callable[[str, int], float]) -> None:
        """Takes the steps; `rate` gives the learning rate of a parameter in a step."""
        optimizer = torch.optim.SGD([{"params": [p], "lr": 0.0} for p in self.parameters.values()])
        for step in range(steps):
            for name, group in zip(self.parameters, optimizer.param_groups, strict=True):
                group["lr"] = rate(name, step)
            optimizer.zero_grad()
            logits = self.model(support.inputs)
            loop_loss(logits / self.temperature, support.labels).backward()
            if step == 0:
                self.first_gradient = {k: p.grad.clone() for k, p in self.parameters.items()}
            self.losses.append(loop_loss(logits, support.labels).item())
            optimizer.step()
        self.losses.append(loop_loss(self.model(support.inputs), support.labels).item())


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor], to: float) -> None:
    assert set(got) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            got[name],
            value.detach(),
            rtol=0,
            atol=to,
            msg=lambda text, name=name: f"{name}: {text}",
        )
