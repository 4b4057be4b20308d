"""A recipe for one's own pictures, with values that fit what the folder holds."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from app.data.split import split_by_shares
from app.data.survey import Survey, survey
from app.errors import DataError, RecipeError
from app.files import write_atomically
from app.learning.networks import build_network
from app.registry.card import NAME_PATTERN
from app.training.recipe import RECIPE_FILE, load_recipe

SIZES = (28, 32, 48, 64, 84)
"""Heights that pictures are made to; what is larger costs time and hardly helps this network."""
DRAWING_SIDE = 256
"""Longer side, in pixels, up to which ink on paper is taken for a single character or sign."""
SMALL = 48
"""Heights up to which tasks of many classes fit the memory and the patience of a CPU."""
SHARES = (64, 16, 20)
HEAD_STEPS_OF_DRAWINGS, HEAD_STEPS_OF_PHOTOGRAPHS = (38.4, 5.12, 5.12), (6.0, 3.0, 3.0)
"""Inner step sizes of the head times the number of features: those of the omniglot model, and such
that a fresh network's first step does not make it too sure of photographs."""
OF_DRAWINGS = "{ degrees = 15.0, scale = 0.2, shear = 0.2, shift = 0.05 }"
OF_PHOTOGRAPHS = "{ degrees = 5.0, scale = 0.1 }"
"""How much classes are deformed."""
USUAL = 0.9
"""Share of the classes that must have the pictures for the largest tasks."""

RECIPE = """\
# How the model is made: innerloop train {path}
name = {name}
# A version is never overwritten: raise the number to train again.
version = 1
description = {description}
seed = 1
# A head for any number of classes, from two on.
head = "shared-row"

[data]
distribution = "folder"
# Holds a folder of pictures for each class. From this file's folder on, or absolute.
folder = {folder}
# Percent of the classes to train, validate and test on, dealt out by the seed; or "classes.csv", a
# file beside the class folders with the header class,part and one of train, validation and test
# for each class.
split = "{split}"
split_seed = 0
# 1 for grey, 3 for colour.
channels = {channels}
# The height and width that pictures are made to fit.
size = [{size}, {size}]
# true for ink on paper, as in drawings and writing.
dark_on_light = {dark_on_light}
# Turned and mirrored classes as classes of their own: good for signs, wrong for most photographs.
symmetries = {symmetries}
# Random turns in degrees, and scales, slants and shifts as shares: of a class, of each picture.
of_class = {of_class}
of_picture = {{ degrees = 8.0, scale = 0.1, shear = 0.1, shift = 0.05 }}

[network]
name = "conv"
# More filters learn more and cost more, in every request too.
filters = {filters}
# Each block halves the picture.
blocks = 4

[inner]
# Gradient steps of a request, and their first sizes, which meta-training improves.
steps = 3
alpha_head = {alpha_head}
alpha_network = [0.001, 0.001, 0.001]

# First a single inner step. Raise `iterations` as long as the validation accuracy still grows.
[[stages]]
iterations = 4000
algorithm = "maml"
steps = 1
# Each batch of tasks draws its number of classes, and of examples of each, from these ranges.
ways = {ways}
shots = {first_shots}
# Pictures of a class that a task asks about.
queries = {queries}
tasks = 2
learning_rate = {learning_rate}
final_learning_rate = 0.0001
alpha_learning_rate = 0.01

# Then all of them, with as many examples as requests may bring.
[[stages]]
iterations = 500
algorithm = "maml"
steps = 3
ways = {ways}
shots = {shots}
queries = {queries}
tasks = 2
learning_rate = 0.0002
alpha_learning_rate = 0.01

# Tasks of classes that are held out of training, and how often they are looked at.
[validation]
ways = {asked_ways}
shots = 1
tasks = 100
every = 250

# What is measured at the end on the test classes, for the card.
{figures}"""
FIGURE = """\
[[figures]]
ways = {ways}
shots = {shots}
tasks = 600
"""


class New(NamedTuple):
    """A recipe that was written, and why it is so."""

    path: Path
    found: Survey
    size: int
    ways: int
    """Classes of the tasks that it validates and is measured on."""
    left_out: int
    """Classes with too few pictures for its largest tasks."""


class _Tasks(NamedTuple):
    """How large tasks may be."""

    ways: int
    """Training classes that have the pictures for the most shots and the queries."""
    shots: int
    queries: int
    asked: int
    """Ways of the tasks to validate on and to measure."""
    measured: list[int]
    """Shots of the tasks to measure."""


def new_recipe(name: str, folder: Path, models_dir: Path) -> New:
    """Writes `recipe.toml` of a new model for a folder of class folders.

    Args:
        name: of the model.
        folder: where the class folders lie.
        models_dir: the registry's folder.

    Raises:
        RecipeError: there is such a model, the name cannot be one, or the file cannot be written.
        DataError: the folder does not hold what is needed.
    """
    if not re.match(NAME_PATTERN, name):
        raise RecipeError(
            f"{name!r} cannot be a model's name: use up to 63 of a-z, 0-9, - and _, and begin with "
            "a letter or digit"
        )
    path = models_dir / name / RECIPE_FILE
    if path.exists() or (models_dir / name).is_file():
        raise RecipeError(f"{path} exists already: take another name, or edit it")
    found = survey(folder)
    drawings = found.dark_on_light and found.side <= DRAWING_SIDE
    fitting = [size for size in SIZES if size <= found.side]
    size = SIZES[0] if drawings or not fitting else fitting[-1]
    try:
        tasks = _tasks(found.counts)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    place = _place(folder, models_dir, name)
    text = _text(path, place, found, tasks, size, drawings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise RecipeError(f"{path} cannot be written: {error}") from error
    load_recipe(path)
    needed = tasks.shots + tasks.queries
    left_out = sum(count < needed for count in found.counts.values())
    return New(path, found, size, tasks.asked, left_out)


def _tasks(found: Mapping[str, int]) -> _Tasks:
    """The tasks that fit classes of so many pictures.

    Raises:
        DataError: the classes are too few.
    """
    parts = split_by_shares(tuple(found), SHARES, seed=0)
    train, validation, test = ([found[name] for name in names] for names in parts.values())
    usual = sorted(train, reverse=True)[round(USUAL * len(train)) - 1]
    queries = min(4, usual // 2)
    shots = min(5, usual - queries)
    asked = min(5, len(validation), len(test))
    return _Tasks(
        ways=sum(count >= shots + queries for count in train),
        shots=shots,
        queries=queries,
        asked=asked,
        measured=[each for each in (1, 5) if sum(count > each for count in test) >= asked],
    )


def _text(path: Path, folder: str, found: Survey, tasks: _Tasks, size: int, drawings: bool) -> str:
    channels = 1 if found.grey else 3
    filters = 64 if size <= SMALL else 32
    features = build_network((channels, size, size), name="conv", filters=filters).features
    head_steps = HEAD_STEPS_OF_DRAWINGS if drawings else HEAD_STEPS_OF_PHOTOGRAPHS
    return RECIPE.format(
        path=path,
        name=json.dumps(path.parent.name),
        description=json.dumps(
            f"{len(found.counts)} classes of {'drawings' if drawings else 'pictures'}.",
        ),
        folder=json.dumps(folder, ensure_ascii=False),
        split="/".join(map(str, SHARES)),
        channels=channels,
        size=size,
        dark_on_light=json.dumps(found.dark_on_light),
        symmetries=json.dumps(drawings),
        of_class=OF_DRAWINGS if drawings else OF_PHOTOGRAPHS,
        filters=filters,
        alpha_head=[float(f"{step / features:.2g}") for step in head_steps],
        ways=[min(5, tasks.ways), min(20 if size <= SMALL else 10, tasks.ways)],
        first_shots=[1, min(3, tasks.shots)],
        shots=[1, tasks.shots],
        queries=tasks.queries,
        learning_rate=0.002 if drawings else 0.001,
        asked_ways=tasks.asked,
        figures="\n".join(FIGURE.format(ways=tasks.asked, shots=shots) for shots in tasks.measured),
    )


def _place(folder: Path, models_dir: Path, name: str) -> str:
    """The folder from the recipe's own on, where both lie in one project that may be moved."""
    project, place = models_dir.resolve().parent, folder.resolve()
    if place.is_relative_to(project):
        return Path(os.path.relpath(place, models_dir.resolve() / name)).as_posix()
    return place.as_posix()
