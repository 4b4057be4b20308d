"""First-order MAML (Finn, Abbeel & Levine 2017, arXiv 1703.03400, §5.2)."""

from collections.abc import Mapping

from torch import Tensor

from app.learning.inner_loop import Alpha, descend
from app.learning.learner import Learner
from app.learning.outcome import Outcome, outcome
from app.learning.tasks import Task


def first_order_maml(
    learner: Learner, theta: Mapping[str, Tensor], alpha: Alpha, task: Task, steps: int
) -> Outcome:
    """L(φ(θ); query) with ∂φ/∂θ taken as the identity: its gradient for θ is that for φ."""
    phis, _ = descend(learner, theta, task.support, task.classes, alpha, steps, first_order=True)
    return outcome(learner, phis[-1], task.query, task.classes)
