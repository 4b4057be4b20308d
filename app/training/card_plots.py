"""The plots of a model card: accuracy by step, reliability, and tasks with their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from app.data.pools import Pool, TaskShape
from app.learning.calibration import BINS, temperature
from app.learning.heads import FixedHead
from app.learning.inner_loop import adapt
from app.learning.tasks import Examples, Task
from app.registry.card import AccuracyFigure
from app.registry.registry import LoadedModel
from app.training.confidence import Confidence

WAYS, SHOTS, QUERIES = 5, 1, 3
"""Of the tasks that are shown; fewer ways and queries where there are no more."""
NAMES = "ABCDEFGHIJ"
"""Of the classes."""
OF_EACH = 2
"""Tasks without a wrong answer, and with one, that are shown."""
MOST_TASKS = 300
"""Tasks among which they are looked for."""
RIGHT, WRONG = "#1a7f37", "#cf222e"
DPI = 110


@dataclass(frozen=True)
class Shown:
    """A task and the answers to it."""

    task: Task
    answers: Tensor
    """Labels (Q,)."""
    probabilities: Tensor
    """Of the answers (Q,)."""


def draw_steps(figures: Sequence[AccuracyFigure], path: Path) -> None:
    """Accuracy after each inner step, and dotted the nearest class mean of θ's features."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for number, measured in enumerate(figures):
        steps = measured.accuracy_by_step
        label = f"{measured.ways}-way {measured.shots}-shot"
        axis.plot(range(1, len(steps)), steps[1:], "o-", color=f"C{number}", label=label)
        axis.axhline(measured.nearest_class_mean, color=f"C{number}", linestyle=":", linewidth=1)
    axis.set(xlabel="inner step", ylabel="accuracy in %")
    axis.set_xticks(range(1, len(figures[0].accuracy_by_step)))
    axis.legend(fontsize=8)
    _save(figure, path)


def draw_reliability(told: Mapping[str, Confidence], path: Path) -> None:
    """Accuracy by confidence: on the diagonal a model is as often right as it says."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for number, (label, confidence) in enumerate(told.items()):
        top, right = confidence.top.numpy(), confidence.correct.numpy()
        place = np.minimum((top * BINS).astype(int), BINS - 1)
        filled = [index for index in range(BINS) if (place == index).any()]
        means = [(top[place == index].mean(), right[place == index].mean()) for index in filled]
        shares = [float((place == index).mean()) for index in filled]
        x, y = zip(*means, strict=True)
        axis.plot(x, y, color=f"C{number}", linewidth=1, label=label)
        axis.scatter(x, y, s=[8 + 150 * share for share in shares], color=f"C{number}")
    axis.set(xlabel="probability of the answer", ylabel="share that is right")
    axis.legend(fontsize=8, title="size: share of the queries", title_fontsize=7)
    _save(figure, path)


def choose_tasks(model: LoadedModel, pool: Pool, seed: int) -> list[Shown]:
    """The first tasks without a wrong answer, and the first with one.

    Empty where the pool has no task of a size that fits the model and the page.
    """
    head, queries = model.learner.head, min(QUERIES, pool.most_queries(SHOTS))
    most = pool.most_ways(SHOTS + queries)
    ways = head.ways if isinstance(head, FixedHead) else min(WAYS, most)
    if queries < 1 or not 2 <= ways <= min(len(NAMES), most):
        return []
    shape = TaskShape((ways, ways), (SHOTS, SHOTS), queries)
    flawless: list[Shown] = []
    flawed: list[Shown] = []
    for number in range(MOST_TASKS):
        batch = pool.sample(shape, 1, [seed, number])
        task = Task(
            Examples(*(tensor[0] for tensor in batch.support)),
            Examples(*(tensor[0] for tensor in batch.query)),
            batch.classes[0],
        )
        shown = _answered(model, task)
        chosen = flawless if torch.equal(shown.answers, task.query.labels) else flawed
        if len(chosen) < OF_EACH:
            chosen.append(shown)
        if len(flawless) == len(flawed) == OF_EACH:
            break
    return flawless + flawed


def draw_tasks(model: LoadedModel, shown: Sequence[Shown], path: Path) -> None:
    """One row a task: its support set, then its queries, framed by whether the answer is right."""
    first = shown[0].task
    columns = len(first.support.labels) + len(first.query.labels) + 1
    figure = Figure(figsize=(0.62 * columns, 1.0 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    for row, one in zip(axes, shown, strict=True):
        for axis in row:
            axis.set_axis_off()
        places = iter(row)
        for label, picture in zip(one.task.support.labels, one.task.support.inputs, strict=True):
            axis = next(places)
            _show(model, axis, picture)
            axis.set_title(_name(int(label)), fontsize=8)
        next(places)
        for picture, true, answer, probability in zip(
            one.task.query.inputs,
            one.task.query.labels.tolist(),
            one.answers.tolist(),
            one.probabilities.tolist(),
            strict=True,
        ):
            axis = next(places)
            _show(model, axis, picture)
            title = f"{_name(answer)} {probability:.2f}"
            if answer != true:
                title += f"\nis {_name(true)}"
            axis.set_title(title, fontsize=7, color=RIGHT if answer == true else WRONG)
    _save(figure, path)


def _answered(model: LoadedModel, task: Task) -> Shown:
    with torch.no_grad():
        phi, _, _ = adapt(
            model.learner,
            model.theta,
            task.support,
            task.classes,
            model.alpha,
            model.card.steps,
        )
        logits = model.learner.logits(phi, task.query.inputs)
    if model.card.calibration is not None:
        size = torch.tensor([len(task.classes), SHOTS]).log()
        logits = logits / temperature(model.card.calibration.temperature, size)
    probabilities, answers = logits.softmax(-1).max(-1)
    return Shown(task, answers, probabilities)


def _name(label: int) -> str:
    return NAMES[label]


def _show(model: LoadedModel, axis: Any, picture: Tensor) -> None:
    picture = 1 - picture if model.card.input.dark_on_light else picture
    channels_last = picture.permute(1, 2, 0).numpy()
    axis.imshow(
        channels_last.squeeze(-1) if channels_last.shape[-1] == 1 else channels_last,
        cmap="gray",
        vmin=0,
        vmax=1,
    )


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    # Without the version of the library, which would make the file another one with each.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
