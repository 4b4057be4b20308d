"""The loss of a classification task, normalised so that its size does not depend on the task's."""

import torch
from torch import Tensor

from app.learning.tasks import Examples


def masked_log_softmax(logits: Tensor, classes: Tensor) -> Tensor:
    """Log-probabilities (..., M, N) over the classes that exist, from `logits` (..., M, N).

    `classes` (N,) is False for padding, whose log-probability is the most negative finite number.
    """
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~classes, lowest).log_softmax(-1).clamp(min=lowest)


def membership(examples: Examples, ways: int) -> Tensor:
    """Which example is of which class, (M, N) bool; padding is of none."""
    member = examples.labels[:, None] == torch.arange(ways, device=examples.labels.device)
    return member & examples.mask[:, None]


def example_weights(examples: Examples, classes: Tensor) -> Tensor:
    """Weights (M,) that sum to one: every class weighs the same, however many examples it has.

    An example of class c weighs 1 / (N n_c), with N classes and n_c examples of class c.
    """
    member = membership(examples, classes.shape[-1])
    shots = member.sum(0).clamp(min=1)  # (N,)
    number = classes.sum().clamp(min=1)
    return (member.to(_real(examples.inputs)) / (shots * number)).sum(1)


def class_balanced_cross_entropy(logits: Tensor, examples: Examples, classes: Tensor) -> Tensor:
    """Mean over classes of the mean cross-entropy of a class's examples.

    Of logits (..., M, N) it is (...): of several outputs for the same examples so many losses.

    With one number of shots for all classes this is the mean over the support set. Finn et al.
    (2017, arXiv 1703.03400) sum over classes instead in their released code: N times this.
    """
    log_probabilities = masked_log_softmax(logits, classes)
    labels = examples.labels.expand(logits.shape[:-1])[..., None]
    losses = -log_probabilities.gather(-1, labels).squeeze(-1)  # (..., M)
    weights = example_weights(examples, classes).to(losses.dtype)
    return torch.where(examples.mask, losses * weights, torch.zeros_like(losses)).sum(-1)


def query_accuracy(logits: Tensor, query: Examples, classes: Tensor) -> Tensor:
    """Share of the queries that are answered right, each class weighing the same."""
    guess = logits.masked_fill(~classes, float("-inf")).argmax(-1)  # (M,)
    return ((guess == query.labels) * example_weights(query, classes)).sum()


def mean_squared_error(outputs: Tensor, examples: Examples) -> Tensor:
    """Mean over examples and outputs of the squared error, (...) (Finn et al. 2017, Eq. 2).

    `outputs` are (..., M, K) and the examples' labels (M, K).
    """
    errors = (outputs - examples.labels).square().mean(-1)  # (..., M)
    count = examples.mask.sum().clamp(min=1)
    return torch.where(examples.mask, errors, torch.zeros_like(errors)).sum(-1) / count


def _real(inputs: Tensor) -> torch.dtype:
    return inputs.dtype if inputs.is_floating_point() else torch.get_default_dtype()
