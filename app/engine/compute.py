"""What the device computes: adaptations and answers, several at once where that is faster."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import structlog
import torch
import torch.func
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from app.devices import one_thread
from app.engine.alone import Alone, Pair, adapted_contents, array_of
from app.engine.phi import Contents, Layout, Phi
from app.engine.requests import Answers, Floats, SupportSet
from app.engine.shapes import groups, padded, padded_rows, shared_rows, sharing_of
from app.engine.staging import Staging
from app.errors import RegistryError
from app.learning.tasks import Examples
from app.recordings import CannotRecord, Compute, Pool, Recordings
from app.registry.registry import LoadedModel

log = structlog.get_logger(__name__)


class Chunk(NamedTuple):
    """Queries (Q, *input_shape) that are computed at once, of the request with this number."""

    request: int
    phi: Phi
    query: Floats


class Adaptation(NamedTuple):
    """What comes of one support set.

    `losses` (steps + 1,) are of the support set before the first step and after each. A GPU may
    still be computing φ and them: to read them is to wait for it. `answers` are there where there
    was a query.
    """

    phi: Phi
    losses: Tensor
    answers: Answers | None = None


class Computer:
    """One model version in a lane of the device. Only one thread at a time may compute with it.

    Tasks that share a computation meet in slots, one row of `slots` for each: an adaptation writes
    φ there, and queries are answered by what has been copied there. So recordings of whatever shape
    read and write one place.
    """

    def __init__(
        self,
        model: LoadedModel,
        device: torch.device,
        max_classes: int,
        at_once: int,
        pool: Pool | None = None,
    ):
        """Takes the model over; tasks of more than `max_classes` are computed alone.

        `pool` is where recordings keep what they compute: of all computers of a lane the same.
        """
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
        self.slot_rows = sorted({self.learner.head.rows(few) for few in shared_rows(self.rows)})
        """To one of these the heads of an answer are padded."""
        slots = max(self.sharing.query_counts(1, at_once), default=0)
        self.slots = torch.zeros(slots, self.layout.length(self.rows), device=device)
        self.pool = pool or Pool()
        self.adaptations, self.answers = (Recordings(device, self.pool) for _ in range(2))
        self.staging = Staging(device)
        self.recorded = True
        """Whether requests record the shapes that they meet, and replay them."""
        self._rehearsing, self._can_be_recorded = False, True

    def adapt(
        self,
        supports: Sequence[SupportSet],
        steps: int,
        queries: Sequence[Floats | None] | None = None,
    ) -> list[Adaptation]:
        """Adapts θ to each support set, and answers each query, where there is one.

        Sets that are to share a computation must have the same padded size.
        """
        queries = [None] * len(supports) if queries is None else queries
        each = list(zip(supports, queries, strict=True))
        if not self.sharing.largest:
            return [self._adapt_alone(support, steps, query) for support, query in each]
        size = padded(max(len(support.labels) for support in supports))
        counts = self.sharing.counts(size, self.at_once)
        adapted: list[Adaptation] = []
        with torch.no_grad():
            for group in groups(supports, counts):
                if len(group) in counts and self._fit(support.ways for support in group):
                    adapted += self._together(group, size, steps)
                else:
                    adapted += [self._adapt_alone(support, steps, None) for support in group]
        asking = [(index, query) for index, (_, query) in enumerate(each) if query is not None]
        answers = self.predict([(adapted[index].phi, query) for index, query in asking])
        for (index, _), its in zip(asking, answers, strict=True):
            adapted[index] = adapted[index]._replace(answers=its)
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
        if not self.sharing.largest:
            return [self._answer_alone(phi, query) for phi, query in requests]
        most = self.sharing.query_sizes[-1]
        alike: dict[tuple[int, int], list[Chunk]] = {}
        for index, (phi, query) in enumerate(requests):
            rows = next((few for few in self.slot_rows if phi.rows <= few), 0)
            for start in range(0, len(query), most):
                part = query[start : start + most]
                size = self.sharing.padded_queries(len(part))
                alike.setdefault((size, rows), []).append(Chunk(index, phi, part))
        answered: list[tuple[Sequence[Chunk], Tensor, Tensor]] = []
        with torch.no_grad():
            for size, rows in sorted(alike, reverse=True):  # of one request the last is smallest
                # Old sessions may know more classes than a slot has rows.
                counts = self.sharing.query_counts(size, self.at_once) if rows else []
                for group in groups(alike[size, rows], counts):
                    if len(group) in counts:
                        answered.append((group, *self._answer_together(group, size, rows)))
                        continue
                    for chunk in group:
                        [(probabilities, outliers)] = self.alone.answer(chunk.phi, [chunk.query])
                        answered.append(([chunk], probabilities[None], outliers[None]))
        parts: list[list[Answers]] = [[] for _ in requests]
        for asked, probabilities, outliers in answered:  # all have been asked for by now
            each = zip(asked, array_of(probabilities), array_of(outliers), strict=True)
            for (index, phi, query), its, unknown in each:
                parts[index].append(self._answers(phi, its[: len(query)], unknown[: len(query)]))
        return [_joined(its, phi) for its, (phi, _) in zip(parts, requests, strict=True)]

    def _adapt_alone(self, support: SupportSet, steps: int, query: Floats | None) -> Adaptation:
        parts = [] if query is None else self._parts(query)
        with torch.no_grad():
            phi, losses, pairs = self.alone.adapt(support, steps, parts)
        return Adaptation(phi, losses, None if query is None else self._read(phi, pairs))

    def _answer_alone(self, phi: Phi, query: Floats) -> Answers:
        with torch.no_grad():
            return self._read(phi, self.alone.answer(phi, self._parts(query)))

    def _parts(self, query: Floats) -> list[Floats]:
        """A query in parts of nearly one size, each for all threads that this one may use."""
        most = torch.get_num_threads() * self.sharing.query_sizes[-1]
        return np.array_split(query, math.ceil(len(query) / most)) if len(query) else []

    def _read(self, phi: Phi, pairs: Sequence[Pair]) -> Answers:
        """The answers to the parts of one query."""
        return _joined([self._answers(phi, *map(array_of, pair)) for pair in pairs], phi)

    def _answers(self, phi: Phi, probabilities: Floats, outliers: Floats) -> Answers:
        calibrated = self.card.calibration is not None
        return Answers(probabilities[:, : phi.ways], outliers if calibrated else None)

    def weights(self, phi: Phi) -> dict[str, Floats]:
        """φ by parameter name, the head with a row for each class."""
        parameters = self.layout.read(phi.vector, phi.ways).parameters
        return {name: array_of(value).copy() for name, value in parameters.items()}

    def record(self) -> None:
        """Records what is computed alone, if it can be; blocks for seconds, but no lane."""
        try:
            with one_thread():
                self.alone.record()
        except Exception as error:  # whatever it is, Python computes the same
            self._warn(error)

    def warm(self, max_support: int) -> Iterator[Callable[["Computer"], object]]:
        """What each computer of the version is to do before it is as fast as it can be.

        That is every shape that tasks can share, and of what is computed alone every size of a
        head, and every number of queries with one of them: in the network they are the same.
        """
        steps, sharing = self.card.steps, self.sharing
        # The largest first, whose memory the others then find room in.
        for count, size in self._largest_first(sharing.sizes(max_support), sharing.counts):
            supports = [self._blank(size, 2)] * count
            yield partial(Computer.adapt, supports=supports, steps=steps)
        for count, size in self._largest_first(sharing.query_sizes, sharing.query_counts):
            for rows in reversed(self.slot_rows):
                yield partial(Computer._warm_queries, ways=rows, size=size, count=count)
        rows, sizes = padded_rows(1), sharing.query_sizes
        while rows <= self.most_rows:
            ways = min(rows, self.learner.head.rows(rows))
            yield partial(Computer.adapt, supports=[self._blank(rows, ways)], steps=steps)
            for size in sizes:
                yield partial(Computer._warm_queries, ways=ways, size=size, count=1)
            rows, sizes = rows * 2, sizes[:1]

    def _largest_first(
        self, sizes: Sequence[int], counts: Callable[[int, int], list[int]]
    ) -> list[tuple[int, int]]:
        """How many of which size share a computation, by what they are together."""
        shapes = [(count, size) for size in sizes for count in counts(size, self.at_once)]
        return sorted(shapes, key=math.prod, reverse=True)

    def rehearse(self, do: Callable[["Computer"], object]) -> None:
        """Does what `warm` gives, and records it, whether requests are to or not."""
        self._rehearsing = True
        try:
            do(self)
        finally:
            self._rehearsing = False

    def forget_recordings(self) -> None:
        """Gives their memory back; none are made any more."""
        self._can_be_recorded = False
        self.adaptations, self.answers = (Recordings(self.device, self.pool) for _ in range(2))

    def _warm_queries(self, ways: int, size: int, count: int) -> None:
        rows = self.learner.head.rows(ways)
        query = np.zeros((size, *self.card.input.shape), np.float32)
        vectors = torch.zeros(count, self.layout.length(rows), device=self.device)
        self.predict([(Phi(vector, ways, rows), query) for vector in vectors])

    def _blank(self, examples: int, ways: int) -> SupportSet:
        inputs = np.zeros((examples, *self.card.input.shape), np.float32)
        return SupportSet(inputs, np.arange(examples) % ways, ways)

    def _together(self, group: Sequence[SupportSet], size: int, steps: int) -> list[Adaptation]:
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
        # Of any number of steps there would be too many recordings.
        losses = self._computed(self.adaptations, compute, tasks, record=steps == self.card.steps)
        adapted = []
        slots = self.slots[: len(group)]
        for support, slot, loss in zip(group, slots, losses.clone(), strict=True):
            rows = self.learner.head.rows(support.ways)
            vector = slot[: self.layout.length(rows)].clone()
            adapted.append(Adaptation(Phi(vector, support.ways, rows), loss))
        return adapted

    def _computed(
        self, recordings: Recordings, compute: Compute, staged: Any, *, record: bool = True
    ) -> Any:
        """What is computed of staged inputs; on a GPU recorded, unless the network cannot be."""
        record = record and (self.recorded or self._rehearsing)
        if record and self._can_be_recorded:
            try:
                return recordings.run("", compute, staged)
            except CannotRecord as error:
                self._can_be_recorded = False
                self._warn(error)
            finally:
                self.staging.sent()
        inputs = tree_map(lambda tensor: tensor.to(self.device), staged)
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
        self.staging.next()
        inputs = self._staged("inputs", torch.float32, len(group), size, *self.card.input.shape)
        labels = self._staged("labels", torch.int64, len(group), size)
        mask = self._staged("mask", torch.bool, len(group), size)
        rows = self.learner.head.rows(min(size, self.most_rows))
        classes = self._staged("classes", torch.bool, len(group), rows)
        places = zip(inputs.numpy(), labels.numpy(), mask.numpy(), classes.numpy(), strict=True)
        for support, (*examples, exists) in zip(group, places, strict=True):
            count = len(support.labels)
            for place, given in zip(examples, (support.inputs, support.labels, True), strict=True):
                place[:count], place[count:] = given, 0
            exists[:] = np.arange(rows) < support.ways
        return Examples(inputs, labels, mask), classes

    def _staged(self, name: str, dtype: torch.dtype, *shape: int) -> Tensor:
        return self.staging.tensor(name, shape, dtype)

    def _fit(self, ways: Iterable[int]) -> bool:
        """Whether heads of so many classes fit a slot."""
        return all(self.learner.head.rows(each) <= self.rows for each in ways)

    def _answer_together(
        self, group: Sequence[Chunk], size: int, rows: int
    ) -> tuple[Tensor, Tensor]:
        """Answers to chunks of queries, padded to one size and so many rows of a head.

        (B, size, rows) and (B, size), in memory of their own.
        """

        def compute(inputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            classes, queries = inputs
            held = self.layout.read(self.slots[: len(classes)], classes.shape[-1])
            return vmap(answer)(held, classes, queries)

        def answer(held: Contents, classes: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
            return answering.answer(answering.ready(held, classes), inputs)

        answering = self.alone.answering
        self.staging.next()
        queries = self._staged("queries", torch.float32, len(group), size, *self.card.input.shape)
        classes = self._staged("classes", torch.bool, len(group), rows)
        places = zip(queries.numpy(), classes.numpy(), strict=True)
        for (_, phi, query), (place, exists) in zip(group, places, strict=True):
            place[: len(query)], place[len(query) :] = query, 0
            exists[:] = np.arange(rows) < phi.ways
        vectors = [phi.vector for _, phi, _ in group]
        slots = zip(self.slots[: len(group)], vectors, strict=True)
        torch._foreach_copy_([slot[: len(vector)] for slot, vector in slots], vectors)
        probabilities, outliers = self._computed(self.answers, compute, (classes, queries))
        return probabilities.clone(), outliers.clone()


def computers_of(
    model: LoadedModel,
    device: torch.device,
    max_classes: int,
    at_once: int,
    pools: Sequence[Pool],
) -> list[Computer]:
    """A computer for each lane, with a network of its own; θ is shared. Arguments as of `Computer`.

    The parameters are put into a network while it runs, so no two threads can use the same.
    """
    others = [replace(model, learner=model.learner.twin()) for _ in pools[1:]]
    return [
        Computer(each, device, max_classes, at_once, pool)
        for each, pool in zip((model, *others), pools, strict=True)
    ]


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
