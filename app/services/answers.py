"""From rows of probabilities to named predictions."""

from collections.abc import Sequence

import numpy as np

from app.engine.requests import Adapted, Floats
from app.errors import InvalidInput, Issue
from app.services.issues import MAX_ISSUES
from app.services.views import Prediction

TOO_LARGE = "too large in magnitude: the answer is not finite; scale it as the model expects"


def predictions(labels: Sequence[str], probabilities: Floats, top: int | None) -> list[Prediction]:
    """Name each row's probabilities, (Q, ways).

    In the order of `labels`, or with `top` only the k most probable, most probable first. Of labels
    that are equally probable the first counts as the more probable one.
    """
    return [_prediction(labels, row, top) for row in probabilities]


def _prediction(labels: Sequence[str], row: Floats, top: int | None) -> Prediction:
    best = int(row.argmax())
    ways = range(len(labels)) if top is None else np.argsort(-row, kind="stable")[:top].tolist()
    numbers = row.tolist()
    return Prediction(
        label=labels[best],
        probability=numbers[best],
        probabilities={labels[way]: numbers[way] for way in ways},
    )


def check_adapted(adapted: Adapted) -> None:
    """Refuse an adaptation that overflowed.

    Raises:
        InvalidInput: at /support.
    """
    if not np.isfinite(adapted.support_loss).all():
        raise InvalidInput([Issue("/support", TOO_LARGE)])


def check_probabilities(probabilities: Floats, pointer: str) -> None:
    """Refuse queries whose answers (Q, ways) overflowed.

    Args:
        probabilities: (Q, ways).
        pointer: where a query stands in the request's body, "{}" for its number.

    Raises:
        InvalidInput: with each such query.
    """
    broken = np.flatnonzero(~np.isfinite(probabilities).all(axis=1))
    if broken.size:
        raise InvalidInput([Issue(pointer.format(i), TOO_LARGE) for i in broken[:MAX_ISSUES]])
