"""Which tasks share one computation, and what they are padded to.

Shapes are so few that all of a version can be warmed before it is served. A CPU computes each task
alone, as it is, without padding, several of them at the same time: in one computation with others
it is not done sooner for certain; `benchmarks/README.md` has the measurements.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TypeVar

import torch

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sharing:
    """When a device computes several tasks at once."""

    least: int
    """Fewest tasks that share a computation: 1 where a lone one is padded too, to a shape that was
    warmed."""
    largest: int
    """Most examples of a task that shares a computation, 0 where none does."""
    together: int
    """Most examples of such a computation, padding included."""
    queries: int
    """Most queries of a request that is answered along with others, at least with those of the same
    session."""
    queries_together: int
    """Most queries of such a computation, padding included."""
    query_sizes: tuple[int, ...]
    """What the queries of requests that share a computation are padded to; the last is also the
    most of one request that are computed at once, or where no tasks share a computation, the most
    by each thread: what a layer gives to the next then stays in the processor's cache."""
    work: int
    """Most work of one batch, in forward passes of one example: how long others may wait for it."""
    lanes: int
    """Most batches at the same time, each on its share of the device's threads."""
    work_at_once: int
    """Most work of all batches at the same time, unless one alone is more: memory bounds it."""

    def sizes(self, most: int) -> list[int]:
        """What support sets are padded to that share a computation, none above `most` examples."""
        sizes, size = [], padded(1)
        while size <= min(self.largest, padded(most)):
            sizes.append(size)
            size = padded(size + 1)
        return sizes

    def padded_queries(self, count: int) -> int:
        """The least size that holds `count` queries, or the largest."""
        return next((size for size in self.query_sizes if count <= size), self.query_sizes[-1])

    def counts(self, size: int, most: int) -> list[int]:
        """How many tasks of a size share a computation: powers of two, at most `most`."""
        return self._powers(min(most, self.together // size)) if size <= self.largest else []

    def query_counts(self, size: int, most: int) -> list[int]:
        """How many requests with a padded number of queries share a computation, likewise."""
        return self._powers(min(most, self.queries_together // size)) if self.largest else []

    def _powers(self, most: int) -> list[int]:
        counts, count = [], self.least
        while count <= most:
            counts.append(count)
            count *= 2
        return counts


def groups(items: Sequence[Item], counts: Sequence[int]) -> Iterator[Sequence[Item]]:
    """Cuts items into runs of as many as share a computation, or of one."""
    start = 0
    while start < len(items):
        count = max(n for n in (1, *counts) if n <= len(items) - start)
        yield items[start : start + count]
        start += count


USUAL_NUMBERS = 28 * 28
"""Numbers of an input for which the bounds of a GPU are meant."""

ON_CPU = Sharing(
    least=2,
    largest=0,
    together=0,
    queries=16,
    queries_together=0,
    query_sizes=(1, 4, 16, 40),
    work=1000,
    lanes=8,
    work_at_once=10_000,
)
ON_GPU = Sharing(
    least=1,
    largest=1024,
    together=4096,
    queries=1024,
    queries_together=8192,
    query_sizes=(1, 4, 16, 32, 48, 64, 80, 96, 128, 256),
    work=1 << 17,
    lanes=1,
    work_at_once=1 << 17,
)


def sharing_of(device: torch.device, numbers: int) -> Sharing:
    """How tasks of inputs of so many numbers share a device.

    Of larger inputs than those of 28 x 28 as many fewer share a computation: what it takes of the
    memory stays the same.
    """
    if device.type == "cpu":
        return ON_CPU
    share = min(1.0, USUAL_NUMBERS / numbers)
    together = max(1, int(ON_GPU.together * share))
    queries_together = max(1, int(ON_GPU.queries_together * share))
    return replace(
        ON_GPU,
        together=together,
        largest=min(ON_GPU.largest, together),
        queries_together=queries_together,
        query_sizes=tuple(size for size in ON_GPU.query_sizes if size <= queries_together),
    )


def padded(count: int) -> int:
    """The least of 4, 6, 8, 12, 16, 24, ... that holds `count` examples."""
    power = max(4, 1 << (count - 1).bit_length())
    return power * 3 // 4 if 4 < count <= power * 3 // 4 else power


def padded_rows(ways: int) -> int:
    """The least power of two from eight on that holds `ways` rows of a head."""
    return max(8, 1 << (ways - 1).bit_length())


def shared_rows(rows: int) -> list[int]:
    """What the rows of a head are padded to in a shared computation, `rows` at most."""
    return [*takewhile(lambda few: few < rows, (8, 32)), rows]
