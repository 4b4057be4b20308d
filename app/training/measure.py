"""Measuring and calibrating a model of the registry on few-shot tasks."""

import re
from pathlib import Path

import torch
from pydantic import ValidationError

from app.data.distributions import Source
from app.data.pools import Pool
from app.errors import ModelNotFound, RecipeError, RegistryError
from app.registry.card import AccuracyFigure, ErrorFigure
from app.registry.registry import LoadedModel, Registry
from app.training.figures import calibrated, measure_figure, with_confidence
from app.training.recipe import Measure, Recipe
from app.training.run import Reporter
from app.training.sources import data_folder, load_data


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
        data_root: the data set's folder, or None for where its recipe has it, else for its usual
            place below `default_root`.
        default_root: the data folder.
        device: where to compute.
        reporter: told of the progress.

    Raises:
        ModelNotFound: there is no such model.
        JobError: its files or the data are broken, or there is no such pool.
    """
    _, model, recipe = open_version(path, device)
    try:
        model.learner.start(model.theta, wanted.ways)
    except ValueError as error:
        raise RecipeError(f"{path} cannot be measured so: {error}") from error
    if wanted.ways < 2 and model.card.task == "classification":
        raise RecipeError(f"{path} tells classes apart: measure it with at least two ways")
    source = load_for(path, model, recipe, data_root, default_root, reporter, exactly=False)
    if pool not in source.parts:
        raise RecipeError(f"there are no {pool!r} classes: use one of {', '.join(source.parts)}")
    return measure_figure(
        model.learner,
        model.theta,
        model.alpha,
        source.parts[pool],
        wanted,
        split=recipe.data.split,
        steps=steps or model.card.steps,
        seed=seed,
        calibration=model.card.calibration,
        reporter=reporter,
    )


def calibrate_version(
    path: Path,
    *,
    data_root: Path | None,
    default_root: Path,
    device: torch.device,
    reporter: Reporter,
) -> Path:
    """Fits a version's confidence on the validation classes of its data and rewrites its card.

    θ and the accuracies stay as they are; how honest the confidence is, is measured anew. Arguments
    as in `measure_model`.

    Returns:
        The version's folder.

    Raises:
        ModelNotFound: there is no such model.
        JobError: its files or the data are broken, or there is nothing to calibrate.
    """
    registry, model, recipe = open_version(path, device)
    source = load_for(path, model, recipe, data_root, default_root, reporter)
    calibration = calibrated(model.learner, model.theta, model.alpha, source, recipe, reporter)
    if calibration is None:
        raise RecipeError(
            f"{path} cannot be calibrated: it is of regression or transductive, or its validation "
            "classes are too few"
        )
    pool = source.parts["test"]
    assert isinstance(pool, Pool)  # as in all classification
    figures = tuple(
        with_confidence(
            figure, model.learner, model.theta, model.alpha, pool, calibration, model.card.steps
        )
        for figure in model.card.figures
        if isinstance(figure, AccuracyFigure)  # there is no other
    )
    change = {"calibration": calibration, "figures": figures}
    return registry.rewrite(model.card.model_copy(update=change))


def open_version(path: Path, device: torch.device) -> tuple[Registry, LoadedModel, Recipe]:
    """A version, ready to answer, where it lies, and the recipe that it was made by.

    Args:
        path: models/<name> for the newest version, or models/<name>/<version>.
        device: where it is to answer.

    Raises:
        ModelNotFound: there is no such model.
        RegistryError: its files are broken, or its card has no valid recipe.
    """
    registry, name, version = _locate(path)
    if not registry.names():
        raise ModelNotFound(f"{path} is not in a folder of models: give models/<name>, as a path.")
    model = registry.load(name, registry.latest(name).version if version is None else version)
    try:
        return registry, model.on(device), Recipe.model_validate(model.card.recipe)
    except ValidationError as error:
        raise RegistryError(f"The card of {path} has no recipe that names its data") from error


def load_for(
    path: Path,
    model: LoadedModel,
    recipe: Recipe,
    data_root: Path | None,
    default_root: Path,
    reporter: Reporter,
    *,
    exactly: bool = True,
) -> Source:
    """The data that a version's recipe names; arguments as in `measure_model`.

    Where classes came or went they are dealt out anew, and those that a version was trained on may
    then be among those that it is tested on. Data that are not those that the version was made with
    are warned of, or where it must be `exactly` those, refused.

    Raises:
        DataError: a file is missing or broken.
        RecipeError: its inputs are not those of the version, or the data are others.
    """
    registry, name, _ = _locate(path)
    folder = data_folder(recipe.data, data_root, registry.root / name, default_root)
    source = load_data(recipe.data, folder, reporter.loading)
    if source.input.shape != model.card.input.shape:
        raise RecipeError(
            f"the inputs in {folder} have the shape {list(source.input.shape)}, and those of "
            f"{path} {list(model.card.input.shape)}"
        )
    if source.digest != model.card.data_digest:
        text = (
            f"the data in {folder} are not those that {path} was made with: classes that it was "
            "trained on may be among those held out"
        )
        if exactly:
            raise RecipeError(f"{text}. Put them back as they were, or make a new version")
        reporter.warning(text)
    return source


def _locate(path: Path) -> tuple[Registry, str, int | None]:
    """The registry, the name and, where the path names one, the version."""
    path = path.resolve()
    if re.match(r"^\d+$", path.name) and path.name not in Registry(path.parent).names():
        return Registry(path.parent.parent), path.parent.name, int(path.name)
    return Registry(path.parent), path.name, None
