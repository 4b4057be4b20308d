"""How many meta-gradients a second: ours, one batched computation, against loops over the tasks.

    pip install -e '.[bench]'
    python -m benchmarks.training --json FILE

Every contender computes the same thing: the gradient for θ, to second order, of the mean query loss
of a meta-batch, on the same network, θ, tasks, α and number of inner steps. Before anything is
timed the gradients are compared, and the run fails where they differ by more than 1e-4 of their
norm in float64. In float32 a GPU's own gradient, computed twice, differs by more: there the limit
only tells other precisions apart. Inputs are random: what is computed does not depend on what is in
the pictures.

On a CPU each contender runs with several numbers of threads and is represented by the best. All
contenders, at all numbers of threads, take turns, so that whatever else slows the machine down for
a while meets them alike. A figure is a median over the repetitions. The step of Adam is left out,
which is the same for all; our score, which the peers do not compute, is not.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from app.devices import choose_device
from app.errors import DeviceError
from app.learning.learned_rates import initial_rates
from app.learning.learner import HEAD, NETWORK, Learner
from app.learning.tasks import Examples, Task
from app.registry import InputSpec
from app.registry.registry import build_learner
from app.training.recipe import Stage
from app.training.state import RATE, State, meta_gradient
from benchmarks.output import write_json
from benchmarks.peers import PEERS, Iteration, Peer, PlainNet, PlainTask, Problem

OURS = "ours"
SEED = 0
TOLERANCE = {torch.float64: 1e-4, torch.float32: 0.05}
"""Largest difference of a meta-gradient from ours, as a share of our norm."""
SAMPLE_SECONDS = 1.0
"""How long one repetition lasts at least: faster iterations are timed several at once."""


class Disagreement(Exception):
    """Contenders do not compute the same meta-gradient; the message says which, and by how much."""


@dataclass(frozen=True)
class Workload:
    """One meta-batch and the network it is for."""

    name: str
    shape: tuple[int, int, int]
    """(C, H, W)"""
    filters: int
    ways: int
    shots: int
    queries: int
    """Queries of each class."""
    tasks: int
    steps: int
    """Inner steps."""
    alpha: float
    """Inner step size, for the mean cross-entropy."""
    pool: bool = False
    """Whether blocks halve by max pooling and all activations are features, as for mini-ImageNet;
    else by their stride, and features are means over the positions, as for Omniglot."""
    blocks: int = 4


OMNIGLOT: dict[str, Any] = {"shape": (1, 28, 28), "filters": 64}
MINI_IMAGENET: dict[str, Any] = {"shape": (3, 84, 84), "filters": 32, "pool": True}
WORKLOADS = {
    f"{name}-{ways}w{shots}s-{steps}": Workload(
        f"{name}-{ways}w{shots}s-{steps}",
        ways=ways,
        shots=shots,
        queries=queries,
        tasks=tasks,
        steps=steps,
        alpha=alpha,
        **network,
    )
    for name, network, ways, shots, queries, tasks, steps, alpha in (
        ("omniglot", OMNIGLOT, 5, 1, 1, 32, 1, 0.4),
        ("omniglot", OMNIGLOT, 5, 1, 1, 32, 5, 0.4),
        ("omniglot", OMNIGLOT, 20, 1, 1, 16, 5, 0.4),
        ("omniglot", OMNIGLOT, 5, 5, 5, 32, 1, 0.4),
        ("mini-imagenet", MINI_IMAGENET, 5, 1, 15, 4, 5, 0.01),
    )
}
"""By data set, ways, shots and inner steps; tasks and queries are those of Finn et al. (2017)."""


@dataclass(frozen=True)
class Row:
    """What was measured on one workload; rates are meta-iterations a second."""

    workload: str
    ways: int
    shots: int
    steps: int
    tasks: int
    ours_per_s: float
    ours_threads: int
    peers_per_s: dict[str, float]
    peers_threads: dict[str, int]
    ratio_to_best_peer: float
    largest_gradient_difference: float


@dataclass(frozen=True)
class Contender:
    """A meta-iteration, and the parameters by θ's names whose `grad` it sets."""

    iterate: Iteration
    theta: Mapping[str, Tensor]

    def gradient(self) -> Tensor:
        """The meta-gradient of all θ as one vector, in the order of the names."""
        self.iterate()
        gradients = [self.theta[name].grad for name in sorted(self.theta)]
        return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def measure(
    workload: Workload,
    device: torch.device,
    *,
    repetitions: int,
    threads: Sequence[int],
    peers: Mapping[str, Peer] = PEERS,
) -> Row:
    """Compares the gradients, then times.

    Args:
        workload: what is computed.
        device: where.
        repetitions: samples of each contender at each number of threads.
        threads: the numbers of threads to try.
        peers: who is compared with.

    Raises:
        Disagreement: a meta-gradient differs from ours.
    """
    exact = build_contenders(workload, device, peers, torch.float64)
    difference = compare_gradients(workload, exact, TOLERANCE[torch.float64])
    contenders = build_contenders(workload, device, peers)
    compare_gradients(workload, contenders, TOLERANCE[torch.float32])
    rates = time_in_turns(contenders, device, repetitions, threads)
    best = {name: max((rates[name, number], number) for number in threads) for name in contenders}
    ours_per_s, ours_threads = best.pop(OURS)
    return Row(
        workload.name,
        workload.ways,
        workload.shots,
        workload.steps,
        workload.tasks,
        ours_per_s,
        ours_threads,
        {name: rate for name, (rate, _) in best.items()},
        {name: number for name, (_, number) in best.items()},
        ours_per_s / max(rate for rate, _ in best.values()),
        difference,
    )


def build_contenders(
    workload: Workload,
    device: torch.device,
    peers: Mapping[str, Peer],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Contender]:
    """Ours and the peers, on one θ and one meta-batch."""
    spec = InputSpec(kind="image", shape=workload.shape)
    network = {
        "name": "conv",
        "filters": workload.filters,
        "blocks": workload.blocks,
        "downsample": "pool" if workload.pool else "stride",
        "readout": "flatten" if workload.pool else "mean",
        "norm": "batch",
        "feature_norm": False,
    }
    learner = build_learner(spec, network, f"fixed-{workload.ways}")
    theta = {name: value.to(device, dtype) for name, value in learner.initial(SEED).items()}
    tasks = draw_tasks(workload, device, dtype)
    contenders = {OURS: _ours(workload, learner, theta, tasks)}
    for name, peer in peers.items():
        contenders[name] = _peer(peer, workload, theta, tasks)
    return contenders


def draw_tasks(workload: Workload, device: torch.device, dtype: torch.dtype) -> Task:
    """A meta-batch of random pictures."""
    generator = torch.Generator().manual_seed(SEED)

    def draw(each: int) -> Examples:
        count = workload.ways * each
        inputs = torch.rand(workload.tasks, count, *workload.shape, generator=generator)
        labels = torch.arange(workload.ways).repeat_interleave(each).repeat(workload.tasks, 1)
        mask = torch.ones(workload.tasks, count, dtype=torch.bool)
        return Examples(inputs.to(device, dtype), labels.to(device), mask.to(device))

    classes = torch.ones(workload.tasks, workload.ways, dtype=torch.bool, device=device)
    return Task(draw(workload.shots), draw(workload.queries), classes)


def compare_gradients(
    workload: Workload, contenders: Mapping[str, Contender], tolerance: float
) -> float:
    """The largest difference of a peer's meta-gradient from ours, as a share of our norm.

    Raises:
        Disagreement: it is too large, or no number.
    """
    ours = contenders[OURS].gradient().double()
    differences = {
        name: float((contender.gradient().double() - ours).norm() / ours.norm())
        for name, contender in contenders.items()
        if name != OURS
    }
    for name, difference in differences.items():
        if not difference <= tolerance:
            raise Disagreement(
                f"{workload.name}: the meta-gradient of {name} differs from ours by "
                f"{difference:.1e} of its norm, more than {tolerance:.0e}"
            )
    return max(differences.values())


def time_in_turns(
    contenders: Mapping[str, Contender],
    device: torch.device,
    repetitions: int,
    threads: Sequence[int],
) -> dict[tuple[str, int], float]:
    """Meta-iterations a second by contender and number of threads: medians of the repetitions."""
    before = torch.get_num_threads()
    samples: dict[tuple[str, int], list[float]] = {}
    counts: dict[tuple[str, int], int] = {}
    try:
        for repetition in range(repetitions + 1):  # the first warms up
            for number in threads:
                torch.set_num_threads(number)
                for name, contender in contenders.items():
                    key = name, number
                    seconds = _seconds(contender.iterate, counts.get(key, 1), device)
                    if repetition:
                        samples.setdefault(key, []).append(seconds)
                    else:
                        counts[key] = max(1, math.ceil(SAMPLE_SECONDS / seconds))
    finally:
        torch.set_num_threads(before)
    return {key: 1 / statistics.median(seconds) for key, seconds in samples.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    screen, errors = Console(), Console(stderr=True)
    try:
        device = choose_device(options.device)
        versions = {name: version(name) for name in PEERS if name != "autograd"}
        threads = options.threads or thread_counts(device)
        rows = []
        for name in options.workload or WORKLOADS:
            errors.print(f"{name} ...", highlight=False)
            rows.append(
                measure(WORKLOADS[name], device, repetitions=options.repetitions, threads=threads)
            )
    except PackageNotFoundError as error:
        errors.print(f"{error.name} is not installed: pip install -e '.[bench]'", markup=False)
        return 1
    except (DeviceError, Disagreement) as error:
        errors.print(str(error), markup=False)
        return 1
    screen.print(table(rows))
    result = {
        "device": device_name(device),
        "torch": torch.__version__,
        "versions": versions,
        "rows": [asdict(row) for row in rows],
    }
    write_json(options.json, result)
    return 0


def thread_counts(device: torch.device) -> list[int]:
    """The powers of two below the number of cores, and that number; on a GPU there is no choice."""
    if device.type != "cpu":
        return [torch.get_num_threads()]
    cores = os.cpu_count() or 1
    return [2**power for power in range(cores.bit_length()) if 2**power < cores] + [cores]


def device_name(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"


def table(rows: Sequence[Row]) -> Table:
    """The rows for a person; behind each rate the number of threads in brackets."""
    shown = Table("workload", "tasks", title="Meta-gradients a second (threads)")
    for name in (OURS, *PEERS, "ours / best peer", "largest difference"):
        shown.add_column(name, justify="right")
    for row in rows:
        rates = {OURS: (row.ours_per_s, row.ours_threads)} | {
            name: (rate, row.peers_threads[name]) for name, rate in row.peers_per_s.items()
        }
        shown.add_row(
            row.workload,
            str(row.tasks),
            *(f"{rate:.3g} ({threads})" for rate, threads in rates.values()),
            f"{row.ratio_to_best_peer:.2f}",
            f"{row.largest_gradient_difference:.0e}",
        )
    return shown


def _ours(
    workload: Workload, learner: Learner, theta: Mapping[str, Tensor], tasks: Task
) -> Contender:
    rates = initial_rates(theta, {name: [workload.alpha] for name in theta}, "step")
    parameters = {name: value.clone() for name, value in theta.items()}
    parameters |= {RATE + name: value.to(tasks.support.inputs) for name, value in rates.items()}
    for value in parameters.values():
        value.requires_grad_()
    state = State(parameters, torch.optim.Adam(parameters.values()), "step")
    stage = Stage(
        algorithm="maml",
        iterations=1,
        learning_rate=1e-3,
        steps=workload.steps,
        ways=(workload.ways, workload.ways),
        shots=(workload.shots, workload.shots),
        queries=workload.queries,
        tasks=workload.tasks,
        tasks_at_once=None,
    )

    def iterate() -> None:
        meta_gradient(learner, state, stage, tasks)

    return Contender(iterate, state.theta)


def _peer(peer: Peer, workload: Workload, theta: Mapping[str, Tensor], tasks: Task) -> Contender:
    network = PlainNet(
        workload.shape,
        workload.ways,
        filters=workload.filters,
        blocks=workload.blocks,
        pool=workload.pool,
        mean=not workload.pool,
    )
    network.load_state_dict({name.removeprefix(NETWORK): value for name, value in theta.items()})
    network.to(tasks.support.inputs)
    parameters = {
        name if name.startswith(HEAD) else NETWORK + name: parameter
        for name, parameter in network.named_parameters()
    }
    batch = (tasks.support.inputs, tasks.support.labels, tasks.query.inputs, tasks.query.labels)
    each = [PlainTask(*tensors) for tensors in zip(*batch, strict=True)]
    problem = Problem(network, each, workload.steps, workload.alpha)
    return Contender(peer(problem), parameters)


def _seconds(iterate: Iteration, times: int, device: torch.device) -> float:
    """Seconds of one iteration, the mean of several."""
    _synchronise(device)
    began = time.perf_counter()
    for _ in range(times):
        iterate()
    _synchronise(device)
    return (time.perf_counter() - began) / times


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description="Meta-gradients a second: ours against loops over the tasks.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--device", default="cpu", help="auto | cpu | cuda[:n]")
    parser.add_argument(
        "--workload", action="append", choices=WORKLOADS, help="all where none is given"
    )
    parser.add_argument("--repetitions", type=_positive, default=5, metavar="N")
    parser.add_argument(
        "--threads", type=_positive, nargs="+", metavar="N", help="numbers of threads to try"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
