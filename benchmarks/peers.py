"""The meta-gradient of MAML as other libraries compute it: one task after the other.

Each peer is a function from a `Problem` to a meta-iteration, which leaves the gradient of the mean
query loss in `grad` of the network's parameters. Each is written in the fastest of the forms that
its library documents: the graph of a task is freed as soon as the task is done, and nothing is set
up in an iteration that can be set up before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


class PlainTask(NamedTuple):
    """One task; inputs are (M, C, H, W), labels (M,)."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor


@dataclass(frozen=True)
class Problem:
    """What a meta-iteration is of."""

    network: nn.Module
    """Its parameters are θ."""
    tasks: Sequence[PlainTask]
    steps: int
    """Inner steps."""
    alpha: float
    """Inner step size."""


Iteration = Callable[[], None]
Peer = Callable[[Problem], Iteration]


class PlainNet(nn.Module):
    """The network of few-shot learning, from the layers that torch has for it.

    Blocks of 3 x 3 convolution, batch norm by the statistics of the batch at hand and ReLU, then a
    linear layer. Input (M, C, H, W), output (M, ways).

    Args:
        shape: (C, H, W).
        ways: number of outputs.
        filters: channels of each block.
        blocks: number of blocks.
        pool: whether a block halves the picture by max pooling, not by its stride.
        mean: whether the features are means over the positions, not all activations.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        ways: int,
        *,
        filters: int,
        blocks: int,
        pool: bool,
        mean: bool,
    ):
        super().__init__()
        channels, height, width = shape
        self.pool = pool
        self.mean = mean
        self.convs = nn.ModuleList(
            nn.Conv2d(
                filters if block else channels,
                filters,
                3,
                stride=1 if pool else 2,
                padding=1,
                bias=False,
            )
            for block in range(blocks)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(filters, track_running_stats=False) for _ in range(blocks)
        )
        for _ in range(blocks):
            height, width = (size // 2 if pool else (size + 1) // 2 for size in (height, width))
        self.head = nn.Linear(filters if mean else filters * height * width, ways)

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of each input."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            hidden = F.relu(norm(conv(hidden)))
            if self.pool:
                hidden = F.max_pool2d(hidden, 2)
        logits: Tensor = self.head(hidden.mean((2, 3)) if self.mean else hidden.flatten(1))
        return logits


def autograd(problem: Problem) -> Iteration:
    """`torch.autograd.grad` with `create_graph`, and no library."""
    network, alpha = problem.network, problem.alpha
    theta = dict(network.named_parameters())

    def iterate() -> None:
        network.zero_grad()
        for task in problem.tasks:
            phi: dict[str, Tensor] = dict(theta)
            for _ in range(problem.steps):
                logits = functional_call(network, phi, (task.support,))
                loss = F.cross_entropy(logits, task.support_labels)
                gradient = torch.autograd.grad(loss, tuple(phi.values()), create_graph=True)
                phi = {
                    name: value - alpha * slope
                    for (name, value), slope in zip(phi.items(), gradient, strict=True)
                }
            logits = functional_call(network, phi, (task.query,))
            _share_of_outer_loss(problem, logits, task).backward()  # type: ignore[no-untyped-call]

    return iterate


def higher(problem: Problem) -> Iteration:
    """`higher` (Grefenstette et al. 2019, arXiv 1910.01727).

    The network is made functional once. `innerloop_ctx` would do so for every task, and is slower.
    `track_higher_grads` is off for the network alone, where it means a list of every φ so far, and
    on for the optimiser, where it means the second derivative.
    """
    library = import_module("higher")
    network = problem.network
    theta = list(network.parameters())
    functional = library.monkeypatch(network, copy_initial_weights=False, track_higher_grads=False)
    descent = library.get_diff_optim(
        torch.optim.SGD(theta, lr=problem.alpha), theta, track_higher_grads=True
    )

    def iterate() -> None:
        network.zero_grad()
        for task in problem.tasks:
            phi = theta
            for _ in range(problem.steps):
                loss = F.cross_entropy(functional(task.support, params=phi), task.support_labels)
                phi = descent.step(loss, params=phi)
            logits = functional(task.query, params=phi)
            _share_of_outer_loss(problem, logits, task).backward()  # type: ignore[no-untyped-call]

    return iterate


def torchopt(problem: Problem) -> Iteration:
    """`torchopt.MetaSGD` (Ren et al. 2022, arXiv 2211.06934), put back to θ after each task."""
    library = import_module("torchopt")
    network = problem.network
    theta = list(network.parameters())
    descent = library.MetaSGD(network, lr=problem.alpha)
    network_at_start = library.extract_state_dict(network, by="reference")
    descent_at_start = library.extract_state_dict(descent, by="reference")

    def iterate() -> None:
        for parameter in theta:
            parameter.grad = None
        for task in problem.tasks:
            for _ in range(problem.steps):
                descent.step(F.cross_entropy(network(task.support), task.support_labels))
            logits = network(task.query)
            _share_of_outer_loss(problem, logits, task).backward()  # type: ignore[no-untyped-call]
            library.recover_state_dict(network, network_at_start)
            library.recover_state_dict(descent, descent_at_start)

    return iterate


PEERS: dict[str, Peer] = {"autograd": autograd, "higher": higher, "torchopt": torchopt}


def _share_of_outer_loss(problem: Problem, logits: Tensor, task: PlainTask) -> Tensor:
    return F.cross_entropy(logits, task.query_labels) / len(problem.tasks)
