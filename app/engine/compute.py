"""What the device computes: adaptations and answers, several at once where that is faster."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
import torch.func
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from app.engine.cache import Phi
from app.engine.requests import Answers, Floats, SupportSet
from app.engine.shapes import QUERY_SIZES, padded, padded_queries, padded_rows, sharing_of
from app.learning import heads
from app.learning.calibration import (
    class_means,
    outlier_probability,
    outlier_terms,
    task_size,
    temperature,
)
from app.learning.heads import Params
from app.learning.inner_loop import adapt
from app.learning.learner import HEAD
from app.learning.losses import membership
from app.learning.tasks import Examples
from app.learning.vjp import Vjp, vjp_once
from app.registry.registry import LoadedModel

WARM_STEPS = 3
"""Later steps do nothing new: the first may move the head alone, and in the second the network is
still one for all tasks."""


class Computer:
    """One model version on the device. Only the device's thread calls it."""

    def __init__(self, model: LoadedModel, device: torch.device, max_classes: int, at_once: int):
        self.card = model.card
        self.learner = model.learner
        self.device = device
        self.most_rows = padded_rows(max_classes)
        self.at_once = at_once
        """Most tasks of one computation."""
        self.sharing = sharing_of(device)
        self.theta = {name: value.to(device) for name, value in model.theta.items()}
        self.alpha = {name: value.to(device) for name, value in model.alpha.items()}

    def adapt(
        self, supports: Sequence[SupportSet], steps: int
    ) -> list[tuple[Phi, tuple[float, ...]]]:
        """Adapts θ to each support set; all must have the same padded size.

        Returns:
            φ and the support loss (steps + 1) of each, in order.
        """
        size = padded(max(len(support.labels) for support in supports))
        answers: list[tuple[Phi, tuple[float, ...]]] = []
        for group in self.sharing.groups(supports, size, self.at_once):
            with torch.no_grad():
                if len(group) == 1:
                    adapted = self._alone(group[0], steps)
                else:
                    together = vmap(partial(self._adapt, steps=steps, vjp=torch.func.vjp))
                    adapted = together(*self._pad(group, size))
            for index, support in enumerate(group):
                phi, losses, means, task_sizes = tree_map(
                    lambda value, at=index: value[at], adapted
                )
                answers.append(
                    (self._kept(phi, support.ways, means, task_sizes), tuple(losses.tolist()))
                )
        return answers

    def predict(self, requests: Sequence[tuple[Phi, Floats]]) -> list[Answers]:
        """Answers each request's queries (Q, *input_shape), each on its own.

        Queries of one φ are computed as if one request had them all: there is no faster company.
        """
        same: dict[int, list[int]] = {}
        for index, (phi, _) in enumerate(requests):
            same.setdefault(id(phi), []).append(index)
        joint = self._predict(
            [
                (requests[indices[0]][0], np.concatenate([requests[at][1] for at in indices]))
                for indices in same.values()
            ]
        )
        parts: dict[int, Answers] = {}
        for indices, answers in zip(same.values(), joint, strict=True):
            ends = accumulate(len(requests[at][1]) for at in indices)
            for at, end in zip(indices, ends, strict=True):
                parts[at] = answers.rows(end - len(requests[at][1]), end)
        return [parts[index] for index in range(len(requests))]

    def _predict(self, requests: Sequence[tuple[Phi, Floats]]) -> list[Answers]:
        """As `predict`, one computation or more for each request."""
        by_size: dict[int, list[tuple[int, Phi, Floats]]] = {}
        for index, (phi, query) in enumerate(requests):
            for start in range(0, len(query), QUERY_SIZES[-1]):
                chunk = query[start : start + QUERY_SIZES[-1]]
                by_size.setdefault(padded_queries(len(chunk)), []).append((index, phi, chunk))
        parts: list[list[Answers]] = [[] for _ in requests]
        for size in sorted(by_size, reverse=True):  # of one request the last chunk is the smallest
            for group in self.sharing.groups(by_size[size], size, self.at_once):
                for (index, _, _), answer in zip(group, self._answer(group, size), strict=True):
                    parts[index].append(answer)
        return [_joined(its, phi) for its, (phi, _) in zip(parts, requests, strict=True)]

    def warm(self, max_support: int) -> Iterator[None]:
        """Runs every shape that tasks can share once; yields between two of them."""
        for size in self.sharing.sizes(max_support):
            support = self._blank(size, 2)
            for count in self.sharing.counts(size, self.at_once):
                self.adapt([support] * count, WARM_STEPS)
                yield
        rows = padded_rows(1)
        while rows <= self.most_rows:
            ways = min(rows, self.learner.head.rows(rows))
            phi, _ = self.adapt([self._blank(rows, ways)], WARM_STEPS)[0]
            for size in QUERY_SIZES:
                query = np.zeros((size, *self.card.input.shape), np.float32)
                for count in [1, *self.sharing.counts(size, self.at_once)]:
                    self.predict([(replace(phi), query) for _ in range(count)])
                    yield
            rows *= 2

    def _blank(self, examples: int, ways: int) -> SupportSet:
        inputs = np.zeros((examples, *self.card.input.shape), np.float32)
        return SupportSet(inputs, np.arange(examples) % ways, ways)

    def _adapt(
        self, support: Examples, classes: Tensor, *, steps: int, vjp: Vjp
    ) -> tuple[Params, Tensor, Tensor, Tensor]:
        """φ, its support loss, the class means of its features and the task's size."""
        phi, losses, features = adapt(
            self.learner, self.theta, support, classes, self.alpha, steps, vjp
        )
        means = class_means(features, support, classes.shape[-1])
        shots = membership(support, classes.shape[-1]).sum(0)
        return phi, losses, means, task_size(shots, classes)

    def _alone(self, support: SupportSet, steps: int) -> tuple[Params, Tensor, Tensor, Tensor]:
        """The same of one support set as it is, each tensor with a leading dimension of one."""
        examples, classes = self._pad([support], len(support.labels), support.ways)
        task = tree_map(lambda value: value[0], (examples, classes))
        adapted = self._adapt(*task, steps=steps, vjp=vjp_once)
        one: tuple[Params, Tensor, Tensor, Tensor] = tree_map(lambda value: value[None], adapted)
        return one

    def _kept(self, phi: Params, ways: int, means: Tensor, size: Tensor) -> Phi:
        """φ to be kept: a copy without the rows of padding."""
        rows = self.learner.head.rows(ways)
        parameters = {
            name: (value[:rows] if name.startswith(HEAD) else value).clone()
            for name, value in phi.items()
        }
        return Phi(parameters, ways, means[:rows].clone(), size.clone())

    def _pad(
        self, group: Sequence[SupportSet], size: int, ways: int | None = None
    ) -> tuple[Examples, Tensor]:
        """Support sets as one container (B, size, ...), and which classes exist (B, rows)."""
        inputs = np.zeros((len(group), size, *self.card.input.shape), np.float32)
        labels = np.zeros((len(group), size), np.int64)
        mask = np.zeros((len(group), size), np.bool_)
        rows = self.learner.head.rows(ways or min(size, self.most_rows))
        classes = np.zeros((len(group), rows), np.bool_)
        for index, support in enumerate(group):
            count = len(support.labels)
            inputs[index, :count] = support.inputs
            labels[index, :count] = support.labels
            mask[index, :count] = True
            classes[index, : support.ways] = True
        to = [torch.from_numpy(array).to(self.device) for array in (inputs, labels, mask, classes)]
        return Examples(*to[:3]), to[3]

    def _answer(self, group: Sequence[tuple[int, Phi, Floats]], size: int) -> list[Answers]:
        """Answers to chunks of queries, as one computation; of several, padded to one size."""
        phis = [phi for _, phi, _ in group]
        with torch.no_grad():
            if len(group) == 1:
                inputs = torch.from_numpy(group[0][2]).to(self.device)
                answered = self._answer_one(*self._held(phis[0], phis[0].rows), inputs)
                probabilities, outliers = (value[None].cpu().numpy() for value in answered)
            else:
                rows = self.learner.head.rows(padded_rows(max(phi.ways for phi in phis)))
                held = [self._held(phi, rows) for phi in phis]
                stacked: tuple[Any, ...] = tree_map(
                    lambda *values: torch.stack(values), held[0], *held[1:]
                )
                padding = np.zeros((len(group), size, *self.card.input.shape), np.float32)
                for index, (_, _, query) in enumerate(group):
                    padding[index, : len(query)] = query
                inputs = torch.from_numpy(padding).to(self.device)
                answered = vmap(self._answer_one)(*(*stacked, inputs))
                probabilities, outliers = (value.cpu().numpy() for value in answered)
        return [
            Answers(
                probabilities[index, : len(query), : phi.ways].copy(),
                outliers[index, : len(query)].copy() if self.card.calibration else None,
            )
            for index, (_, phi, query) in enumerate(group)
        ]

    def _held(self, phi: Phi, rows: int) -> tuple[Params, Tensor, Tensor, Tensor]:
        """φ with so many rows, its class means, which classes exist and the task's size."""
        more = rows - phi.rows
        parameters = {
            name: F.pad(value, [0, 0] * (value.ndim - 1) + [0, more])
            if more and name.startswith(HEAD)
            else value
            for name, value in phi.parameters.items()
        }
        classes = torch.arange(rows, device=self.device) < phi.ways
        means = F.pad(phi.means, (0, 0, 0, more)) if more else phi.means
        return parameters, means, classes, phi.size

    def _answer_one(
        self, phi: Params, means: Tensor, classes: Tensor, size: Tensor, inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Probabilities (Q, N) and how probable it is that a query is of no class, (Q,)."""
        features = self.learner.features(phi, inputs)
        logits = heads.logits(phi, features).masked_fill(~classes, float("-inf"))
        calibration = self.card.calibration
        if calibration is None:
            return logits.softmax(-1), torch.zeros_like(logits[:, 0])
        probabilities = (logits / temperature(calibration.temperature, size)).softmax(-1)
        terms = outlier_terms(features, means, classes, size)
        return probabilities, outlier_probability(calibration.outlier, terms)


def _joined(parts: Sequence[Answers], phi: Phi) -> Answers:
    """The answers to the chunks of one request as one."""
    if not parts:
        return Answers(np.empty((0, phi.ways), np.float32), None)
    outliers = [part.outlier for part in parts if part.outlier is not None]
    return Answers(
        np.concatenate([part.probabilities for part in parts]),
        np.concatenate(outliers) if outliers else None,
    )
