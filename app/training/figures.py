"""Results as the card keeps them."""

import math

from app.errors import Diverged
from app.learning.learner import Learner
from app.registry.card import AccuracyFigure, ErrorFigure, Protocol
from app.training.evaluate import Evaluation
from app.training.recipe import Measure


def figure(
    learner: Learner, split: str, wanted: Measure, seed: int, result: Evaluation
) -> AccuracyFigure | ErrorFigure:
    """A result as the card keeps it: accuracy to two decimals of a percent, errors to four.

    Raises:
        Diverged: a number is not finite.
    """
    if not all(map(math.isfinite, (*result.interval, *result.by_step))):
        raise Diverged(
            f"The inner loop diverges on some of the tasks, by step {result.by_step}: lower α, or "
            "take fewer steps."
        )
    places = 4 if result.nearest_class_mean is None else 2
    mean, low, high = (round(value, places) for value in (result.mean, *result.interval))
    by_step = tuple(round(value, places) for value in result.by_step)
    protocol: Protocol = "transductive" if learner.transductive else "inductive"
    if result.nearest_class_mean is None:
        return ErrorFigure(
            split=split,
            protocol=protocol,
            shots=wanted.shots,
            queries=result.queries,
            tasks=wanted.tasks,
            seed=seed,
            mse=mean,
            confidence_interval_95=(low, high),
            mse_by_step=by_step,
        )
    return AccuracyFigure(
        split=split,
        protocol=protocol,
        ways=wanted.ways,
        shots=wanted.shots,
        queries=result.queries,
        tasks=wanted.tasks,
        seed=seed,
        accuracy=mean,
        confidence_interval_95=(low, high),
        accuracy_by_step=by_step,
        nearest_class_mean=round(result.nearest_class_mean, places),
        nearest_class_mean_interval_95=result.nearest_class_mean_interval
        and (
            round(result.nearest_class_mean_interval[0], places),
            round(result.nearest_class_mean_interval[1], places),
        ),
    )
