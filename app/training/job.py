"""The offline job: from a recipe and data to a new version in the registry."""

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

from app.data.omniglot import INPUT, data_digest, load_omniglot
from app.data.pools import ClassPool, TaskShape, sample_tasks
from app.errors import CheckpointError, DataError, RecipeError, RegistryError
from app.files import write_atomically
from app.learning.learner import Learner
from app.learning.networks import network_arguments
from app.registry.card import AccuracyFigure, Card
from app.registry.registry import Registry, build_learner, encode_theta
from app.training.checkpoint import restore_checkpoint, save_checkpoint
from app.training.evaluate import Accuracy, evaluate, to_device
from app.training.interrupts import interrupts_held
from app.training.recipe import Measure, Recipe
from app.training.state import State, initial_state, meta_gradient, outer_step

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
TRAIN_STREAM, VALIDATION_STREAM, TEST_STREAM = 0, 1, 2
"""Second word of the seeds of training, first word of those of validation and figures."""
SMOOTHING = 0.98
"""Decay of the running means that are shown: about the last fifty meta-iterations."""


class Reporter(Protocol):
    """Who is told how a run goes."""

    def loading(self, name: str, done: int, total: int) -> None:
        """Data is being downloaded or decoded."""

    def iteration(self, done: int, total: int, loss: float, accuracy: float) -> None:
        """A meta-iteration is over; loss and accuracy (in [0, 1]) are running means."""

    def validation(self, line: dict[str, object]) -> None:
        """A line was added to the log."""

    def measuring(self, measure: Measure, done: int) -> None:
        """A figure for the card is being measured."""


@dataclass(frozen=True)
class Job:
    """What a run works on."""

    recipe: Recipe
    learner: Learner
    pools: dict[str, ClassPool]
    run_dir: Path
    registry: Registry
    device: torch.device
    reporter: Reporter
    data_digest: str

    @property
    def identity(self) -> str:
        """SHA-256 of the recipe and the data: a checkpoint of others is refused."""
        return hashlib.sha256((self.recipe.digest() + self.data_digest).encode()).hexdigest()

    @property
    def checkpoint(self) -> Path:
        """Where the state of this run is kept."""
        return self.run_dir / CHECKPOINT


def load_pools(
    recipe: Recipe, data_dir: Path, progress: Callable[[str, int, int], None]
) -> dict[str, ClassPool]:
    """The pools `train`, `validation` and `test` that a recipe names.

    Raises:
        DataError: a file is missing or broken; the message names it.
    """
    return load_omniglot(data_dir, recipe.data.split, progress)


def train(
    recipe: Recipe,
    *,
    data_dir: Path,
    run_dir: Path,
    models_dir: Path,
    device: torch.device,
    reporter: Reporter,
) -> Path:
    """Meta-trains θ, from the run's checkpoint where there is one, and writes the version.

    An interrupted run, however it ended, goes on from its last checkpoint and then gives the same θ
    as one that was not interrupted: on the same machine, on its CPU, with the same number of
    threads. A KeyboardInterrupt leaves a checkpoint at the iteration where it came.

    Args:
        recipe: how θ is made.
        data_dir: where the data set lies.
        run_dir: where checkpoint and log are kept.
        models_dir: the registry's folder.
        device: where to compute.
        reporter: who is told.

    Returns:
        The folder of the new version.

    Raises:
        JobError: the recipe, the data, the checkpoint or the registry is not as needed, or the run
            diverged; the last good checkpoint is kept.
    """
    registry = Registry(models_dir)
    if recipe.version in registry.versions(recipe.name):
        raise RegistryError(
            f"{registry.folder(recipe.name, recipe.version)} exists already: "
            "raise `version` in the recipe"
        )
    try:
        learner = build_learner(INPUT, recipe.network.model_dump(), recipe.head)
    except ValueError as error:
        raise RecipeError(f"The recipe's [network] cannot be built: {error}") from error
    pools = load_pools(recipe, data_dir, reporter.loading)
    _check_fit(recipe, pools)
    digest = data_digest(pools)
    job = Job(recipe, learner, pools, run_dir, registry, device, reporter, digest)
    state = initial_state(recipe, learner, device)
    if job.checkpoint.exists():
        restore_checkpoint(job.checkpoint, state, job.identity)
    else:  # at once, so that a folder that cannot be written to costs no work
        save_checkpoint(job.checkpoint, state, job.identity)
    _meta_train(job, state, validated=_cut_log(job, state.iteration))
    return _publish(job, state)


def measure(
    job: Job, state: State, pool: str, wanted: Measure, stream: int, steps: int
) -> Accuracy:
    """Accuracy of the run's θ on tasks of a pool."""
    return evaluate(
        job.learner,
        {name: value.detach() for name, value in state.theta.items()},
        {name: value.detach() for name, value in state.alpha.items()},
        job.pools[pool],
        ways=wanted.ways,
        shots=wanted.shots,
        queries=wanted.queries,
        tasks=wanted.tasks,
        steps=steps,
        seed=stream,
        progress=lambda done: job.reporter.measuring(wanted, done),
    )


def _check_fit(recipe: Recipe, pools: dict[str, ClassPool]) -> None:
    """Draws the largest tasks of every kind, so that no run fails late for want of data."""
    wanted = [("train", stage.shape()) for stage in recipe.stages]
    for pool, part in [("validation", recipe.validation), *(("test", f) for f in recipe.figures)]:
        wanted.append((pool, TaskShape((part.ways, part.ways), (part.shots, part.shots), 1)))
    for pool, shape in wanted:
        try:
            sample_tasks(pools[pool], shape, 1, (0,))
        except DataError as error:
            raise RecipeError(f"The recipe does not fit the {pool} classes: {error}") from error


def _cut_log(job: Job, iteration: int) -> int:
    """Drops of the log what comes after an iteration, and a line that was not written to its end.

    Returns:
        The iteration of the last line, 0 where there is none.
    """
    path, kept, last = job.run_dir / LOG, "", 0
    if not path.exists():
        return last
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            at = json.loads(line)["iteration"]
        except ValueError:
            continue
        if at <= iteration:
            kept, last = f"{kept}{line}\n", at
    write_atomically(path, kept.encode())
    return last


def _meta_train(job: Job, state: State, validated: int) -> None:
    """Runs the iterations that are left; the log holds validations up to `validated`."""
    recipe, augmentation = job.recipe, job.recipe.data.augmentation()
    began = time.monotonic() - state.wall_seconds
    try:
        if state.iteration % recipe.validation.every == 0 and state.iteration > validated:
            _validate(job, state)  # the run ended between checkpoint and log
        while state.iteration < recipe.iterations:
            stage, _ = recipe.stage_at(state.iteration)
            seed = (recipe.seed, TRAIN_STREAM, state.iteration)
            tasks = sample_tasks(job.pools["train"], stage.shape(), stage.tasks, seed, augmentation)
            outcome = meta_gradient(job.learner, state, stage, to_device(tasks, job.device))
            with interrupts_held():
                outer_step(recipe, state)
                state.wall_seconds = time.monotonic() - began
                state.loss = _running(state.loss, outcome.loss.item())
                state.accuracy = _running(state.accuracy, outcome.accuracy.item())
            job.reporter.iteration(state.iteration, recipe.iterations, state.loss, state.accuracy)
            if state.iteration % recipe.validation.every == 0:
                save_checkpoint(job.checkpoint, state, job.identity)
                _validate(job, state)
    except KeyboardInterrupt:
        save_checkpoint(job.checkpoint, state, job.identity)
        raise
    save_checkpoint(job.checkpoint, state, job.identity)


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else SMOOTHING * mean + (1 - SMOOTHING) * value


def _validate(job: Job, state: State) -> None:
    """Adds a line to the log, about the iterations so far."""
    assert state.loss is not None
    assert state.accuracy is not None
    stage, _ = job.recipe.stage_at(state.iteration - 1)
    wanted = job.recipe.validation
    result = measure(job, state, "validation", wanted, VALIDATION_STREAM, stage.steps)
    line = {
        "iteration": state.iteration,
        "wall_seconds": round(state.wall_seconds, 1),
        "loss": state.loss,
        "accuracy": 100 * state.accuracy,
        "validation_accuracy": result.mean,
        "validation_interval_95": result.interval,
        "validation_by_step": result.by_step,
        "validation_nearest_class_mean": result.nearest_class_mean,
    }
    try:
        with (job.run_dir / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
    except OSError as error:
        raise CheckpointError(f"{job.run_dir / LOG} cannot be written: {error}") from error
    job.reporter.validation(line)


def _publish(job: Job, state: State) -> Path:
    """Measures the card's figures on the test classes and writes the version."""
    recipe = job.recipe
    figures = [
        figure(recipe.data.split, wanted, TEST_STREAM, result)
        for wanted in recipe.figures
        for result in [measure(job, state, "test", wanted, TEST_STREAM, recipe.inner.steps)]
    ]
    content = encode_theta(state.theta, state.alpha)
    card = Card(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        task="classification",
        input=INPUT,
        network=network_arguments(**recipe.network.model_dump()),
        head=recipe.head,
        steps=recipe.inner.steps,
        alpha={name: tuple(value.tolist()) for name, value in state.alpha.items()},
        trained_ways=_span([stage.ways for stage in recipe.stages]),
        trained_shots=_span([stage.shots for stage in recipe.stages]),
        theta_sha256=hashlib.sha256(content).hexdigest(),
        theta_bytes=len(content),
        parameters=sum(value.numel() for value in state.theta.values()),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        recipe=recipe.as_dict(),
        seed=recipe.seed,
        data_digest=job.data_digest,
        iterations=state.iteration,
        wall_seconds=round(state.wall_seconds, 1),
        made_with={
            "innerloop": version("innerloop"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(job.device),
            "threads": str(torch.get_num_threads()),
        },
        figures=tuple(figures),
    )
    return job.registry.save(card, content)


def figure(split: str, wanted: Measure, seed: int, result: Accuracy) -> AccuracyFigure:
    """A measured accuracy as the card keeps it, to two decimals of a percent."""
    return AccuracyFigure(
        split=split,
        protocol="inductive",
        ways=wanted.ways,
        shots=wanted.shots,
        queries=result.queries,
        tasks=wanted.tasks,
        seed=seed,
        accuracy=round(result.mean, 2),
        confidence_interval_95=(round(result.interval[0], 2), round(result.interval[1], 2)),
        accuracy_by_step=tuple(round(value, 2) for value in result.by_step),
        nearest_class_mean=round(result.nearest_class_mean, 2),
    )


def _span(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
