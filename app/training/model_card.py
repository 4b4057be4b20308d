"""The model card that a person reads, `models/<name>/README.md`, from a version's card.

What it says follows Mitchell et al. 2019 (arXiv 1810.03993): what the model is for and not for, how
good it is and by which measure, and how it was made.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from app.data.pools import Pool
from app.errors import RecipeError
from app.files import write_atomically
from app.registry.card import AccuracyFigure, Card, ErrorFigure
from app.training.confidence import Confidence, confidence
from app.training.measure import load_for, open_version
from app.training.recipe import RECIPE_FILE, Recipe, load_recipe
from app.training.run import TEST_STREAM, Reporter

FILE = "README.md"
PLOTS = "plots"
TASKS = 100
"""Tasks of each size in the reliability diagram, at most."""


def write_model_card(
    path: Path, *, data_root: Path | None, default_root: Path, reporter: Reporter
) -> Path:
    """Writes the model card of a version, with its plots, beside its recipe.

    Args:
        path: models/<name> for the newest version, or models/<name>/<version>.
        data_root: the data set's folder, or None for its usual place below `default_root`.
        default_root: the data folder.
        reporter: told of the progress.

    Returns:
        The file.

    Raises:
        ModelNotFound: there is no such model.
        JobError: its files or the data are broken, or the plots cannot be drawn here.
    """
    try:
        from app.training import card_plots
    except ImportError as error:
        raise RecipeError(f"{error.name} is not installed: pip install -e '.[plots]'") from error
    registry, model, recipe = open_version(path, torch.device("cpu"))
    source = load_for(path, model, recipe, data_root, default_root, reporter)
    card, pool = model.card, source.parts["test"]
    folder = registry.root / card.name
    plots = folder / PLOTS
    figures = [figure for figure in card.figures if isinstance(figure, AccuracyFigure)]
    drawn = []
    if figures:
        card_plots.draw_steps(figures, plots / "steps.png")
        drawn.append("steps")
    told: dict[str, Confidence] = {}
    if card.calibration is not None and isinstance(pool, Pool):
        for measured in figures:
            found = confidence(
                model.learner,
                model.theta,
                model.alpha,
                pool,
                card.calibration,
                ways=measured.ways,
                shots=measured.shots,
                tasks=min(TASKS, measured.tasks),
                steps=card.steps,
                seed=TEST_STREAM,
            )
            if found is not None:
                told[f"{measured.ways}-way {measured.shots}-shot"] = found
    if told:
        card_plots.draw_reliability(told, plots / "reliability.png")
        drawn.append("reliability")
    if isinstance(pool, Pool) and card.input.kind == "image":
        shown = card_plots.choose_tasks(model, pool, TEST_STREAM)
        if shown:
            card_plots.draw_tasks(model, shown, plots / "tasks.png")
            drawn.append("tasks")
    file = folder / FILE
    write_atomically(file, markdown(card, drawn, _is_beside(recipe, folder)).encode())
    return file


def _is_beside(recipe: Recipe, folder: Path) -> bool:
    """Whether the recipe in a model's folder is the one that a version was made by."""
    try:
        return load_recipe(folder / RECIPE_FILE).digest() == recipe.digest()
    except RecipeError:
        return False


def markdown(card: Card, drawn: Sequence[str], recipe_is_beside: bool) -> str:
    """The text, with the plots that were `drawn`.

    How to make the version again it says if the recipe is beside it.
    """
    parts = [
        f"# {card.name}\n\n{card.description}\n",
        f"This is version {card.version}. It was written by `innerloop models card`.\n",
        _facts(card),
    ]
    if card.intended_use:
        parts.append(f"## What it is for\n\n{card.intended_use}\n")
    parts.append(f"## What it is not for\n\n{_limits(card)}")
    parts.append(f"## How good it is\n\n{_figures(card)}")
    if "steps" in drawn:
        parts.append(
            "![Accuracy by inner step](plots/steps.png)\n\nAccuracy after each inner step; dotted, "
            "the nearest class mean of θ's own features, which takes no step.\n"
        )
    if "reliability" in drawn:
        parts.append(
            "![How often an answer is right by its probability](plots/reliability.png)\n\n"
            "How often an answer is right, by how probable it was said to be.\n"
        )
    if "tasks" in drawn:
        parts.append(
            "## Tasks and answers\n\n![Tasks](plots/tasks.png)\n\nOn the left one example of each "
            "of some classes that θ has never seen, on the right queries with the answer and "
            "its probability: the first tasks that were answered without an error, and the first "
            "that were not.\n"
        )
    parts.append(f"## How it was made\n\n{_making(card, recipe_is_beside)}")
    return "\n".join(parts)


def _facts(card: Card) -> str:
    shape = " x ".join(map(str, card.input.shape))
    what = "a picture of any size, made" if card.input.kind == "image" else "numbers,"
    ink = ", dark strokes on a light ground" if card.input.dark_on_light else ""
    rows = [
        ("task", card.task),
        ("input", f"{what} {shape}{ink}"),
        ("meta-trained on", f"{_range(card.trained_ways)} classes, {_range(card.trained_shots)} "
                            "examples of each" if card.task == "classification"
                            else f"{_range(card.trained_shots)} examples"),
        ("inner loop", f"{card.steps} steps"),
        ("parameters", f"{card.parameters:,}, a file of {card.theta_bytes / 1e6:.1f} MB"),
        ("SHA-256 of θ", f"`{card.theta_sha256}`"),
    ]  # fmt: skip
    return _table(("", ""), rows)


def _limits(card: Card) -> str:
    known = f"{_range(card.trained_ways)} classes with {_range(card.trained_shots)} examples"
    lines = [card.out_of_scope] if card.out_of_scope else []
    if card.task == "classification":
        lines.append(f"More or fewer than {known} of each: it answers, but was not trained for it.")
        if card.calibration is None:
            lines.append(
                "Its probabilities were not calibrated: they say which label, not how sure."
            )
        else:
            lines.append(
                "Probabilities are over the session's labels, as if the query had one of them; "
                "`outlier` says how probable it is that it has none, and was fitted on other "
                "classes of the same kind of input."
            )
    return "".join(f"- {line}\n" for line in lines)


def _figures(card: Card) -> str:
    accuracies = [figure for figure in card.figures if isinstance(figure, AccuracyFigure)]
    errors = [figure for figure in card.figures if isinstance(figure, ErrorFigure)]
    if not card.figures:
        return "Nothing was measured.\n"
    first = card.figures[0]
    text = (
        f"On the test classes of the split {first.split}, {first.protocol}: "
        + (
            "each query on its own"
            if first.protocol == "inductive"
            else "a task's queries together"
        )
        + ".\n\n"
    )
    return text + (_errors(errors) if errors else _accuracies(card, accuracies))


def _errors(errors: Sequence[ErrorFigure]) -> str:
    rows = [
        (
            f"{figure.shots} examples",
            str(figure.tasks),
            f"{figure.mse:.4f}",
            ", ".join(f"{error:.3f}" for error in figure.mse_by_step),
        )
        for figure in errors
    ]
    return _table(("tasks", "number", "mean squared error", "after step 0, 1, ..."), rows)


def _accuracies(card: Card, accuracies: Sequence[AccuracyFigure]) -> str:
    columns = (
        "tasks", "number", "accuracy in %", "after step 0, 1, ...", "nearest class mean",
        "calibration error", "AUROC of `outlier`",
    )  # fmt: skip
    rows = [
        (
            f"{figure.ways}-way {figure.shots}-shot",
            f"{figure.tasks:,}",
            f"**{figure.accuracy:.2f}** ± "
            f"{(figure.confidence_interval_95[1] - figure.confidence_interval_95[0]) / 2:.2f}",
            ", ".join(f"{accuracy:.2f}" for accuracy in figure.accuracy_by_step),
            f"{figure.nearest_class_mean:.2f}",
            _number(figure.calibration_error),
            _number(figure.outlier_auroc),
        )
        for figure in accuracies
    ]
    unmeasured = any(figure.calibration_error is None for figure in accuracies)
    text = (
        "\nHow honest the confidence is takes twice as many test classes as a task has; where "
        "there are fewer, or the model is not calibrated, its cells are empty.\n"
        if unmeasured
        else ""
    )
    command = (
        f"\n```\ninnerloop evaluate models/{card.name}/{card.version} --ways {accuracies[0].ways} "
        f"--shots {accuracies[0].shots} --queries {accuracies[0].queries} --tasks "
        f"{accuracies[0].tasks}\n```\n"
    )
    return _table(columns, rows) + text + command


def _making(card: Card, recipe_is_beside: bool) -> str:
    made = card.made_with
    minutes = card.wall_seconds / 60
    recipe = "[`recipe.toml`](recipe.toml)" if recipe_is_beside else "the recipe in its card"
    text = (
        f"By {recipe}: {card.iterations:,} "
        f"iterations with seed {card.seed}, {minutes:.0f} minutes on {made.get('device', 'cpu')} "
        f"with torch {made.get('torch', '')}. `{card.version}/card.json` has the recipe, the "
        "digest of the data and every figure."
    )
    if not recipe_is_beside:
        return f"{text}\n"
    return f"{text} To make it again:\n\n```\ninnerloop train models/{card.name}/recipe.toml\n```\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _range(pair: tuple[int, int]) -> str:
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} to {pair[1]}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))
