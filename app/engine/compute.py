"""What the device computes: adaptations and answers, several at once where that is faster."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import structlog
import torch
import torch.func
from torch import Tensor
from torch.func import vmap

from app.devices import one_thread
from app.engine.alone import Alone, PhiAndLoss, adapted_contents, array_of
from app.engine.phi import Contents, Layout, Phi
from app.engine.requests import Answers, Floats, SupportSet
from app.engine.shapes import padded, padded_rows, sharing_of
from app.errors import RegistryError
from app.learning.tasks import Examples
from app.recordings import CannotRecord, Compute, Recordings
from app.registry.registry import LoadedModel

log = structlog.get_logger(__name__)


class Computer:
    """One model version in a lane of the device. Only one thread at a time may compute with it.

    Tasks that share a computation meet in slots, one row of `slots` for each: an adaptation writes
    φ there, and queries are answered by what has been copied there. So recordings of whatever shape
    read and write one place.
    """

    def __init__(self, model: LoadedModel, device: torch.device, max_classes: int, at_once: int):
        """Takes the model over; tasks of more than `max_classes` are computed alone."""
        model = model.on(device)
        self.card = model.card
        self.learner = model.learner
        self.device = device
        self.most_rows = padded_rows(max_classes)
        self.at_once = at_once
        """Most tasks of one computation."""
        self.sharing = sharing_of(device, math.prod(self.card.input.shape))
        self.theta = model.theta
        self.alpha = model.alpha
        self.layout = Layout(self.learner, self.theta)
        self.alone = Alone(model, self.layout, device)
        self.rows = self.learner.head.rows(self.most_rows)
        """Rows of the head in a slot."""
        slots = max(self.sharing.counts(1, at_once), default=0)
        self.slots = torch.zeros(slots, self.layout.length(self.rows), device=device)
        self.adaptations, self.answers = Recordings(), Recordings()
        self.recorded = True

    def adapt(self, supports: Sequence[SupportSet], steps: int) -> list[PhiAndLoss]:
        """Adapts θ to each support set; all must have the same padded size."""
        size = padded(max(len(support.labels) for support in supports))
        sharing = self.sharing.counts(size, self.at_once)
        adapted: list[PhiAndLoss] = []
        with torch.no_grad():
            for group in self.sharing.groups(supports, size, self.at_once):
                if len(group) in sharing and self._fit(support.ways for support in group):
                    adapted += self._together(group, size, steps)
                else:
                    adapted += [self.alone.adapt(support, steps) for support in group]
        return adapted

    def predict(self, requests: Sequence[tuple[Phi, Floats]]) -> list[Answers]:
        """Answers each request's queries (Q, *input_shape), each on its own.

        Queries of one φ are computed as if one request had them all: there is no faster company.
        """
        same: dict[int, list[int]] = {}
        for index, (phi, _) in enumerate(requests):
            same.setdefault(id(phi), []).append(index)
        joint = self._predict(
            [
                (requests[indices[0]][0], _concatenated([requests[at][1] for at in indices]))
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
            most = self.sharing.query_sizes[-1]
            for start in range(0, len(query), most):
                chunk = query[start : start + most]
                size = self.sharing.padded_queries(len(chunk))
                by_size.setdefault(size, []).append((index, phi, chunk))
        parts: list[list[Answers]] = [[] for _ in requests]
        for size in sorted(by_size, reverse=True):  # of one request the last chunk is the smallest
            for group in self.sharing.groups(by_size[size], size, self.at_once):
                for (index, _, _), answer in zip(group, self._answer(group, size), strict=True):
                    parts[index].append(answer)
        return [_joined(its, phi) for its, (phi, _) in zip(parts, requests, strict=True)]

    def weights(self, phi: Phi) -> dict[str, Floats]:
        """φ by parameter name, the head with a row for each class."""
        parameters = self.layout.read(phi.vector, phi.ways).parameters
        return {name: value.cpu().numpy().copy() for name, value in parameters.items()}

    def record(self) -> None:
        """Records what is computed alone, if it can be; blocks for seconds, but no lane."""
        try:
            with one_thread():
                self.alone.record()
        except Exception as error:  # whatever it is, Python computes the same
            self._warn(error)

    def warm(self, max_support: int) -> Iterator[Callable[[], object]]:
        """What a lane is to do before the first request, each in its turn.

        That is every shape that tasks can share, and of what is computed alone every size of a
        head, and every number of queries with one of them: in the network they are the same.
        """
        steps = self.card.steps
        for size in self.sharing.sizes(max_support):
            for count in self.sharing.counts(size, self.at_once):
                yield partial(self.adapt, [self._blank(size, 2)] * count, steps)
        for size in self.sharing.query_sizes:
            for count in self.sharing.counts(size, self.at_once):
                yield partial(self._warm_queries, 2, size, count)
        rows, sizes = padded_rows(1), self.sharing.query_sizes
        while rows <= self.most_rows:
            ways = min(rows, self.learner.head.rows(rows))
            yield partial(self.adapt, [self._blank(rows, ways)], steps)
            for size in sizes:
                yield partial(self._warm_queries, ways, size, 1)
            rows, sizes = rows * 2, sizes[:1]

    def _warm_queries(self, ways: int, size: int, count: int) -> None:
        rows = self.learner.head.rows(ways)
        query = np.zeros((size, *self.card.input.shape), np.float32)
        vectors = torch.zeros(count, self.layout.length(rows), device=self.device)
        self.predict([(Phi(vector, ways, rows), query) for vector in vectors])

    def _blank(self, examples: int, ways: int) -> SupportSet:
        inputs = np.zeros((examples, *self.card.input.shape), np.float32)
        return SupportSet(inputs, np.arange(examples) % ways, ways)

    def _together(self, group: Sequence[SupportSet], size: int, steps: int) -> list[PhiAndLoss]:
        """Adapts θ to several support sets as one computation, padded to one size."""

        def adapt(support: Examples, classes: Tensor) -> tuple[Contents, Tensor]:
            return adapted_contents(
                self.learner, self.theta, support, classes, self.alpha, steps, torch.func.vjp
            )

        def compute(tasks: tuple[Examples, Tensor]) -> Tensor:
            adapted, losses = vmap(adapt)(*tasks)
            self.layout.write(self.slots[: len(losses)], adapted)
            return losses

        tasks = self._pad(group, size)
        if steps == self.card.steps:  # of any number there would be too many recordings
            losses = self._replayed(self.adaptations, compute, tasks)
        else:
            losses = compute(tasks)
        adapted = []
        slots = self.slots[: len(group)]
        for support, slot, loss in zip(group, slots, losses.tolist(), strict=True):
            rows = self.learner.head.rows(support.ways)
            vector = slot[: self.layout.length(rows)].clone()
            adapted.append((Phi(vector, support.ways, rows), tuple(loss)))
        return adapted

    def _replayed(self, recordings: Recordings, compute: Compute, inputs: Any) -> Any:
        """What is computed of the inputs; on a GPU recorded, unless the network cannot be."""
        if not self.recorded:
            return compute(inputs)
        try:
            return recordings.run("", compute, inputs)
        except CannotRecord as error:
            self.recorded = False
            self._warn(error)
            return compute(inputs)

    def _warn(self, error: Exception) -> None:
        log.warning(
            "answers take longer than they could",
            model=self.card.name,
            version=self.card.version,
            reason=str(error),
        )

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
        """Answers to chunks of queries, as one computation where they can share one."""
        sharing = self.sharing.counts(size, self.at_once)
        answered: Iterable[tuple[Floats, Floats]]
        calibrated = self.card.calibration is not None
        with torch.no_grad():
            if len(group) in sharing and self._fit(phi.ways for _, phi, _ in group):
                probabilities, outliers = self._answer_together(group, size)
                # Copies, as the next replay writes to the same tensors.
                answered = zip(
                    array_of(probabilities.clone()), array_of(outliers.clone()), strict=True
                )
            else:
                answered = (self.alone.answer(phi, query) for _, phi, query in group)
            return [
                Answers(
                    probabilities[: len(query), : phi.ways],
                    outliers[: len(query)] if calibrated else None,
                )
                for (_, phi, query), (probabilities, outliers) in zip(group, answered, strict=True)
            ]

    def _fit(self, ways: Iterable[int]) -> bool:
        """Whether heads of so many classes fit a slot: old sessions may know more than new ones."""
        return all(self.learner.head.rows(each) <= self.rows for each in ways)

    def _answer_together(self, group: Sequence[tuple[int, Phi, Floats]], size: int) -> Any:
        """The same of several, padded to one size; tensors (B, ...)."""

        def compute(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            classes, queries = inputs
            held = self.layout.read(self.slots[: len(classes)], classes.shape[-1])
            return vmap(answer)(held, classes, queries)

        def answer(held: Contents, classes: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return answering.answer(answering.ready(held, classes), inputs)

        answering, phis = self.alone.answering, [phi for _, phi, _ in group]
        padding = np.zeros((len(group), size, *self.card.input.shape), np.float32)
        slots = self.slots[: len(group)]
        for slot, place, (_, phi, query) in zip(slots, padding, group, strict=True):
            slot[: len(phi.vector)].copy_(phi.vector)
            place[: len(query)] = query
        inputs = self._classes(phis, self.rows), torch.from_numpy(padding).to(self.device)
        return self._replayed(self.answers, compute, inputs)

    def _classes(self, phis: Sequence[Phi], rows: int) -> Tensor:
        """Which of the rows of a head are classes of each φ, (B, rows) bool."""
        ways = torch.tensor([phi.ways for phi in phis], device=self.device)
        return torch.arange(rows, device=self.device) < ways[:, None]


def computers_of(
    model: LoadedModel, device: torch.device, max_classes: int, at_once: int, lanes: int
) -> list[Computer]:
    """A computer for each lane, with a network of its own; θ is shared. Arguments as of `Computer`.

    The parameters are put into a network while it runs, so no two threads can use the same.
    """
    others = [replace(model, learner=model.learner.twin()) for _ in range(1, lanes)]
    return [Computer(each, device, max_classes, at_once) for each in (model, *others)]


def _joined(parts: Sequence[Answers], phi: Phi) -> Answers:
    """The answers to the chunks of one request as one."""
    if not parts:
        return Answers(np.empty((0, phi.ways), np.float32), None)
    outliers = [part.outlier for part in parts if part.outlier is not None]
    return Answers(
        _concatenated([part.probabilities for part in parts]),
        _concatenated(outliers) if outliers else None,
    )


def _concatenated(arrays: Sequence[Floats]) -> Floats:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def check_served(model: LoadedModel) -> None:
    """Refuses a model whose answers to requests would be wrong, or none.

    Raises:
        RegistryError: it says why.
    """
    card, reason = model.card, None
    if card.task != "classification":
        reason = f"models of {card.task} are not served"
    elif model.learner.transductive:
        reason = (
            "it is transductive: answers would depend on the other queries in the batch; train "
            'with norm = "group"'
        )
    if reason:
        raise RegistryError(
            f"{card.name} version {card.version} cannot be served, {reason}. Take it out of the "
            "models folder."
        )
