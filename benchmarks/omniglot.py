"""One θ on every size of task, and on tasks far from what it was meta-trained on.

    python -m benchmarks.omniglot --model models/omniglot --json FILE

Accuracy by inner step on the 20 evaluation alphabets, beside the nearest class mean of θ's own
features, with the calibration error and the AUROC of the outlier probability: for the table of
sizes, for tasks whose classes are all of one alphabet, and for families of tasks away from the
training alphabets: strokes made thin or thick, which the recipe's `stroke` comes near to, and what
no augmentation makes, characters turned by 45 degrees, ink and ground swapped, and, where it is
there, photographs of mini-ImageNet's test classes in grey. And with larger inner steps of the
network than were learned, which shows whether there is more for them to gain.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from app.data.augment import Deformations, deform
from app.data.images import WHITE, prepare_image, to_float
from app.data.mini_imagenet import load_mini_imagenet
from app.data.omniglot import INPUT, load_omniglot
from app.data.pools import ClassPool
from app.errors import JobError
from app.learning.learner import NETWORK
from app.registry.registry import LoadedModel
from app.settings import Settings
from app.training.figures import measure_figure
from app.training.measure import open_version
from app.training.progress import ConsoleReporter
from app.training.recipe import Measure
from benchmarks.output import write_json

SPLIT = "background/evaluation"
SEED = 2
QUERIES = 15
TABLE = ((5, 1), (5, 5), (20, 1), (20, 5), (50, 1), (100, 1))
"""Ways and shots."""
FAR = ((5, 1), (5, 5))
STRONGER = (3, 10)
"""What the network's step sizes are multiplied by."""
MANY_WAYS = 20
"""From so many ways on a fifth of the tasks are drawn."""
TURN = 45.0
Images = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Row:
    """What was measured on one size of task of one family; accuracies in percent."""

    family: str
    ways: int
    shots: int
    tasks: int
    accuracy: float
    confidence_interval_95: tuple[float, float]
    accuracy_by_step: tuple[float, ...]
    nearest_class_mean: float
    calibration_error: float | None
    outlier_auroc: float | None


def measure(model: LoadedModel, pool: ClassPool, family: str, wanted: Measure) -> Row:
    """A row of one pool."""
    with ConsoleReporter(silent=True) as reporter:
        figure = measure_figure(
            model.learner,
            model.theta,
            model.alpha,
            pool,
            wanted,
            split=SPLIT,
            steps=model.card.steps,
            seed=SEED,
            calibration=model.card.calibration,
            reporter=reporter,
        )
    told = figure.model_dump()
    names = [name for name in Row.__dataclass_fields__ if name != "family"]
    return Row(family, **{name: told[name] for name in names})


def within_alphabets(model: LoadedModel, pool: ClassPool, ways: int, tasks: int) -> Row:
    """Tasks of characters of one alphabet each, the alphabets weighing the same."""
    alphabets = dict.fromkeys(name.split("/")[0] for name in pool.names)
    rows = []
    for alphabet in alphabets:
        chosen = [row for row, name in enumerate(pool.names) if name.split("/")[0] == alphabet]
        if len(chosen) >= ways:
            part = ClassPool(pool.images[chosen], tuple(pool.names[row] for row in chosen))
            size = Measure(ways=ways, shots=1, queries=QUERIES, tasks=tasks)
            rows.append(measure(model, part, "within one alphabet", size))
    spread = 1.96 * float(np.std([row.accuracy for row in rows], ddof=1)) / len(rows) ** 0.5
    mean = fmean(row.accuracy for row in rows)
    return replace(
        rows[0],
        tasks=tasks * len(rows),
        accuracy=round(mean, 2),
        confidence_interval_95=(round(mean - spread, 2), round(mean + spread, 2)),
        accuracy_by_step=tuple(
            round(fmean(step), 2)
            for step in zip(*(row.accuracy_by_step for row in rows), strict=True)
        ),
        nearest_class_mean=round(fmean(row.nearest_class_mean for row in rows), 2),
        calibration_error=None,
        outlier_auroc=None,
    )


def stronger(model: LoadedModel, factor: int) -> LoadedModel:
    """The same model with larger inner steps of its network."""
    alpha = {
        name: factor * value if name.startswith(NETWORK) else value
        for name, value in model.alpha.items()
    }
    return replace(model, alpha=alpha)


def families(pool: ClassPool, data_dir: Path) -> Iterator[tuple[str, ClassPool]]:
    """Families of tasks far from those of meta-training, by name."""
    changes: dict[str, Callable[[Images], Images]] = {
        "thin strokes": _thin,
        "thick strokes": lambda images: WHITE - _thin(WHITE - images),
        "turned by 45 degrees": _turned,
        "ink and ground swapped": lambda images: WHITE - images,
    }
    for name, change in changes.items():
        yield name, replace(pool, images=change(pool.images))
    if (data_dir / "mini-imagenet").is_dir():
        photographs = load_mini_imagenet(data_dir / "mini-imagenet", lambda *_: None)["test"]
        yield "grey photographs", ClassPool(_grey(photographs.images[:, :40]), photographs.names)


def _thin(images: Images) -> Images:
    """Each pixel the least of it and its neighbours below and to the right."""
    padded = np.pad(images, [(0, 0)] * (images.ndim - 2) + [(0, 1), (0, 1)], mode="edge")
    right, below = padded[..., :-1, 1:], padded[..., 1:, :-1]
    thin: Images = np.minimum(np.minimum(images, right), below)
    return thin


def _turned(images: Images) -> Images:
    angle = np.deg2rad(TURN)
    matrix = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]])
    matrices = np.broadcast_to(matrix.astype(np.float32), (1, *images.shape[:2], 2, 3)).copy()
    turned = deform(torch.from_numpy(to_float(images))[None], Deformations(matrices, None, None))[0]
    return (255 * turned).round().numpy().astype(np.uint8)


def _grey(images: Images) -> Images:
    """Photographs (classes, pictures, 3, H, W) as the model's input."""
    pictures = images.reshape(-1, *images.shape[2:]).transpose(0, 2, 3, 1)
    grey = np.stack([prepare_image(Image.fromarray(picture), INPUT) for picture in pictures])
    return grey.reshape(*images.shape[:2], *grey.shape[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.omniglot", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("models/omniglot"))
    parser.add_argument("--tasks", type=int, default=1000, help="of each size below 20 ways")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    options = parser.parse_args(arguments)
    data_dir = Settings().data_dir
    errors = Console(stderr=True)
    rows: list[Row] = []
    try:
        _, model, _ = open_version(options.model, torch.device("cpu"))
        pool = load_omniglot(data_dir / "omniglot", SPLIT)["test"]
        fewer = max(2, options.tasks // 5)
        for ways, shots in TABLE:
            tasks = fewer if ways >= MANY_WAYS else options.tasks
            wanted = Measure(ways=ways, shots=shots, queries=QUERIES, tasks=tasks)
            rows.append(measure(model, pool, "evaluation alphabets", wanted))
            errors.print(rows[-1])
        rows.append(within_alphabets(model, pool, MANY_WAYS, max(2, fewer // 10)))
        errors.print(rows[-1])
        larger = ((f"network's α times {n}", stronger(model, n), pool) for n in STRONGER)
        others = ((name, model, far) for name, far in families(pool, data_dir))
        for name, changed, part in chain(larger, others):
            for ways, shots in FAR:
                wanted = Measure(ways=ways, shots=shots, queries=QUERIES, tasks=fewer)
                rows.append(measure(changed, part, name, wanted))
                errors.print(rows[-1])
    except JobError as error:
        errors.print(str(error), markup=False)
        return 1
    Console().print(table(rows))
    result = {
        "model": model.card.name,
        "version": model.card.version,
        "theta_sha256": model.card.theta_sha256,
        "rows": [asdict(row) for row in rows],
    }
    write_json(options.json, result)
    return 0


def table(rows: Sequence[Row]) -> Table:
    """The rows for a person."""
    shown = Table("family", "tasks", "by step", "nearest class mean", "ECE", "AUROC")
    for row in rows:
        shown.add_row(
            row.family,
            f"{row.ways}-way {row.shots}-shot",
            ", ".join(f"{accuracy:.2f}" for accuracy in row.accuracy_by_step),
            f"{row.nearest_class_mean:.2f}",
            *("" if v is None else f"{v:.3f}" for v in (row.calibration_error, row.outlier_auroc)),
        )
    return shown


if __name__ == "__main__":
    sys.exit(main())
