"""The offline job: from a recipe and data to a new version in the registry."""

import hashlib
import json
import platform
import resource
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import torch

from app.data.distributions import Source, load_source
from app.data.pools import ClassPool, TaskShape
from app.errors import CheckpointError, DataError, ModelNotFound, RecipeError, RegistryError
from app.files import write_atomically
from app.learning.heads import LinearHead, Params
from app.learning.learner import Learner
from app.learning.networks import network_arguments
from app.learning.outcome import Outcome
from app.registry.card import Card, InputSpec
from app.registry.registry import Registry, build_learner, encode_theta
from app.training.checkpoint import restore_checkpoint, save_checkpoint
from app.training.distributed import World
from app.training.evaluate import Evaluation, evaluate, examples_to_device, to_device
from app.training.figures import figure
from app.training.interrupts import interrupts_held
from app.training.recipe import Measure, PretrainingStage, Recipe
from app.training.state import (
    State,
    initial_state,
    meta_gradient,
    outer_step,
    pretraining_gradient,
)

CHECKPOINT = "checkpoint.safetensors"
LOG = "log.jsonl"
TRAIN_STREAM, VALIDATION_STREAM, TEST_STREAM = 0, 1, 2
"""Second word of the seeds of training, first word of those of validation and figures."""
ALONE = World()
SMOOTHING = 0.98
"""Decay of the running means that are shown: about the last fifty meta-iterations."""


class Reporter(Protocol):
    """Who is told how a run goes."""

    def loading(self, name: str, done: int, total: int) -> None:
        """Data is being downloaded or decoded."""

    def iteration(self, done: int, total: int, loss: float, score: float) -> None:
        """A meta-iteration is over; loss and score (accuracy, or error) are running means."""

    def validation(self, line: dict[str, object]) -> None:
        """A line was added to the log."""

    def measuring(self, measure: Measure, done: int) -> None:
        """A figure for the card is being measured."""


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


def train(
    recipe: Recipe,
    *,
    data_dir: Path,
    run_dir: Path,
    models_dir: Path,
    device: torch.device,
    reporter: Reporter,
    world: World = ALONE,
) -> Path:
    """Meta-trains θ, from the run's checkpoint where there is one, and writes the version.

    An interrupted run, however it ended, goes on from its last checkpoint and then gives the same θ
    as one that was not interrupted: on the same machine, on its CPU, with the same number of
    threads and processes. A KeyboardInterrupt leaves a checkpoint at the iteration where it came.

    Args:
        recipe: how θ is made.
        data_dir: where the data set lies.
        run_dir: where checkpoint and log are kept.
        models_dir: the registry's folder.
        device: where to compute.
        reporter: who is told.
        world: the processes that share the work; only the leading one writes and reports.

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
    data = recipe.data
    with world.leader_first():  # who downloads and decodes it; the others find it ready
        source = load_source(data.distribution, data.split, data_dir, reporter.loading)
    try:
        learner = build_learner(
            source.input, recipe.network.model_dump(), recipe.head, recipe.inner.temperature
        )
    except ValueError as error:
        raise RecipeError(f"The recipe's [network] cannot be built: {error}") from error
    _check_fit(recipe, source, world)
    if recipe.pretrains and learner.transductive and world.size > 1:
        raise RecipeError(
            "Batch norm takes its statistics over a process's own part of the pictures: pre-train "
            "it on one process."
        )
    initial, sha256 = _initial_theta(recipe, learner, source.input, models_dir / recipe.name)
    job = Job(recipe, learner, source, run_dir, registry, device, world, reporter, sha256)
    state = initial_state(recipe, learner, device, classes=_classes(job), initial=initial)
    restored = job.checkpoint.exists()
    world.wait()  # no process may look for the checkpoint once the leading one has written it
    if restored:
        restore_checkpoint(job.checkpoint, state, job.identity)
    else:  # at once, so that a folder that cannot be written to costs no work
        _keep(job, state)
    _meta_train(job, state, validated=_cut_log(job, state.iteration) if world.leads else 0)
    if world.leads:
        _publish(job, state)
    world.wait()
    return registry.folder(recipe.name, recipe.version)


def measure(job: Job, state: State, part: str, wanted: Measure, stream: int) -> Evaluation:
    """How well the run's θ does on tasks of a part of the data."""
    return evaluate(
        job.learner,
        {name: value.detach() for name, value in state.theta.items()},
        {name: value.detach() for name, value in state.alpha.items()},
        job.source.parts[part],
        ways=wanted.ways,
        shots=wanted.shots,
        queries=wanted.queries,
        tasks=wanted.tasks,
        steps=job.recipe.inner.steps,
        seed=stream,
        progress=lambda done: job.reporter.measuring(wanted, done),
    )


def _initial_theta(
    recipe: Recipe, learner: Learner, spec: InputSpec, folder: Path
) -> tuple[Params, str]:
    """The parameters that the recipe begins with, and the SHA-256 of the θ they are of."""
    if recipe.initial is None:
        return {}, ""
    path = (folder / recipe.initial).resolve()
    if not path.name.isdecimal():
        raise RecipeError(f"initial = {recipe.initial!r} is no version: end it with its number")
    try:
        model = Registry(path.parent.parent).load(path.parent.name, int(path.name))
    except ModelNotFound as error:
        raise RecipeError(f"initial = {recipe.initial!r} is not there: {error}") from error
    ours, theirs = (
        json.dumps(network_arguments(**network), sort_keys=True)
        for network in (recipe.network.model_dump(), model.card.network)
    )
    if (ours, spec) != (theirs, model.card.input):
        raise RecipeError(
            f"initial = {recipe.initial!r} is of another network, {theirs} for {model.card.input}: "
            f"the recipe's is {ours} for {spec}"
        )
    fresh = learner.initial(recipe.seed)
    same = {name: value for name, value in model.theta.items() if value.shape == fresh[name].shape}
    return same, model.card.theta_sha256


def _classes(job: Job) -> int:
    """How many classes pre-training tells apart, 0 without pre-training."""
    pool = job.source.parts["train"]
    if not job.recipe.pretrains or not isinstance(pool, ClassPool):
        return 0
    return pool.augmented_classes(job.recipe.data.augmentation())


def _check_fit(recipe: Recipe, source: Source, world: World) -> None:
    """Draws the largest tasks of every kind, so that no run fails late for want of data."""
    wanted = [("train", stage.shape()) for stage in recipe.task_stages]
    for part, each in [("validation", recipe.validation), *(("test", f) for f in recipe.figures)]:
        wanted.append((part, TaskShape((each.ways, each.ways), (each.shots, each.shots), 1)))
    for part, shape in wanted:
        try:
            source.parts[part].sample(shape, 1, (0,))
        except DataError as error:
            raise RecipeError(f"The recipe does not fit the {part} classes: {error}") from error
    for stage in recipe.stages:
        world.part(stage.pictures if isinstance(stage, PretrainingStage) else stage.tasks)


def _keep(job: Job, state: State) -> None:
    """Writes the checkpoint."""
    if job.world.leads:
        save_checkpoint(job.checkpoint, state, job.identity)


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
    try:
        write_atomically(path, kept.encode())
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
    return last


def _meta_train(job: Job, state: State, validated: int) -> None:
    """Runs the iterations that are left; the log holds validations up to `validated`."""
    recipe, leads = job.recipe, job.world.leads
    began = time.monotonic() - state.wall_seconds
    try:
        if leads and state.iteration % recipe.validation.every == 0 and state.iteration > validated:
            _validate(job, state)  # the run ended between checkpoint and log
        while state.iteration < recipe.iterations:
            outcome = _gradient(job, state)
            with interrupts_held():
                outer_step(recipe, state)
                state.wall_seconds = time.monotonic() - began
                state.peak_memory_bytes = max(state.peak_memory_bytes, peak_memory(job.device))
                state.loss = _running(state.loss, outcome.loss.item())
                state.score = _running(state.score, outcome.score.item())
            if leads:
                job.reporter.iteration(state.iteration, recipe.iterations, state.loss, state.score)
            if leads and state.iteration % recipe.validation.every == 0:
                _keep(job, state)
                _validate(job, state)
    except KeyboardInterrupt:
        _keep(job, state)
        raise
    _keep(job, state)


def _gradient(job: Job, state: State) -> Outcome:
    """Draws this process's part of a meta-batch and sets `grad` to that of the whole."""
    stage, done = job.recipe.stage_at(state.iteration)
    seed = (job.recipe.seed, TRAIN_STREAM, state.iteration)
    source, augmentation = job.source.parts["train"], job.recipe.data.augmentation()
    if isinstance(stage, PretrainingStage):
        assert isinstance(source, ClassPool)  # by the recipe's rules
        part = job.world.part(stage.pictures)
        examples = source.sample_pictures(stage.pictures, seed, augmentation, part)
        outcome = pretraining_gradient(
            job.learner, state, examples_to_device(examples, job.device), total=stage.pictures
        )
    else:
        part = job.world.part(stage.tasks)
        tasks = source.sample(stage.shape(), stage.tasks, seed, augmentation, part)
        tasks = to_device(tasks, job.device)
        outcome = meta_gradient(job.learner, state, stage, tasks, total=stage.tasks, done=done)
    gradients = [value.grad for value in state.parameters.values() if value.grad is not None]
    job.world.add_up([*gradients, *outcome])
    return outcome


def peak_memory(device: torch.device) -> int:
    """Most bytes that this process has held so far, on a GPU those of its own memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else SMOOTHING * mean + (1 - SMOOTHING) * value


def _validate(job: Job, state: State) -> None:
    """Adds a line to the log, about the iterations so far."""
    assert state.loss is not None
    assert state.score is not None
    result = measure(job, state, "validation", job.recipe.validation, VALIDATION_STREAM)
    name, scale = ("mse", 1) if result.nearest_class_mean is None else ("accuracy", 100)
    line = {
        "iteration": state.iteration,
        "wall_seconds": round(state.wall_seconds, 1),
        "loss": state.loss,
        name: scale * state.score,
        f"validation_{name}": result.mean,
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


def _publish(job: Job, state: State) -> None:
    """Measures the card's figures on the test classes and writes the version."""
    recipe = job.recipe
    figures = [
        figure(job.learner, recipe.data.split, wanted, TEST_STREAM, result)
        for wanted in recipe.figures
        for result in [measure(job, state, "test", wanted, TEST_STREAM)]
    ]
    stages = recipe.task_stages
    judged_on = recipe.validation  # pre-training draws no tasks
    content = encode_theta(state.theta, state.alpha)
    card = Card(
        name=recipe.name,
        version=recipe.version,
        description=recipe.description,
        task="regression" if isinstance(job.learner.head, LinearHead) else "classification",
        input=job.source.input,
        network=network_arguments(**recipe.network.model_dump()),
        head=recipe.head,
        inner_temperature=recipe.inner.temperature,
        steps=recipe.inner.steps,
        alpha={
            name: tuple(value.flatten(1).mean(1).tolist() if value.ndim > 1 else value.tolist())
            for name, value in state.alpha.items()
        },
        trained_ways=_span([stage.ways for stage in stages] or [(judged_on.ways,) * 2]),
        trained_shots=_span([stage.shots for stage in stages] or [(judged_on.shots,) * 2]),
        theta_sha256=hashlib.sha256(content).hexdigest(),
        theta_bytes=len(content),
        parameters=sum(value.numel() for value in state.theta.values()),
        created_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        recipe=recipe.as_dict(),
        seed=recipe.seed,
        data_digest=job.source.digest,
        iterations=state.iteration,
        wall_seconds=round(state.wall_seconds, 1),
        peak_memory_bytes=state.peak_memory_bytes,
        made_with={
            "innerloop": version("innerloop"),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "device": str(job.device),
            "threads": str(torch.get_num_threads()),
            "processes": str(job.world.size),
        },
        figures=tuple(figures),
    )
    job.registry.save(card, content)


def _span(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)
