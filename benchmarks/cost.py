"""What one adaptation costs by ways and shots, on the bundled model, alone on the device.

    pip install -e '.[bench]'
    python -m benchmarks.cost --json FILE

Draws `benchmarks/plots/cost.png`; `benchmarks/README.md` explains it.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from app.devices import choose_device
from app.engine import SupportSet
from app.engine.compute import Computer
from benchmarks.adaptation import bundled
from benchmarks.output import write_json

WAYS = (2, 5, 10, 20, 50, 100)
SHOTS = (1, 5, 20)
MOST_EXAMPLES = 1024
TIMES = 7
PLOT = Path(__file__).parent / "plots" / "cost.png"


@dataclass(frozen=True)
class Cost:
    """One size of task; milliseconds are medians."""

    ways: int
    shots: int
    milliseconds: float


def measure(models: Path, device: torch.device) -> list[Cost]:
    """Every size, smallest first."""
    model = bundled(models)
    computer = Computer(model, device, max(WAYS), 1)
    computer.record()
    rng, found = np.random.default_rng(0), []
    for ways in WAYS:
        for shots in SHOTS:
            if ways * shots > MOST_EXAMPLES:
                continue
            inputs = rng.random((ways * shots, *model.card.input.shape), np.float32)
            support = SupportSet(inputs, np.arange(ways).repeat(shots), ways)
            times = []
            for _ in range(1 + TIMES):
                start = time.perf_counter()
                [(_, losses, _)] = computer.adapt([support], model.card.steps)
                losses.tolist()  # now all is done, on a GPU too
                times.append(1e3 * (time.perf_counter() - start))
            found.append(Cost(ways, shots, statistics.median(times[1:])))
    return found


def draw(costs: Sequence[Cost], path: Path) -> None:
    """Milliseconds by number of examples, a line for each number of shots."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for shots in SHOTS:
        row = [cost for cost in costs if cost.shots == shots]
        examples = [cost.ways * shots for cost in row]
        axis.plot(examples, [cost.milliseconds for cost in row], "o-", label=f"{shots} a class")
    axis.set(xscale="log", yscale="log", xlabel="support examples", ylabel="milliseconds")
    axis.set_title("One adaptation, of 2 to 100 classes", size=10)
    axis.grid(visible=True, which="both", alpha=0.2)
    axis.legend(title="examples")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda[:n]")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the models folder")
    options = parser.parse_args(arguments)
    costs = measure(options.models, choose_device(options.device))
    for cost in costs:
        print(f"{cost.ways}-way {cost.shots}-shot: {cost.milliseconds:.1f} ms")
    draw(costs, PLOT)
    write_json(options.json, {"rows": [asdict(cost) for cost in costs]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
