"""Calibrating and measuring a θ, with results as the card keeps them."""

import math
from collections.abc import Mapping

from torch import Tensor

from app.data.distributions import Distribution, Source
from app.data.pools import Pool
from app.errors import Diverged
from app.learning.inner_loop import Alpha
from app.learning.learner import Learner
from app.registry.card import AccuracyFigure, Calibration, ErrorFigure, Protocol
from app.training.confidence import calibrate, confidence
from app.training.evaluate import Evaluation, evaluate
from app.training.recipe import Measure, Recipe
from app.training.run import VALIDATION_STREAM, Reporter


def measure_figure(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    source: Distribution,
    wanted: Measure,
    *,
    split: str,
    steps: int,
    seed: int,
    calibration: Calibration | None,
    reporter: Reporter,
) -> AccuracyFigure | ErrorFigure:
    """How well θ does on tasks of a source, and how honest its confidence is.

    Args:
        learner: what the parameters belong to.
        theta: the initialisation.
        alpha: the inner step sizes by parameter.
        source: where tasks are drawn from.
        wanted: which tasks.
        split: the name of what the source is a part of.
        steps: inner steps.
        seed: draws the tasks.
        calibration: of θ, None where it has none.
        reporter: told of the progress.

    Returns:
        Accuracy to two decimals of a percent, errors to four.

    Raises:
        DataError: the source is too small for such tasks.
        Diverged: a number is not finite.
    """
    result = evaluate(
        learner,
        theta,
        alpha,
        source,
        ways=wanted.ways,
        shots=wanted.shots,
        queries=wanted.queries,
        tasks=wanted.tasks,
        steps=steps,
        seed=seed,
        progress=lambda done: reporter.measuring(wanted, done),
    )
    figure = _figure(learner, split, wanted, seed, result)
    if calibration is None or not (isinstance(source, Pool) and isinstance(figure, AccuracyFigure)):
        return figure
    return with_confidence(figure, learner, theta, alpha, source, calibration, steps)


def calibrated(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    source: Source,
    recipe: Recipe,
    reporter: Reporter,
) -> Calibration | None:
    """What makes the confidence of a recipe's θ honest, by the validation classes of its data.

    None in regression, where there is no confidence, and where queries are answered together.
    """
    pool = source.parts["validation"]
    if learner.transductive or not isinstance(pool, Pool):
        return None
    found = calibrate(
        learner,
        theta,
        alpha,
        pool.symmetric() if recipe.data.symmetries else pool,
        shots=max([most for _, most in (stage.shots for stage in recipe.task_stages)] or [5]),
        steps=recipe.inner.steps,
        seed=VALIDATION_STREAM,
        progress=reporter.calibrating,
    )
    if found is None:
        reporter.warning(
            "there are too few validation classes, or examples of them, to calibrate by: "
            "probabilities stay as they are, and there is no `outlier`"
        )
    return found


def _figure(
    learner: Learner,
    split: str,
    wanted: Measure,
    seed: int,
    result: Evaluation,
) -> AccuracyFigure | ErrorFigure:
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


def with_confidence(
    figure: AccuracyFigure,
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    pool: Pool,
    calibration: Calibration,
    steps: int,
) -> AccuracyFigure:
    """The figure, and how honest the confidence is on as many tasks of its size.

    That is None where the pool has not twice as many classes. Arguments as in `measure_figure`.
    """
    told = confidence(
        learner,
        theta,
        alpha,
        pool,
        calibration,
        ways=figure.ways,
        shots=figure.shots,
        tasks=figure.tasks,
        steps=steps,
        seed=figure.seed,
    )
    honest = {
        "calibration_error": told and round(told.calibration_error, 4),
        "outlier_auroc": told and round(told.outlier_auroc, 4),
    }
    return figure.model_copy(update=honest)
