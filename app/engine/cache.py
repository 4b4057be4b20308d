"""Adapted weights of recent sessions, on the device, bounded in bytes."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from app.engine.phi import Phi

MOST_MISSED = 1000
"""Of so many missed φ the cache remembers since when; callers ask for each to be made anew."""


class PhiCache:
    """The least recently used φ goes first. Any thread may use it."""

    def __init__(self, capacity_bytes: int):
        self.capacity_bytes = capacity_bytes
        self.bytes = self.hits = self.misses = self.evictions = self.rebuilds = 0
        self.rebuild_seconds = 0.0
        """From a miss to the put of the same key, all added up."""
        self._missed: OrderedDict[str, float] = OrderedDict()
        self._entries: OrderedDict[str, Phi] = OrderedDict()
        self._batches: list[set[str]] = []
        """Of each batch that is under way, the keys that were dropped meanwhile."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Phi | None:
        """φ of a key, which becomes the most recently used, or None."""
        with self._lock:
            phi = self._entries.get(key)
            if phi is None:
                self.misses += 1
                self._missed.setdefault(key, time.monotonic())
                if len(self._missed) > MOST_MISSED:
                    self._missed.popitem(last=False)
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return phi

    def put(self, key: str, phi: Phi) -> None:
        """Keeps φ and drops the least recently used until all fits; one too large is not kept."""
        with self._lock:
            since = self._missed.get(key)
            if since is not None:
                self.rebuilds += 1
                self.rebuild_seconds += time.monotonic() - since
            self._drop(key)
            if phi.bytes > self.capacity_bytes:
                return
            self._entries[key] = phi
            self.bytes += phi.bytes
            while self.bytes > self.capacity_bytes:
                _, oldest = self._entries.popitem(last=False)
                self.bytes -= oldest.bytes
                self.evictions += 1

    def drop(self, key: str) -> None:
        """Forgets φ of a key, if it is there, also if a batch that is under way puts it."""
        with self._lock:
            self._drop(key)
            for dropped in self._batches:
                dropped.add(key)

    @contextmanager
    def batch(self) -> Iterator[None]:
        """What a batch runs in that may put: what is dropped during it is gone after it."""
        dropped: set[str] = set()
        with self._lock:
            self._batches.append(dropped)
        try:
            yield
        finally:
            with self._lock:
                self._batches = [other for other in self._batches if other is not dropped]
                for key in dropped:
                    self._drop(key)

    def _drop(self, key: str) -> None:
        self._missed.pop(key, None)
        phi = self._entries.pop(key, None)
        if phi is not None:
            self.bytes -= phi.bytes
