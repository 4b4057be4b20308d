"""What a run of the offline job works on, and who is told of it."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from app.data.distributions import Source
from app.errors import CheckpointError
from app.files import write_atomically
from app.learning.learner import Learner
from app.registry.registry import Registry
from app.training.distributed import World
from app.training.recipe import Measure, Recipe

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
MEASURED = "measured.json"
TRAIN_STREAM, VALIDATION_STREAM, TEST_STREAM = 0, 1, 2
"""Second word of the seeds of training, first word of those of validation and figures."""


def write_run_file(path: Path, content: bytes) -> None:
    """Writes a file of a run's folder, atomically; makes the folder where it is missing.

    Raises:
        CheckpointError: it cannot be written; the file before is still whole.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error


class Reporter(Protocol):
    """Who is told how a run goes."""

    def loading(self, name: str, done: int, total: int) -> None:
        """Data is being downloaded or decoded."""

    def iteration(self, done: int, total: int, loss: float, score: float) -> None:
        """A meta-iteration is over; loss and score (accuracy, or error) are running means."""

    def validation(self, line: dict[str, object]) -> None:
        """A line was added to the log."""

    def calibrating(self, done: int, total: int) -> None:
        """Confidence is being fitted: so many sizes of tasks are done."""

    def measuring(self, measure: Measure, done: int) -> None:
        """A figure for the card is being measured."""

    def warning(self, text: str) -> None:
        """Something that the user should know of."""


@dataclass(frozen=True)
class Job:
    """What a run works on."""

    recipe: Recipe
    learner: Learner
    source: Source
    run_dir: Path
    registry: Registry
    device: torch.device
    world: World
    reporter: Reporter
    initial_sha256: str

    @property
    def identity(self) -> str:
        """SHA-256 of recipe, data and first θ: a checkpoint of others is refused."""
        parts = (self.recipe.digest(), self.source.digest, self.initial_sha256)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    @property
    def checkpoint(self) -> Path:
        """Where the state of this run is kept."""
        return self.run_dir / CHECKPOINT


@contextmanager
def reserved(run_dir: Path) -> Iterator[None]:
    """Keeps a run's folder from other processes.

    Raises:
        CheckpointError: another one has it, or it cannot be written to.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder = os.open(run_dir, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{run_dir} cannot be written to: {error.strerror}") from error
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(
                f"{run_dir} belongs to a training that runs now: wait for its end, or give "
                "another folder by --run"
            ) from error
        yield
    finally:
        os.close(folder)
