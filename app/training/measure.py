"""Measuring a model of the registry on few-shot tasks."""

import re
from pathlib import Path

import torch
from pydantic import ValidationError

from app.data.distributions import load_source
from app.errors import RecipeError, RegistryError
from app.registry.card import AccuracyFigure, ErrorFigure
from app.registry.registry import Registry
from app.training.evaluate import evaluate
from app.training.figures import figure
from app.training.job import Reporter
from app.training.recipe import Measure, Recipe


def measure_model(
    path: Path,
    wanted: Measure,
    *,
    pool: str,
    steps: int,
    seed: int,
    data_root: Path | None,
    default_root: Path,
    device: torch.device,
    reporter: Reporter,
) -> AccuracyFigure | ErrorFigure:
    """How well a model does, by the protocol of its network, on the data that its recipe names.

    Args:
        path: models/<name> for the newest version, or models/<name>/<version>.
        wanted: the tasks.
        pool: `train`, `validation` or `test`.
        steps: inner steps; 0 takes the model's own.
        seed: the same seed draws the same tasks.
        data_root: the data set's folder, or None for its usual place below `default_root`.
        default_root: the data folder.
        device: where to compute.
        reporter: told of the progress.

    Raises:
        ModelNotFound: there is no such model.
        JobError: its files or the data are broken, or there is no such pool.
    """
    registry, name, version = _locate(path)
    model = registry.load(name, registry.latest(name).version if version is None else version)
    try:
        recipe = Recipe.model_validate(model.card.recipe)
        model.learner.start(model.theta, wanted.ways)
    except ValidationError as error:
        raise RegistryError(f"The card of {path} has no recipe that names its data") from error
    except ValueError as error:
        raise RecipeError(f"{path} cannot be measured so: {error}") from error
    if wanted.ways < 2 and model.card.task == "classification":
        raise RecipeError(f"{path} tells classes apart: measure it with at least two ways")
    folder = data_root or default_root / recipe.data.distribution
    source = load_source(recipe.data.distribution, recipe.data.split, folder, reporter.loading)
    if pool not in source.parts:
        raise RecipeError(f"there are no {pool!r} classes: use one of {', '.join(source.parts)}")
    result = evaluate(
        model.learner,
        {key: value.to(device) for key, value in model.theta.items()},
        {key: value.to(device) for key, value in model.alpha.items()},
        source.parts[pool],
        ways=wanted.ways,
        shots=wanted.shots,
        queries=wanted.queries,
        tasks=wanted.tasks,
        steps=steps or model.card.steps,
        seed=seed,
        progress=lambda done: reporter.measuring(wanted, done),
    )
    return figure(model.learner, recipe.data.split, wanted, seed, result)


def _locate(path: Path) -> tuple[Registry, str, int | None]:
    """The registry, the name and, where the path names one, the version."""
    path = path.resolve()
    if re.match(r"^\d+$", path.name):
        return Registry(path.parent.parent), path.parent.name, int(path.name)
    return Registry(path.parent), path.name, None
