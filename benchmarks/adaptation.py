"""How many callers' adaptations a second: the engine against libraries, and against the machine.

    pip install -e '.[bench]'
    python -m benchmarks.adaptation --peers --json FILE

A request is a support set with 15 queries a class, for the bundled θ. So many callers as the
concurrency says each send one after the other to the engine. A peer answers one request after the
other, whatever the concurrency; it runs with several numbers of threads and is represented by the
best. Before anything is timed the answers are compared, and the run fails where a probability
differs by more than 1e-4.

The floor is the arithmetic of one request alone, without padding, counted by
`torch.utils.flop_counter`, at the best rate of a large matrix product seen in the same run.
"""

import argparse
import math
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from app.devices import choose_device, one_thread
from app.engine import Engine, ModelKey, SupportSet
from app.engine.compute import Computer
from app.engine.requests import Floats
from app.learning.learner import HEAD
from app.registry import LoadedModel, Registry
from app.settings import Settings
from benchmarks.adaptation_peers import PEERS, Answer, PlainClassifier, PlainRequest, Serving
from benchmarks.output import write_json
from benchmarks.training import device_name, thread_counts

MODEL = "omniglot"
SIZES = ((5, 1), (20, 5))
"""Ways and shots."""
QUERIES = 15
"""Of each class."""
CONCURRENCY = (1, 8, 64)
CONCURRENCY_ON_GPU = (1, 8, 64, 512)
TOLERANCE = 1e-4
"""Largest difference of a probability between the engine and a peer."""
PRODUCT = 2048
"""Side of the matrices whose product is the machine's rate."""


class Disagreement(Exception):
    """A peer answers otherwise; the message says which, and by how much."""


@dataclass(frozen=True)
class Row:
    """What was measured at one size and concurrency; rates are requests a second."""

    device: str
    ways: int
    shots: int
    steps: int
    concurrency: int
    engine_per_s: float
    p50_ms: float
    p99_ms: float
    peers_per_s: dict[str, float]
    peers_threads: dict[str, int]
    floor_per_s: float
    largest_difference: float


@dataclass(frozen=True)
class Request:
    """What one caller asks."""

    support: SupportSet
    query: Floats


Contender = Callable[[Request], torch.Tensor]
"""A peer on the device: the probabilities (Q, N) of a request."""


def bundled(folder: Path) -> LoadedModel:
    """The newest version of the bundled model."""
    registry = Registry(folder)
    return registry.load(MODEL, registry.latest(MODEL).version)


def draw_request(model: LoadedModel, ways: int, shots: int, seed: int) -> Request:
    """A random pattern for each class, and noisy copies of it."""
    rng = np.random.default_rng(seed)
    shape = model.card.input.shape
    patterns = rng.random((ways, *shape), np.float32)

    def noisy(each: int) -> Floats:
        rows = patterns.repeat(each, axis=0)
        return (0.6 * rows + 0.4 * rng.random(rows.shape, np.float32)).astype(np.float32)

    labels = np.arange(ways).repeat(shots)
    return Request(SupportSet(noisy(shots), labels, ways), noisy(QUERIES))


def serving_of(model: LoadedModel, ways: int, shots: int) -> Serving:
    """What the peers need to know of a model."""
    steps = model.card.steps
    rates = [
        {
            name: float(model.alpha[name][min(step, len(model.alpha[name]) - 1)])
            * (ways if name.startswith(HEAD) else 1)
            for name in model.theta
        }
        for step in range(steps)
    ]
    calibration = model.card.calibration
    a, b, c = calibration.temperature if calibration else (0.0, 0.0, 0.0)
    certainty = math.exp(a + b * math.log(ways) + c * math.log(shots))
    classifier = PlainClassifier(model, ways)
    return Serving(classifier, rates, model.learner.temperature, certainty)


def compare(
    engine: Engine,
    key: ModelKey,
    requests: Sequence[Request],
    steps: int,
    peers: Mapping[str, Contender],
) -> float:
    """The largest difference of a peer's probability from the engine's.

    Raises:
        Disagreement: it is too large.
    """
    largest = 0.0
    for index, request in enumerate(requests):
        adapted = engine.adapt(key, f"compared:{index}", request.support, steps, request.query)
        answers = adapted.result().answers
        assert answers is not None
        for name, peer in peers.items():
            theirs = peer(request).numpy()
            difference = float(np.abs(theirs - answers.probabilities).max())
            if not difference <= TOLERANCE:
                raise Disagreement(f"{name} differs from the engine by {difference:.1e}")
            largest = max(largest, difference)
    return largest


def contenders(serving: Serving, device: torch.device) -> dict[str, Contender]:
    """The peers on a device; like the engine they are given arrays, and their answers come back."""

    def answering(answer: Answer) -> Contender:
        def contender(request: Request) -> torch.Tensor:
            support = request.support
            arrays = support.inputs, support.labels, request.query
            return answer(PlainRequest(*(torch.from_numpy(a).to(device) for a in arrays))).cpu()

        return contender

    serving.classifier.to(device)
    return {name: answering(peer(serving)) for name, peer in PEERS.items()}


def load(
    engine: Engine,
    key: ModelKey,
    requests: Sequence[Request],
    steps: int,
    concurrency: int,
    seconds: float,
) -> tuple[float, list[float]]:
    """Requests a second that the engine answers to so many callers, and the latencies in ms.

    Every caller sends at least two requests; those under way at the end are counted until theirs.
    """
    latencies: list[float] = []
    ready, began = threading.Barrier(concurrency + 1), 0.0

    def call(caller: int) -> float:
        ready.wait()
        sent = 0
        while sent < 2 or time.perf_counter() - began < seconds:
            request = requests[(caller + sent) % len(requests)]
            start = time.perf_counter()
            engine.adapt(key, f"{caller}", request.support, steps, request.query).result()
            latencies.append(1e3 * (time.perf_counter() - start))
            sent += 1
        return time.perf_counter()

    with ThreadPoolExecutor(concurrency) as callers:
        ends = [callers.submit(call, number) for number in range(concurrency)]
        began = time.perf_counter()
        ready.wait()
        last = max(end.result() for end in ends)
    return len(latencies) / (last - began), latencies


def rate(work: Callable[[], object], seconds: float) -> float:
    """How often a second something runs, by the median of its times."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1 / statistics.median(times[1:] if len(times) > 3 else times)


def best_rates(
    peers: Mapping[str, Contender], request: Request, seconds: float, threads: Sequence[int]
) -> dict[str, tuple[float, int]]:
    """Each peer's rate at its best number of threads, and that number."""
    before, best = torch.get_num_threads(), dict.fromkeys(peers, (0.0, 0))
    try:
        for number in threads:
            torch.set_num_threads(number)
            for name, peer in peers.items():
                found = rate(lambda peer=peer: peer(request), seconds), number  # type: ignore[misc]
                best[name] = max(best[name], found)
    finally:
        torch.set_num_threads(before)
    return best


def products(device: torch.device) -> float:
    """Large matrix products a second, over one second of each of two ways.

    A convolution of 1 x 1 is a matrix product, too, and another library's: there are processors on
    which it has twice the rate of the library for matrices.
    """
    left, right = torch.rand(2, PRODUCT, PRODUCT, device=device)
    pictures, weights = (
        torch.rand(shape, device=device).to(memory_format=torch.channels_last)
        for shape in ((1, PRODUCT, PRODUCT // 32, 32), (PRODUCT, PRODUCT, 1, 1))
    )

    def timed(product: Callable[[], object]) -> float:
        def finished() -> None:
            product()
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        with torch.no_grad():
            return rate(finished, 1.0)

    return max(
        timed(lambda: torch.mm(left, right)),
        timed(lambda: torch.nn.functional.conv2d(pictures, weights)),
    )


def floor(model: LoadedModel, request: Request, steps: int, products_per_s: float) -> float:
    """Requests a second if all arithmetic ran at the rate of a large matrix product.

    It is counted on the CPU, which pads nothing and records nothing.
    """
    computer = Computer(model, torch.device("cpu"), len(request.support.labels), 1)
    with FlopCounterMode(display=False) as counter:
        computer.adapt([request.support], steps, [request.query])
    return float(products_per_s * 2 * PRODUCT**3 / counter.get_total_flops())


def measure(
    folder: Path,
    device: torch.device,
    *,
    with_peers: bool,
    seconds: float,
    sizes: Sequence[tuple[int, int]] = SIZES,
    concurrency: Sequence[int] | None = None,
) -> list[Row]:
    """Runs everything; see the module.

    Raises:
        Disagreement: a peer answers otherwise.
    """
    registry = Registry(folder)
    key = ModelKey(MODEL, registry.latest(MODEL).version)
    levels = concurrency or (CONCURRENCY if device.type == "cpu" else CONCURRENCY_ON_GPU)
    threads = thread_counts(device)
    rows: list[Row] = []
    for ways, shots in sizes:
        with one_thread():
            model = bundled(folder)
            serving = serving_of(model, ways, shots)
            peers = contenders(serving, device) if with_peers else {}
        steps = model.card.steps
        requests = [draw_request(model, ways, shots, seed) for seed in range(16)]
        settings = Settings(device=str(device), models_dir=folder, queue_limit=2 * max(levels))
        engine = started(registry, settings)
        try:
            with one_thread():
                difference = compare(engine, key, requests[:3], steps, peers)
            loads = [load(engine, key, requests, steps, level, seconds) for level in levels]
        finally:
            engine.stop(60)
        before = products(device)
        best = best_rates(peers, requests[0], seconds / 2, threads)
        bound = floor(bundled(folder), requests[0], steps, max(before, products(device)))
        rows += [
            Row(
                device_name(device),
                ways,
                shots,
                steps,
                level,
                per_s,
                float(np.percentile(latencies, 50)),
                float(np.percentile(latencies, 99)),
                {name: found for name, (found, _) in best.items()},
                {name: number for name, (_, number) in best.items()},
                bound,
                difference,
            )
            for level, (per_s, latencies) in zip(levels, loads, strict=True)
        ]
    return rows


def started(registry: Registry, settings: Settings) -> Engine:
    """An engine that is warm."""
    engine = Engine(registry, settings)
    engine.start()
    while not engine.ready:
        if engine.failed:
            raise RuntimeError("the device failed while warming up")
        time.sleep(0.01)
    return engine


def table(rows: Sequence[Row]) -> Table:
    """The rows for a person; behind each peer's rate the number of threads in brackets."""
    shown = Table("task", "callers", title="Adaptations with their answers a second")
    for name in ("engine", "p50 ms", "p99 ms", *PEERS, "over best peer", "share of the floor"):
        shown.add_column(name, justify="right")
    for row in rows:
        best = max(row.peers_per_s.values(), default=math.nan)
        shown.add_row(
            f"{row.ways}-way {row.shots}-shot",
            str(row.concurrency),
            f"{row.engine_per_s:.3g}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            *(
                f"{row.peers_per_s[name]:.3g} ({row.peers_threads[name]})"
                if name in row.peers_per_s
                else ""
                for name in PEERS
            ),
            f"{row.engine_per_s / best:.2f}",
            f"{row.engine_per_s / row.floor_per_s:.0%}",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptation")
    parser.add_argument("--peers", action="store_true", help="time higher, torchopt and autograd")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda[:n]")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the models folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device)
        rows = measure(options.models, device, with_peers=options.peers, seconds=options.seconds)
    except Disagreement as error:
        Console(stderr=True).print(str(error), markup=False)
        return 1
    Console().print(table(rows))
    result = {"torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
