"""Batches on the device, padded to a small set of shapes that are all warmed beforehand.

Support sets are padded to a power of two of examples, and their head to as many rows (at most
`max_classes`, rounded up), so that one number is the shape of an adaptation. Queries run in chunks
of a few sizes. Groups of a power of two of tasks are one batched computation.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from app.engine.cache import Phi
from app.engine.requests import Answers, Floats, SupportSet
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
from app.learning.losses import membership
from app.learning.tasks import Examples
from app.registry.registry import LoadedModel

LEAST_SUPPORT = 8
QUERY_CHUNKS = (4, 16, 64)
BATCH_EXAMPLES = 256
"""Most examples, padding included, in a batch of more than one task."""
MOST_WARM_EXAMPLES = 64
"""Most examples, padding included, of a batch that is warmed for every step."""


def padded(count: int, least: int = LEAST_SUPPORT) -> int:
    """The least power of two that holds `count`, from `least` on."""
    return max(least, 1 << (count - 1).bit_length())


class Computer:
    """One model version on the device. Only the device's thread calls it."""

    def __init__(self, model: LoadedModel, device: torch.device, max_classes: int):
        self.card = model.card
        self.learner = model.learner
        self.device = device
        self.most_rows = padded(max_classes)
        self.theta = {name: value.to(device) for name, value in model.theta.items()}
        self.alpha = {name: value.to(device) for name, value in model.alpha.items()}

    def adapt(
        self, supports: Sequence[SupportSet], steps: int
    ) -> list[tuple[Phi, tuple[float, ...]]]:
        """Adapts θ to each support set; all must have the same padded size.

        Returns:
            φ and the support loss (steps + 1) of each, in order.
        """
        answers: list[tuple[Phi, tuple[float, ...]]] = []
        for group in _groups(supports):
            size = padded(len(group[0].labels))
            examples, classes = self._pad(group, size)
            with torch.no_grad():
                phis, losses, means, sizes = vmap(partial(self._adapt, steps=steps))(
                    examples, classes
                )
            for index, support in enumerate(group):
                phi = {name: value[index].clone() for name, value in phis.items()}
                kept = Phi(phi, support.ways, means[index].clone(), sizes[index].clone())
                answers.append((kept, tuple(losses[index].tolist())))
        return answers

    def predict(self, requests: Sequence[tuple[Phi, Floats]]) -> list[Answers]:
        """Answers each request's queries (Q, *input_shape), each on its own."""
        chunks = [
            (index, phi, query[start : start + QUERY_CHUNKS[-1]])
            for index, (phi, query) in enumerate(requests)
            for start in range(0, len(query), QUERY_CHUNKS[-1])
        ]
        by_shape: dict[tuple[int, int], list[tuple[int, Phi, Floats]]] = {}
        for chunk in chunks:
            size = next(size for size in QUERY_CHUNKS if len(chunk[2]) <= size)
            rows = chunk[1].parameters["head.bias"].shape[0]
            by_shape.setdefault((size, rows), []).append(chunk)
        answers: list[list[Answers]] = [[] for _ in requests]
        for (size, _), members in by_shape.items():
            for group in _groups(members, max(1, BATCH_EXAMPLES // size)):
                for (index, _, _), answer in zip(group, self._answer(group, size), strict=True):
                    answers[index].append(answer)
        return [_joined(parts, phi) for parts, (phi, _) in zip(answers, requests, strict=True)]

    def warm(self, size: int, batch_limit: int) -> None:
        """Runs every shape of a padded support set once: its adaptation, and queries of its φ."""
        inputs = np.zeros((size, *self.card.input.shape), np.float32)
        support = SupportSet(inputs, np.arange(size) % 2, 2)
        for count in _powers(min(batch_limit, BATCH_EXAMPLES // size)):
            # Later steps do nothing new: the first may move the head alone, and in the second the
            # network is still one for all tasks. For many examples each would take seconds.
            examples = size * count
            steps = 3 if examples <= MOST_WARM_EXAMPLES else 2 if examples <= BATCH_EXAMPLES else 1
            adapted = self.adapt([support] * count, steps)
        if size <= self.most_rows:  # beyond it the head has no more rows
            self._warm_queries(adapted[0][0], batch_limit)

    def _warm_queries(self, phi: Phi, batch_limit: int) -> None:
        for chunk in QUERY_CHUNKS:
            query = np.zeros((chunk, *self.card.input.shape), np.float32)
            # One large request alone makes many chunks of the last size.
            most = max(batch_limit, BATCH_EXAMPLES // QUERY_CHUNKS[-1])
            for count in _powers(min(most, BATCH_EXAMPLES // chunk)):
                self.predict([(phi, query)] * count)

    def _adapt(
        self, support: Examples, classes: Tensor, *, steps: int
    ) -> tuple[Params, Tensor, Tensor, Tensor]:
        """φ, its support loss, the class means of its features and the task's size."""
        phi, losses, features = adapt(self.learner, self.theta, support, classes, self.alpha, steps)
        means = class_means(features, support, classes.shape[-1])
        shots = membership(support, classes.shape[-1]).sum(0)
        return phi, losses, means, task_size(shots, classes)

    def _pad(self, group: Sequence[SupportSet], size: int) -> tuple[Examples, Tensor]:
        """Support sets as one container (B, size, ...), and which classes exist (B, rows)."""
        inputs = np.zeros((len(group), size, *self.card.input.shape), np.float32)
        labels = np.zeros((len(group), size), np.int64)
        mask = np.zeros((len(group), size), np.bool_)
        rows = self.learner.head.rows(min(size, self.most_rows))
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
        """Answers to chunks that are padded to one size, as one batched computation."""
        inputs = np.zeros((len(group), size, *self.card.input.shape), np.float32)
        rows = group[0][1].parameters["head.bias"].shape[0]
        classes = np.zeros((len(group), rows), np.bool_)
        for index, (_, phi, query) in enumerate(group):
            inputs[index, : len(query)] = query
            classes[index, : phi.ways] = True
        phis: Params = {
            name: torch.stack([phi.parameters[name] for _, phi, _ in group])
            for name in group[0][1].parameters
        }
        means = torch.stack([phi.means for _, phi, _ in group])
        sizes = torch.stack([phi.size for _, phi, _ in group])
        to = [torch.from_numpy(array).to(self.device) for array in (inputs, classes)]
        with torch.no_grad():
            answered = vmap(self._answer_one)(phis, means, sizes, *to)
        probabilities, outliers = (values.cpu().numpy() for values in answered)
        return [
            Answers(
                probabilities[index, : len(query), : phi.ways].copy(),
                outliers[index, : len(query)].copy() if self.card.calibration else None,
            )
            for index, (_, phi, query) in enumerate(group)
        ]

    def _answer_one(
        self, phi: Params, means: Tensor, size: Tensor, inputs: Tensor, classes: Tensor
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


def _powers(most: int) -> Iterator[int]:
    """The powers of two up to `most`, and 1 in any case."""
    count = 1
    yield count
    while 2 * count <= most:
        count *= 2
        yield count


Item = TypeVar("Item")


def _groups(items: Sequence[Item], most: int | None = None) -> Iterator[Sequence[Item]]:
    """Cuts items into runs whose lengths are powers of two, at most `most`, the longest first."""
    start = 0
    while start < len(items):
        left = len(items) - start if most is None else min(most, len(items) - start)
        length = 1 << (left.bit_length() - 1)
        yield items[start : start + length]
        start += length
