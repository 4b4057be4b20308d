"""ANIL, almost no inner loop (Raghu, Raghu, Bengio & Vinyals 2020, arXiv 1909.09157, §4)."""

from collections.abc import Mapping

from torch import Tensor

from app.learning.inner_loop import Alpha
from app.learning.learner import HEAD, Learner
from app.learning.maml import maml
from app.learning.outcome import Outcome
from app.learning.tasks import Task


def anil(
    learner: Learner, theta: Mapping[str, Tensor], alpha: Alpha, task: Task, steps: int
) -> Outcome:
    """MAML whose inner steps move the head only: the network has no α.

    Raises:
        ValueError: α is one number for all parameters.
    """
    if not isinstance(alpha, Mapping):
        raise ValueError("ANIL needs α by parameter: what has none stays as it is")
    rates = {name: rate for name, rate in alpha.items() if name.startswith(HEAD)}
    return maml(learner, theta, rates, task, steps)
