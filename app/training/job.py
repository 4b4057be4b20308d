"""The offline job: from a recipe and data to a new version in the registry."""

import json
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

from app.data.distributions import Source
from app.data.pools import Pool, TaskShape
from app.errors import CheckpointError, DataError, ModelNotFound, RecipeError, RegistryError
from app.learning.conduct import check_second_derivative
from app.learning.heads import Params
from app.learning.learner import Learner
from app.learning.networks import network_arguments
from app.learning.outcome import Outcome
from app.learning.own_network import is_own
from app.learning.tasks import Examples, Task
from app.registry.card import InputSpec
from app.registry.registry import Registry, build_learner
from app.training.checkpoint import restore_checkpoint, save_checkpoint
from app.training.distributed import World
from app.training.draws import drawn
from app.training.evaluate import Evaluation, evaluate, examples_to_device, to_device
from app.training.interrupts import interrupts_held
from app.training.publish import publish
from app.training.recipe import Measure, PretrainingStage, Recipe
from app.training.run import LOG, VALIDATION_STREAM, Job, Reporter, reserved, write_run_file
from app.training.sources import load_data
from app.training.state import (
    State,
    initial_state,
    meta_gradient,
    outer_step,
    pretraining_gradient,
)

ALONE = World()
SMOOTHING = 0.98
"""Decay of the running means that are shown: about the last fifty meta-iterations."""


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
    with world.leader_first():  # who downloads and decodes it; the others find it ready
        source = load_data(recipe.data, data_dir, reporter.loading)
    try:
        learner = build_learner(
            source.input, recipe.network.model_dump(), recipe.head, recipe.inner.temperature
        )
        if is_own(recipe.network.name) and recipe.second_order:
            check_second_derivative(learner.network, source.input.shape)
    except ValueError as error:
        raise RecipeError(f"The recipe's [network] cannot be built: {error}") from error
    _check_fit(recipe, source, world)
    if learner.transductive and recipe.ragged:
        raise RecipeError(
            "The recipe's [network] takes statistics over the batch, and would take padding into "
            "them: give `shots` as one number, like [1, 1]"
        )
    if recipe.pretrains and learner.transductive and world.size > 1:
        raise RecipeError(
            "Batch norm takes its statistics over a process's own part of the pictures: pre-train "
            "it on one process."
        )
    initial, sha256 = _initial_theta(recipe, learner, source.input, models_dir / recipe.name)
    job = Job(recipe, learner, source, run_dir, registry, device, world, reporter, sha256)
    state = initial_state(recipe, learner, device, classes=_classes(job), initial=initial)
    learner.to(device)
    with reserved(run_dir) if world.leads else nullcontext():
        restored = job.checkpoint.exists()
        world.wait()  # no process may look for the checkpoint once the leading one has written it
        if restored:
            restore_checkpoint(job.checkpoint, state, job.identity)
        else:  # at once, so that a folder that cannot be written to costs no work
            _keep(job, state)
        _meta_train(job, state, validated=_cut_log(job, state.iteration) if world.leads else 0)
        if world.leads:
            publish(job, state)
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
    if not job.recipe.pretrains or not isinstance(pool, Pool):
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
    write_run_file(path, kept.encode())
    return last


def _meta_train(job: Job, state: State, validated: int) -> None:
    """Runs the iterations that are left; the log holds validations up to `validated`."""
    recipe, leads = job.recipe, job.world.leads
    began = time.monotonic() - state.wall_seconds
    batches = drawn(job, state.iteration)
    try:
        if leads and state.iteration % recipe.validation.every == 0 and state.iteration > validated:
            _validate(job, state)  # the run ended between checkpoint and log
        for batch in batches:
            outcome = _gradient(job, state, batch)
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
    finally:
        batches.close()
    _keep(job, state)


def _gradient(job: Job, state: State, batch: Task | Examples) -> Outcome:
    """Sets `grad` to that of the whole meta-batch, of which `batch` is this process's part."""
    stage, done = job.recipe.stage_at(state.iteration)
    if isinstance(stage, PretrainingStage):
        assert isinstance(batch, Examples)
        outcome = pretraining_gradient(
            job.learner, state, examples_to_device(batch, job.device), total=stage.pictures
        )
    else:
        assert isinstance(batch, Task)
        tasks = to_device(batch, job.device)
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
