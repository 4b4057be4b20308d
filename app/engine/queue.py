"""The bounded queue between the callers and the device's thread."""

import threading
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from app.engine.requests import ModelKey
from app.errors import QueueFull, Unavailable


@dataclass(eq=False)
class Entry:
    """One request.

    Entries of the same `shape` can share a batch, up to a `cost` of one batch; the unit is one
    example.
    """

    model: ModelKey
    phi_key: str
    work: Any
    shape: Hashable
    cost: int
    future: Future[Any] = field(default_factory=Future)


class WorkQueue:
    """First in, first out, but that entries which fit the first one's batch come along with it."""

    def __init__(self, limit: int):
        self.limit = limit
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._closed: Unavailable | None = None

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def closed(self) -> bool:
        """Whether it takes no more entries."""
        return self._closed is not None

    def put(self, entry: Entry, *, beyond_limit: bool = False) -> None:
        """Adds an entry; `beyond_limit` is for what is no request.

        Raises:
            QueueFull: there is no room.
            Unavailable: the queue was closed; the error is the one given to `close`.
        """
        with self._changed:
            if self._closed is not None:
                raise self._closed.with_traceback(None)  # it would grow with every raise
            if len(self._entries) >= self.limit and not beyond_limit:
                raise QueueFull(
                    f"{self.limit} requests wait for the device already; try again later"
                )
            self._entries.append(entry)
            self._changed.notify()

    def next_batch(self, most: int, most_cost: int) -> list[Entry] | None:
        """Waits for work and takes the first entry, with others of its shape while they fit.

        Callers who have gone are skipped; the futures of the others can no longer be cancelled.

        Returns:
            At least one entry, or None once the queue is closed and empty.
        """
        with self._changed:
            while True:
                while not self._entries and self._closed is None:
                    self._changed.wait()
                if not self._entries:
                    return None
                batch = self._take(most, most_cost)
                if batch:
                    return batch

    def close(self, reason: Unavailable) -> None:
        """Takes no more entries; those that wait are still served."""
        with self._changed:
            self._closed = reason
            self._changed.notify_all()

    def fail_all(self, error: Exception) -> None:
        """Fails every entry that waits."""
        with self._changed:
            entries = list(self._entries)
            self._entries.clear()
        for entry in entries:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(error)

    def _take(self, most: int, most_cost: int) -> list[Entry]:
        batch: list[Entry] = []
        cost = 0
        passed: list[Entry] = []
        while self._entries and len(batch) < most:
            entry = self._entries.popleft()
            fits = not batch or (entry.shape == batch[0].shape and cost + entry.cost <= most_cost)
            if not fits:
                passed.append(entry)
            elif entry.future.set_running_or_notify_cancel():
                batch.append(entry)
                cost += entry.cost
        self._entries.extendleft(reversed(passed))
        return batch
