"""Measured rows, as `results.json` keeps them."""

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from app.registry.card import AccuracyFigure, Card, ErrorFigure
from app.training.measure import measure_model
from app.training.progress import ConsoleReporter
from app.training.recipe import Measure, Recipe, Stage
from benchmarks.paper.rows import HERE, Row

RESULTS = HERE / "results.json"
LOG = "log.jsonl"
SEED = 2
Result = dict[str, Any]
Results = dict[tuple[str, int, int, str, str], Result]


def read_results() -> Results:
    """The rows measured so far, by their keys; none where there is no file yet."""
    if not RESULTS.exists():
        return {}
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]
    return {
        (row["dataset"], row["ways"], row["shots"], row["algorithm"], row["protocol"]): row
        for row in rows
    }


def write_results(rows: Sequence[Row], results: Mapping[Any, Result]) -> None:
    """Writes `results.json`, in the table's order."""
    ordered = [results[row.key] for row in rows if row.key in results]
    RESULTS.write_text(json.dumps({"rows": ordered}, indent=1) + "\n", encoding="utf-8")


def measure_figure(row: Row, data_dir: Path, device: torch.device) -> AccuracyFigure | ErrorFigure:
    """Measures a row's model on the test classes, as the row's `evaluate_command` does."""
    wanted = Measure(ways=row.ways, shots=row.shots, queries=row.queries, tasks=row.tasks)
    with ConsoleReporter() as reporter:
        return measure_model(
            row.folder,
            wanted,
            pool="test",
            steps=0,
            seed=SEED,
            data_root=None,
            default_root=data_dir,
            device=device,
            reporter=reporter,
        )


def result_of(row: Row, figure: AccuracyFigure | ErrorFigure) -> Result:
    """What `results.json` says of a row, by what was measured of its model.

    Raises:
        ValueError: the model's protocol is not the row's.
    """
    if figure.protocol != row.protocol:
        raise ValueError(f"{row.model} is {figure.protocol}, its row says {row.protocol}")
    card = Card.model_validate_json((row.folder / "1" / "card.json").read_bytes())
    recipe = Recipe.model_validate(card.recipe)
    last = recipe.stages[-1]
    adapts = row.algorithm != "nearest-class-mean"
    measured: Result
    if not isinstance(figure, AccuracyFigure):
        measured = {
            "mse_by_step": figure.mse_by_step,
            "confidence_interval_95": figure.confidence_interval_95,
        }
    elif adapts:
        measured = {
            "accuracy": figure.accuracy,
            "confidence_interval_95": figure.confidence_interval_95,
            "accuracy_by_step": figure.accuracy_by_step,
        }
    else:
        measured = {
            "accuracy": figure.nearest_class_mean,
            "confidence_interval_95": figure.nearest_class_mean_interval_95,
        }
    return {
        "dataset": row.dataset,
        "ways": row.ways,
        "shots": row.shots,
        "algorithm": row.algorithm,
        "protocol": row.protocol,
        **measured,
        "queries": figure.queries,
        "tasks": figure.tasks,
        "steps_train": last.steps if isinstance(last, Stage) else 0,
        "steps_test": recipe.inner.steps if adapts else 0,
        "seed": recipe.seed,
        "iterations": card.iterations,
        "begun_with": recipe.initial,
        "device": f"{card.made_with['device']}, {card.made_with['threads']} thread(s), "
        f"{platform.machine()}",
        "wall_s": card.wall_seconds,
        "theta_sha256": card.theta_sha256,
        "train_command": f"python -m benchmarks.paper train {row.model}",
        "evaluate_command": row.evaluate_command,
    }
