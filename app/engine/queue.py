"""The bounded queue between the callers and the device's lanes."""

import threading
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.errors import QueueFull, Unavailable


@dataclass(eq=False)
class Entry:
    """One request.

    Entries of the same `shape` can share a batch, up to a `cost` of one batch; the unit is one
    example. `computers` is what its model was when it came, one for each lane: another model may
    take its name meanwhile.
    """

    computers: Any
    phi_key: str
    work: Any
    shape: Hashable
    cost: int
    owner: str = ""
    future: Future[Any] = field(default_factory=Future)


class Batch(NamedTuple):
    """What a lane is to do, and whether no other is at work, or is to be soon."""

    entries: list[Entry]
    alone: bool


class WorkQueue:
    """Owners take turns; the entries of one owner are first in, first out.

    Entries that fit the first one's batch come along with it, again by turns: who sends much fills
    what others leave. Where the queue is full, the last entry of whoever has most gives way to an
    owner with fewer: nobody keeps the others out.

    Several lanes may take from it, each under a number from 0 on. Where more than one of them
    rests, the least number takes what comes. What would cost more than `most_at_work` along with
    what is being done waits until it does not, or nothing is being done; but for what costs a
    tenth of it at most, which shall not wait for somebody's largest task.

    Args:
        limit: most entries that wait.
        most_at_work: see above.
    """

    def __init__(self, limit: int, most_at_work: int):
        self.limit = limit
        self._most_at_work = most_at_work
        self._waiting: dict[str, deque[Entry]] = {}  # by owner, whose turn it is first
        self._at_work: dict[int, int] = {}
        """The lanes that have a batch, and what it costs."""
        self._changed = threading.Condition()
        self._closed: Unavailable | None = None

    def __len__(self) -> int:
        return sum(map(len, list(self._waiting.values())))

    @property
    def closed(self) -> bool:
        """Whether it takes no more entries."""
        return self._closed is not None

    def check_open(self) -> None:
        """Raises the error given to `close`, once it was."""
        if self._closed is not None:
            raise self._closed.with_traceback(None)  # it would grow with every raise

    def put(self, entry: Entry, *, beyond_limit: bool = False) -> None:
        """Adds an entry; `beyond_limit` is for what is no request.

        The future of an entry that gives way ends with QueueFull.

        Raises:
            QueueFull: there is no room.
            Unavailable: the queue was closed; the error is the one given to `close`.
        """
        displaced: Entry | None = None
        with self._changed:
            self.check_open()
            if len(self) >= self.limit and not beyond_limit:
                self._drop_gone()
            if len(self) >= self.limit and not beyond_limit:
                displaced = self._take_from_most(entry.owner)
                if displaced is None:
                    raise self._full()
            self._waiting.setdefault(entry.owner, deque()).append(entry)
            self._changed.notify_all()
        if displaced is not None and displaced.future.set_running_or_notify_cancel():
            displaced.future.set_exception(self._full())

    def next_batch(self, most: int, most_cost: int, lane: int = 0) -> Batch | None:
        """Waits for work and takes the first entry whose turn it is, with others of its shape.

        Callers who have gone are skipped; the futures of the others can no longer be cancelled.

        Args:
            most: how many entries at most.
            most_cost: what they cost at most, unless the first one alone costs more.
            lane: who asks, and is done with the batch before.

        Returns:
            At least one entry, or None once the queue is closed and empty.
        """
        with self._changed:
            if self._at_work.pop(lane, None) is not None:
                self._changed.notify_all()
            while True:
                while not self._may_take(lane):
                    if self._closed is not None and not self._waiting:
                        return None
                    self._changed.wait()
                entries = self._take(most, most_cost)
                if entries:
                    self._at_work[lane] = sum(entry.cost for entry in entries)
                    self._changed.notify_all()  # what is left is another lane's now
                    others = bool(self._waiting) and self._at_work[lane] < self._most_at_work
                    return Batch(entries, len(self._at_work) == 1 and not others)

    def _may_take(self, lane: int) -> bool:
        if not self._waiting:
            return False
        others_rest = any(before not in self._at_work for before in range(lane))
        if others_rest and self._closed is None:  # once it is, they may have gone home
            return False
        first = next(iter(self._waiting.values()))[0]
        cost = first.cost + sum(self._at_work.values())
        little = 10 * first.cost <= self._most_at_work
        return not self._at_work or little or cost <= self._most_at_work

    def close(self, reason: Unavailable) -> None:
        """Takes no more entries; those that wait are still served."""
        with self._changed:
            self._closed = reason
            self._changed.notify_all()

    def fail_all(self, error: Exception) -> None:
        """Fails every entry that waits."""
        with self._changed:
            entries = [entry for waiting in self._waiting.values() for entry in waiting]
            self._waiting.clear()
        for entry in entries:
            if entry.future.set_running_or_notify_cancel():
                entry.future.set_exception(error)

    def _take(self, most: int, most_cost: int) -> list[Entry]:
        batch: list[Entry] = []
        cost = 0
        turns = deque(self._waiting)
        while turns and len(batch) < most:
            owner = turns.popleft()
            entry = self._first(owner, batch, most_cost - cost)
            if entry is None:
                continue  # nothing more of this owner fits
            turns.append(owner)
            if entry.future.set_running_or_notify_cancel():
                batch.append(entry)
                cost += entry.cost
                if owner in self._waiting:  # now everyone else comes first
                    self._waiting[owner] = self._waiting.pop(owner)
        return batch

    def _first(self, owner: str, batch: list[Entry], left: int) -> Entry | None:
        """Takes the owner's first entry out that may join the batch; any may be its first."""
        waiting = self._waiting.get(owner, ())
        for index, entry in enumerate(waiting):
            if not batch or (entry.shape == batch[0].shape and entry.cost <= left):
                del self._waiting[owner][index]
                if not self._waiting[owner]:
                    del self._waiting[owner]
                return entry
        return None

    def _take_from_most(self, owner: str) -> Entry | None:
        """Takes the last entry of whoever has most, if `owner` has fewer with one more, too."""
        most = max(self._waiting.values(), key=len)
        return most.pop() if len(most) > len(self._waiting.get(owner, ())) + 1 else None

    def _full(self) -> QueueFull:
        return QueueFull(f"{self.limit} requests wait for the device already; try again later")

    def _drop_gone(self) -> None:
        """Takes out the entries whose callers have gone."""
        for owner, waiting in list(self._waiting.items()):
            here = deque(entry for entry in waiting if not entry.future.cancelled())
            if here:
                self._waiting[owner] = here
            else:
                del self._waiting[owner]
