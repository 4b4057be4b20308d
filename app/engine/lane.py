"""A lane of the device: a thread that takes batches from the queue and computes them."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import torch

from app.engine.cache import PhiCache
from app.engine.compute import Computer
from app.engine.queue import Batch, Entry, WorkQueue
from app.engine.requests import Adapted, PhiMissing
from app.engine.work import Adapt, Chore, Export, Predict
from app.errors import EngineFailed

FAILURES_IN_A_ROW = 3
"""After so many requests in a row that failed in a lane even alone, the device is broken."""

SMALL_WORK = 4
"""What costs no more, in forward passes of one example, is done about as soon on one lane's share
of the threads (inputs of 28 x 28): more helpers of OpenMP would take cores from the service's other
threads, and keep them while they wait."""

log = structlog.get_logger(__name__)


@dataclass
class Counts:
    """What a lane has done so far."""

    batches: int = 0
    requests: int = 0
    failures: int = 0
    busy_seconds: float = 0.0
    in_a_row: int = 0


@dataclass(frozen=True)
class Limits:
    """Of one batch: requests, and work in forward passes of one example."""

    requests: int
    work: int


class Lane:
    """Takes one batch after the other, and computes each with the computer of its number.

    A GPU has one lane. On a CPU several requests are sooner done side by side, each on its share of
    the threads, than one after the other on all of them. A request that finds no other has all of
    them, to its end, unless it is little work.

    Args:
        number: 0 is the one that takes what comes while all rest.
        lanes: how many there are.
        threads: of the device, all together.
        queue: where batches come from.
        cache: where φ are kept.
        limits: of one batch.
        run: what the lane's thread does; it calls `work`.
    """

    def __init__(
        self,
        number: int,
        lanes: int,
        threads: int,
        *,
        queue: WorkQueue,
        cache: PhiCache,
        limits: Limits,
        run: Callable[["Lane"], None],
    ):
        self.number = number
        self.counts = Counts()
        self.batch: Sequence[Entry] = ()
        """What it works on."""
        self._all, self._share = threads, max(1, threads // lanes)
        self._queue = queue
        self._cache = cache
        self._limits = limits
        self.thread = threading.Thread(target=run, args=[self], name=f"lane {number}", daemon=True)

    def use_all_threads(self) -> None:
        """Has this lane's thread, which must have computed nothing yet, compute with all threads.

        To ask for the number is what keeps it: the first operation of a thread that never did takes
        over the number that any thread has set last (torch 2.13).
        """
        torch.get_num_threads()
        torch.set_num_threads(self._all)

    def work(self) -> None:
        """Works until the queue is closed and empty.

        Raises:
            RuntimeError: the device fails again and again.
        """
        limits = self._limits
        while self._serve(self._queue.next_batch(limits.requests, limits.work, self.number)):
            self.batch = ()  # it may be large, and the next may not come soon

    def _serve(self, batch: Batch | None) -> bool:
        """Whether there was a batch; it is done."""
        if batch is None:
            return False
        self.batch = batch.entries
        # Were there more helpers of OpenMP than cores, all of them would wait passively.
        first, *others = batch.entries
        small = 0 < first.cost <= SMALL_WORK  # a chore costs 0
        lone = self.number == 0 and batch.alone and not others and not small
        torch.set_num_threads(self._all if lone else self._share)
        if isinstance(first.work, Chore):
            self._do(first)
            return True
        self.counts.requests += len(batch.entries)
        with self._cache.batch():
            self._work_off(batch.entries)
        if self.counts.in_a_row >= FAILURES_IN_A_ROW:
            raise RuntimeError("the device failed again and again")
        return True

    def _do(self, chore: Entry) -> None:
        try:
            chore.future.set_result(chore.work.do(self.number))
        except Exception as error:  # of one version, which says nothing of the device
            chore.future.set_exception(error)
        finally:
            del chore  # the error knows this frame, and would keep the chore that knows the error

    def _work_off(self, batch: list[Entry]) -> None:
        """Runs a batch; where it fails, each of its requests alone, so that one hurts no other."""
        try:
            self._execute(batch)
            self.counts.in_a_row = 0
        except Exception as error:
            self.counts.failures += 1
            log.exception("a batch failed", requests=len(batch), error=str(error))
            if len(batch) == 1:
                self.counts.in_a_row += 1
                failed = EngineFailed("The device failed on this request; try again.", 1)
                batch[0].future.set_exception(failed)
            else:
                for entry in batch:
                    if not entry.future.done():
                        self._work_off([entry])

    def _execute(self, batch: list[Entry]) -> None:
        self.counts.batches += 1
        run: dict[type, Callable[[list[Entry], Computer], None]] = {
            Adapt: self._adapt,
            Predict: self._predict,
            Export: self._export,
        }
        began = time.monotonic()
        try:
            run[type(batch[0].work)](batch, batch[0].computers[self.number])
        finally:
            self.counts.busy_seconds += time.monotonic() - began

    def _adapt(self, batch: list[Entry], computer: Computer) -> None:
        works: list[Adapt] = [entry.work for entry in batch]
        supports, queries = [work.support for work in works], [work.query for work in works]
        adapted = computer.adapt(supports, works[0].steps, queries)
        for entry, (phi, losses, answers) in zip(batch, adapted, strict=True):
            self._cache.put(entry.phi_key, phi)
            weights = computer.weights(phi) if entry.work.export else None
            entry.future.set_result(Adapted(tuple(losses.tolist()), answers, weights))

    def _predict(self, batch: list[Entry], computer: Computer) -> None:
        found = []
        for entry in batch:
            phi = self._cache.get(entry.phi_key)
            if phi is None:
                entry.future.set_exception(PhiMissing(entry.phi_key))
            else:
                found.append((entry, phi))
        answers = computer.predict([(phi, entry.work.query) for entry, phi in found])
        for (entry, _), answer in zip(found, answers, strict=True):
            entry.future.set_result(answer)

    def _export(self, batch: list[Entry], computer: Computer) -> None:
        for entry in batch:
            phi = self._cache.get(entry.phi_key)
            if phi is None:
                entry.future.set_exception(PhiMissing(entry.phi_key))
            else:
                entry.future.set_result(computer.weights(phi))
