"""Nearest class mean (Snell, Swersky & Zemel 2017, arXiv 1703.05175): no inner step at all."""

from collections.abc import Mapping

import torch
from torch import Tensor

from app.learning.calibration import class_means
from app.learning.learner import Learner
from app.learning.tasks import Task


def nearest_class_mean(learner: Learner, theta: Mapping[str, Tensor], task: Task) -> Tensor:
    """Negative squared distances (Q, N) of θ's features to the support set's class means.

    The rule of prototypical networks (their Eq. 1 and 2).
    """
    phi = learner.start(theta, task.classes.shape[0])
    support = learner.features(phi, task.support.inputs)  # (M, D)
    query = learner.features(phi, task.query.inputs)  # (Q, D)
    means = class_means(support, task.support, task.classes.shape[0])  # (N, D)
    return -torch.cdist(query, means).square()
