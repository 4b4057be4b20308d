"""The meta-objective of MAML, in its second-order and first-order forms."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from app.learning.inner_loop import Alpha, descend
from app.learning.learner import Learner
from app.learning.losses import class_balanced_cross_entropy, example_weights
from app.learning.tasks import Examples, Task


class Outcome(NamedTuple):
    """Loss and accuracy (in [0, 1]) on one task's query set, scalars."""

    loss: Tensor
    accuracy: Tensor


def maml(
    learner: Learner, theta: Mapping[str, Tensor], alpha: Alpha, task: Task, steps: int
) -> Outcome:
    """L(φ(θ); query), differentiated through the inner steps (Finn et al. 2017, Eq. 1 and 2)."""
    return _outcome(learner, theta, alpha, task, steps, first_order=False)


def first_order_maml(
    learner: Learner, theta: Mapping[str, Tensor], alpha: Alpha, task: Task, steps: int
) -> Outcome:
    """The same objective with ∂φ/∂θ taken as the identity (Finn et al. 2017, §5.2)."""
    return _outcome(learner, theta, alpha, task, steps, first_order=True)


def query_accuracy(logits: Tensor, query: Examples, classes: Tensor) -> Tensor:
    """Share of the queries that are answered right, each class weighing the same."""
    guess = logits.masked_fill(~classes, float("-inf")).argmax(-1)  # (M,)
    return ((guess == query.labels) * example_weights(query, classes)).sum()


def _outcome(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,
    task: Task,
    steps: int,
    *,
    first_order: bool,
) -> Outcome:
    phis, _ = descend(
        learner, theta, task.support, task.classes, alpha, steps, first_order=first_order
    )
    logits = learner.logits(phis[-1], task.query.inputs)
    return Outcome(
        class_balanced_cross_entropy(logits, task.query, task.classes),
        query_accuracy(logits, task.query, task.classes),
    )
