"""How far the answers to one request differ by what must not matter, on the bundled model.

    python -m benchmarks.agreement --json FILE

That is the company of other requests, on a CPU the number of threads, what else is asked in the
same request, and the order of examples and classes. The classes are random patterns; half of the
queries are blends of two classes: where an answer is uncertain, rounding shows. Taken are the
model's own number of steps, and the most that a request may ask for.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from app.devices import choose_device, one_thread
from app.engine.compute import Computer
from app.engine.requests import Floats, SupportSet
from app.settings import Settings
from benchmarks.adaptation import QUERIES, Request, bundled, draw_request
from benchmarks.output import write_json
from benchmarks.training import device_name

SIZES = ((2, 1), (3, 1), (5, 1), (5, 5), (20, 1), (20, 5), (100, 1))
"""Ways and shots."""
MOST_STEPS = Settings.model_fields["max_steps"].default
SINGLY = 8
"""Every so many queries one is also asked by itself."""
COMPANY = 8
"""Requests at the same time."""


@dataclass(frozen=True)
class Row:
    """The largest difference of a probability from that of the request alone, of all its tasks."""

    device: str
    ways: int
    shots: int
    steps: int
    tasks: int
    in_company: float
    on_one_thread: float
    """0 on a GPU, which has no threads."""
    query_by_query: float
    in_another_order: float


def measure(
    models: Path, device: torch.device, sizes: Sequence[tuple[int, int]], rounds: int
) -> Iterator[Row]:
    """Two rows for each size, of `rounds` times as many tasks as keep each other company."""
    model = bundled(models)
    computer = Computer(model, device, max(ways for ways, _ in sizes), COMPANY)
    computer.record()
    for (ways, shots), steps in product(sizes, (model.card.steps, MOST_STEPS)):
        furthest = np.zeros(4)
        for first in range(0, rounds * COMPANY, COMPANY):
            requests = [
                _blended(draw_request(model, ways, shots, first + number), first + number)
                for number in range(COMPANY)
            ]
            ask = partial(_answers, computer, steps)
            alone = [ask([request])[0] for request in requests]
            single = alone
            if device.type == "cpu":
                with one_thread():
                    single = [ask([request])[0] for request in requests]
            found = (
                _furthest(zip(alone, ask(requests), strict=True)),
                _furthest(zip(alone, single, strict=True)),
                _furthest(
                    (answers[::SINGLY], _query_by_query(computer, steps, request))
                    for answers, request in zip(alone, requests, strict=True)
                ),
                _furthest(
                    (answers, _reordered(ask, request))
                    for answers, request in zip(alone, requests, strict=True)
                ),
            )
            furthest = np.maximum(furthest, found)
        tasks = rounds * COMPANY
        yield Row(device_name(device), ways, shots, steps, tasks, *furthest.tolist())


def _blended(request: Request, seed: int) -> Request:
    """The same with every other query laid over one of the next class."""
    rng, queries = np.random.default_rng(seed), request.query
    share = rng.uniform(0.3, 0.7, (len(queries), 1, 1, 1)).astype(np.float32)
    share[::2] = 1
    next_class = np.roll(queries, -QUERIES, axis=0)  # they lie class by class
    return replace(request, query=share * queries + (1 - share) * next_class)


def _answers(computer: Computer, steps: int, requests: Sequence[Request]) -> list[Floats]:
    """Probabilities (Q, N) of each request; all are computed together where the device does so."""
    supports, queries = [each.support for each in requests], [each.query for each in requests]
    adapted = computer.adapt(supports, steps, queries)
    return [each.answers.probabilities for each in adapted if each.answers is not None]


def _query_by_query(computer: Computer, steps: int, request: Request) -> Floats:
    [(phi, _, _)] = computer.adapt([request.support], steps)
    singly = [computer.predict([(phi, one[None])])[0] for one in request.query[::SINGLY]]
    return np.concatenate([answers.probabilities for answers in singly])


def _reordered(ask: Callable[[Sequence[Request]], list[Floats]], request: Request) -> Floats:
    """The answers with the first class as the last, put back into the order of the request."""
    inputs, labels, ways = request.support.inputs, request.support.labels, request.support.ways
    order = np.roll(np.arange(ways), 1)
    support = SupportSet(inputs[::-1].copy(), order[labels[::-1]], ways)
    return ask([replace(request, support=support)])[0][:, order]


def _furthest(pairs: Iterable[tuple[Floats, Floats]]) -> float:
    return float(np.max([np.abs(one - other).max() for one, other in pairs]))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"), metavar="FOLDER")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=2, help=f"of {COMPANY} tasks each")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    options = parser.parse_args(arguments)
    device = choose_device(options.device)
    rows = list(measure(options.models, device, SIZES, options.rounds))
    kinds = ("in_company", "on_one_thread", "query_by_query", "in_another_order")
    table = Table("ways", "shots", "steps", *(kind.replace("_", " ") for kind in kinds))
    for row in rows:
        differences = [f"{getattr(row, kind):.1e}" for kind in kinds]
        table.add_row(str(row.ways), str(row.shots), str(row.steps), *differences)
    Console().print(table)
    write_json(options.json, {"rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
