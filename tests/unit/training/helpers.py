"""A tiny run: its recipe, pools of made-up characters, and somebody to report to."""

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from app.data.distributions import Source, load_source
from app.data.omniglot import INPUT
from app.data.pools import ClassPool, data_digest
from app.training import confidence, job, sources
from app.training.distributed import World
from app.training.recipe import Measure, Recipe

TEXT = """
name = "tiny"
version = 1
description = "Made-up characters."
seed = 3
head = "shared-row"
gradient_clip = 10.0

[data]
distribution = "omniglot"
split = "background/evaluation"
symmetries = true
of_class = { degrees = 10.0 }
of_picture = { shift = 0.05 }

[network]
name = "conv"
filters = 4
blocks = 3
groups = 2

[inner]
steps = 2
alpha_head = [0.1, 0.05]
alpha_network = [0.01, 0.005]

[[stages]]
iterations = 4
algorithm = "maml"
steps = 1
ways = [3, 5]
shots = [1, 3]
queries = 2
tasks = 2
learning_rate = 0.01
final_learning_rate = 0.001
alpha_learning_rate = 0.02

[[stages]]
iterations = 3
algorithm = "first-order-maml"
steps = 2
ways = [2, 4]
shots = [1, 2]
queries = 3
tasks = 2
learning_rate = 0.005
alpha_learning_rate = 0.01

[validation]
ways = 3
shots = 1
queries = 3
tasks = 4
every = 2

[[figures]]
ways = 4
shots = 1
queries = 3
tasks = 6

[[figures]]
ways = 3
shots = 2
queries = 2
tasks = 5
"""


FIXED = [
    ('"shared-row"', '"fixed-4"'),
    ("ways = [3, 5]", "ways = [4, 4]"),
    ("ways = [2, 4]", "ways = [4, 4]"),
    ("ways = 3", "ways = 4"),
]
"""Changes that give the tiny recipe a head of four rows."""

SINUSOID = """
name = "tiny"
version = 1
description = "Sinusoids."
seed = 3
head = "linear-1"

[data]
distribution = "sinusoid"
split = "function"

[network]
name = "mlp"
hidden = [8, 8]

[inner]
steps = 2
alpha_head = [0.02]
alpha_network = [0.01]

[[stages]]
iterations = 7
algorithm = "maml"
steps = 1
ways = [1, 1]
shots = [5, 5]
queries = 4
tasks = 5
learning_rate = 0.01

[validation]
ways = 1
shots = 5
queries = 6
tasks = 4
every = 2

[[figures]]
ways = 1
shots = 5
queries = 6
tasks = 5
"""

PRETRAINING = """
iterations = 3
algorithm = "pretraining"
pictures = 6
learning_rate = 0.01
"""
"""A stage of pre-training on classes."""


def recipe(*changes: tuple[str, str], base: str = TEXT) -> Recipe:
    """The tiny recipe, with pieces of its text replaced."""
    return Recipe.model_validate(tomllib.loads(text(*changes, base=base)))


def text(*changes: tuple[str, str], base: str = TEXT) -> str:
    """The text of the tiny recipe, with pieces replaced everywhere."""
    for old, new in changes:
        assert old in base, old
        base = base.replace(old, new)
    return base


def with_stage(stage: str, base: str = TEXT) -> str:
    """The text of the tiny recipe with one stage in place of its own."""
    before, after = base.index("[[stages]]"), base.index("[validation]")
    return f"{base[:before]}[[stages]]\n{stage}\n{base[after:]}"


def write_recipe(models: Path, *changes: tuple[str, str], base: str = TEXT) -> Path:
    """`recipe.toml` in its place in a registry."""
    path = models / "tiny" / "recipe.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text(*changes, base=base))
    return path


def make_pool(classes: int, seed: int, pictures: int = 8) -> ClassPool:
    """Classes of coarse random patterns, under a pattern that differs in every picture.

    An untrained θ tells them apart more often than not, and by far not always.
    """
    rng = np.random.default_rng(seed)
    of_class = rng.uniform(0, 120, (classes, 1, 1, 7, 7))
    of_picture = rng.uniform(0, 135, (classes, pictures, 1, 7, 7))
    images = (of_class + of_picture).repeat(4, axis=-1).repeat(4, axis=-2).astype(np.uint8)
    return ClassPool(images, tuple(f"made-up/{seed}-{number}" for number in range(classes)))


def make_pools() -> dict[str, ClassPool]:
    """The three pools of the tiny run."""
    return {"train": make_pool(12, 1), "validation": make_pool(6, 2), "test": make_pool(6, 3)}


def feed(patch: pytest.MonkeyPatch, pools: dict[str, ClassPool] | None = None) -> list[Path]:
    """Puts pools in place of Omniglot, in runs and in measuring; they are calibrated on few tasks.

    Returns the folders in which the data are then looked for.
    """
    folders = []

    def load(distribution: str, split: str, folder: Path, progress) -> Source:
        folders.append(folder)
        if distribution != "omniglot":
            return load_source(distribution, split, folder, progress)
        given = pools or make_pools()
        return Source(INPUT, given, data_digest(given))

    patch.setattr(sources, "load_source", load)
    patch.setattr(confidence, "CELL_QUERIES", 60)
    return folders


@dataclass
class Recorder:
    """Remembers what it is told; `acts` are called when their iteration is over."""

    acts: dict[int, Callable[[], None]] = field(default_factory=dict)
    measures: Callable[[Measure, int], None] = lambda *_: None
    losses: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    lines: list[dict] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def loading(self, name: str, done: int, total: int) -> None: ...

    def iteration(self, done: int, total: int, loss: float, accuracy: float) -> None:
        self.iterations.append(done)
        self.losses.append(loss)
        self.acts.get(done, lambda: None)()

    def validation(self, line: dict) -> None:
        self.lines.append(line)

    def calibrating(self, done: int, total: int) -> None: ...

    def measuring(self, measure: Measure, done: int) -> None:
        self.measures(measure, done)

    def warning(self, text: str) -> None:
        self.warnings.append(text)


class Killed(BaseException):
    """Ends a run as `kill -9` does: nothing in the code catches it."""


def kill() -> None:
    """Ends the run here."""
    raise Killed


def run(
    recipe: Recipe, folder: Path, reporter: Recorder | None = None, world: World = job.ALONE
) -> Path:
    """Trains by a recipe below a folder: `models`, and `run` for checkpoint and log."""
    return job.train(
        recipe,
        data_dir=folder / "no data",
        run_dir=folder / "run",
        models_dir=folder / "models",
        device=torch.device("cpu"),
        reporter=reporter or Recorder(),
        world=world,
    )
