"""From rows of numbers to named predictions."""

from collections.abc import Sequence

import numpy as np

from app.engine.requests import Adapted, Answers, Floats
from app.errors import InvalidInput, Issue
from app.services.issues import MAX_ISSUES
from app.services.views import Prediction

TOO_LARGE = "too large in magnitude: the answer is not finite; scale it as the model expects"


def predictions(labels: Sequence[str], answers: Answers, top: int | None) -> list[Prediction]:
    """Name the probabilities of each answer.

    In the order of `labels`, or with `top` only the k most probable, most probable first. Of labels
    that are equally probable the first counts as the more probable one.
    """
    rows = answers.probabilities
    outliers = [None] * len(rows) if answers.outlier is None else answers.outlier.tolist()
    return [
        _prediction(labels, row, outlier, top) for row, outlier in zip(rows, outliers, strict=True)
    ]


def _prediction(
    labels: Sequence[str], row: Floats, outlier: float | None, top: int | None
) -> Prediction:
    best = int(row.argmax())
    ways = range(len(labels)) if top is None else np.argsort(-row, kind="stable")[:top].tolist()
    numbers = row.tolist()
    return Prediction(
        label=labels[best],
        probability=numbers[best],
        probabilities={labels[way]: numbers[way] for way in ways},
        outlier=outlier,
    )


def check_adapted(adapted: Adapted) -> None:
    """Refuse an adaptation that overflowed.

    Raises:
        InvalidInput: at /support.
    """
    if not np.isfinite(adapted.support_loss).all():
        raise InvalidInput([Issue("/support", TOO_LARGE)])


def check_answers(answers: Answers, pointer: str) -> None:
    """Refuse queries whose answers overflowed.

    Args:
        answers: to Q queries.
        pointer: where a query stands in the request's body, "{}" for its number.

    Raises:
        InvalidInput: with each such query.
    """
    finite = np.isfinite(answers.probabilities).all(axis=1)
    if answers.outlier is not None:
        finite &= np.isfinite(answers.outlier)
    broken = np.flatnonzero(~finite)
    if broken.size:
        raise InvalidInput([Issue(pointer.format(i), TOO_LARGE) for i in broken[:MAX_ISSUES]])
