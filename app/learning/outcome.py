"""What a meta-objective says of one task."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from app.learning.learner import Learner
from app.learning.tasks import Examples


class Outcome(NamedTuple):
    """Loss and score on one task's query set, scalars.

    The score is the accuracy in [0, 1], in regression the mean squared error.
    """

    loss: Tensor
    score: Tensor


def outcome(
    learner: Learner, phi: Mapping[str, Tensor], query: Examples, classes: Tensor
) -> Outcome:
    """Loss and score of φ on a query set."""
    outputs = learner.head.apply(phi, learner.features(phi, query.inputs), classes)
    return Outcome(
        learner.head.loss(outputs, query, classes), learner.head.score(outputs, query, classes)
    )
