"""Pre-training: the baseline without meta-learning.

One network is trained on all classes at once and fine-tuned to a task by the inner loop (the
baseline of Chen et al. 2019, arXiv 1904.04232), or on all tasks at once where a task is no set of
classes (Finn et al. 2017, arXiv 1703.03400, §5.1).
"""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional as F

from app.learning.inner_loop import Alpha
from app.learning.learner import Learner
from app.learning.outcome import Outcome, outcome
from app.learning.tasks import Examples, Task


def pretrain_on_classes(
    learner: Learner, theta: Mapping[str, Tensor], classifier: Tensor, examples: Examples
) -> Outcome:
    """Cross-entropy and accuracy of a linear classifier (C, D) of all C classes on θ's features."""
    logits = F.linear(learner.features(theta, examples.inputs), classifier)  # (M, C)
    correct = (logits.detach().argmax(-1) == examples.labels).to(logits.dtype)
    return Outcome(F.cross_entropy(logits, examples.labels), correct.mean())


def pretrain_on_tasks(
    learner: Learner,
    theta: Mapping[str, Tensor],
    alpha: Alpha,  # noqa: ARG001 - the signature of all objectives
    task: Task,
    steps: int,  # noqa: ARG001 - none are taken
) -> Outcome:
    """L(θ; query): one function for all tasks, no inner step."""
    return outcome(learner, learner.start(theta, task.classes.shape[-1]), task.query, task.classes)
