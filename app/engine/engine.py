"""The engine: callers submit work and get futures; one thread does it on the device."""

import gc
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
import torch

from app.devices import choose_device, one_thread
from app.engine.cache import PhiCache
from app.engine.compute import Computer, check_served
from app.engine.queue import Entry, WorkQueue
from app.engine.requests import Adapted, Answers, Floats, ModelKey, PhiMissing, SupportSet
from app.engine.shapes import USUAL_NUMBERS, padded, sharing_of
from app.engine.work import Adapt, Chore, Export, Predict
from app.errors import DeviceError, Draining, EngineFailed, NotReady, Unavailable
from app.registry import LoadedModel, Registry
from app.settings import Settings

FAILURES_IN_A_ROW = 3
"""After so many requests in a row that failed even alone, the device is taken for broken."""

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass
class _Counts:
    """What the device has done so far."""

    batches: int = 0
    requests: int = 0
    failures: int = 0
    busy_seconds: float = 0.0
    in_a_row: int = 0


class Engine:
    """Adapts θ to support sets and answers queries with the adapted φ.

    The device belongs to one thread, from `start` to `stop`. Every future ends: with an answer,
    with PhiMissing, or with a class of `app.errors.Unavailable`. An answer does not depend on which
    other requests shared its batch.
    """

    def __init__(self, registry: Registry, settings: Settings):
        """Reads and verifies every version of every model.

        Raises:
            RegistryError: a model on disk is broken, or none that can answer requests.
            DeviceError: the device is not there.
        """
        self._registry = registry
        self._settings = settings
        self._device = choose_device(settings.device)
        self._most_work = sharing_of(self._device, USUAL_NUMBERS).work
        self._threads = torch.get_num_threads()
        self._name_closed()
        with one_thread():
            self._models = {
                ModelKey(name, version): registry.load(name, version)
                for name in registry.names()
                for version in registry.versions(name)
            }
        for model in self._models.values():
            check_served(model)
        self._computers: dict[ModelKey, Computer] = {}
        self._cache = PhiCache(settings.phi_cache_bytes)
        self._queue = WorkQueue(settings.queue_limit)
        self._forgotten: list[str] = []
        self._counts = _Counts()
        self._warm = threading.Event()
        self._failure: EngineFailed | None = None
        self._reloading = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether every shape is warm and the device works."""
        return self._warm.is_set() and self._failure is None and self._thread.is_alive()

    @property
    def failed(self) -> bool:
        """Whether the device is broken; only a restart helps."""
        return self._failure is not None

    def serves(self, model: ModelKey, theta_sha256: str | None = None) -> bool:
        """Whether the engine holds this version, and of this θ where one is given."""
        held = self._models.get(model)
        return held is not None and theta_sha256 in (None, held.card.theta_sha256)

    def start(self) -> None:
        """Starts the device's thread, which warms every shape first."""
        self._thread.start()

    def reload(self) -> None:
        """Takes in what is new or changed in the registry, while requests are served as before.

        A version is served once every shape of it is warm. One that is broken or cannot be served
        is logged, and changes nothing. One that is gone is dropped. Blocks until all is done, or
        the engine is stopped; a call during another one looks again after it.
        """
        # Unavailable: the engine was stopped, or its device is broken.
        with self._reloading, suppress(Unavailable):
            self._name_closed()
            self._drop_gone()
            for name in self._registry.names():
                for version in self._registry.versions(name):
                    try:
                        self._take_in(ModelKey(name, version))
                    except Unavailable:
                        raise
                    except Exception as error:  # whatever it is, the other versions are served
                        folder = self._registry.folder(name, version)
                        log.error("a version is left out", folder=str(folder), reason=str(error))

    def stop(self, drain_seconds: float) -> None:
        """Takes no more requests, serves those that wait for so long, and fails what is left."""
        reason = Draining("The server is shutting down; try again shortly.", retry_after_seconds=5)
        self._queue.close(reason)
        if self._thread.ident is not None:
            self._thread.join(drain_seconds)
        self._queue.fail_all(reason)

    def adapt(
        self,
        model: ModelKey,
        phi_key: str,
        support: SupportSet,
        steps: int,
        query: Floats | None,
        owner: str = "",
    ) -> Future[Adapted]:
        """Adapts θ to a support set, keeps φ under `phi_key` and answers the query.

        Args:
            model: which θ.
            phi_key: names this φ; the same key must always mean the same support set and steps.
            support: the support set; labels in [0, ways), at least one example of each.
            steps: inner steps.
            query: (Q, *input_shape) float32, or None.
            owner: who asks; owners take turns.

        Raises:
            Unavailable: the queue is full, or the device is not warm, broken or being stopped.
        """
        computer, size = self._computer_of(model), len(support.labels)
        shares = size <= computer.sharing.largest
        if shares:
            size = padded(size)
        # A backward pass costs two forward ones; at the end come one more, and the queries.
        cost = size * (3 * steps + 1) + (0 if query is None else len(query))
        kind = ("adapt", size, steps) if shares else object()
        return self._submit(computer, phi_key, Adapt(support, steps, query), kind, cost, owner)

    def predict(
        self, model: ModelKey, phi_key: str, query: Floats, owner: str = ""
    ) -> Future[Answers]:
        """Answers queries (Q, *input_shape) by the φ kept under `phi_key`.

        The future raises PhiMissing where the cache has no such φ (any more).

        Raises:
            Unavailable: as for `adapt`.
        """
        computer = self._computer_of(model)
        kind = "predict" if len(query) <= computer.sharing.queries else object()
        return self._submit(computer, phi_key, Predict(query), kind, len(query), owner)

    def weights(self, model: ModelKey, phi_key: str, owner: str = "") -> Future[dict[str, Floats]]:
        """The φ kept under `phi_key`, by parameter name; PhiMissing as in `predict`.

        Raises:
            Unavailable: as for `adapt`.
        """
        return self._submit(self._computer_of(model), phi_key, Export(), "export", 1, owner)

    def forget(self, phi_key: str) -> None:
        """Drops φ from the cache before the next batch."""
        # A list's append is atomic; the device's thread empties it.
        self._forgotten.append(phi_key)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges: queue, batches, failures, the φ cache."""
        return {
            "queue_length": len(self._queue),
            "batches_total": self._counts.batches,
            "batched_requests_total": self._counts.requests,
            "batch_failures_total": self._counts.failures,
            "busy_seconds_total": self._counts.busy_seconds,
            "phi_cache_sessions": len(self._cache),
            "phi_cache_bytes": self._cache.bytes,
            "phi_cache_hits_total": self._cache.hits,
            "phi_cache_misses_total": self._cache.misses,
            "phi_cache_evictions_total": self._cache.evictions,
            "phi_cache_rebuilds_total": self._cache.rebuilds,
            "phi_cache_rebuild_seconds_total": self._cache.rebuild_seconds,
        }

    def _name_closed(self) -> None:
        for folder in self._registry.closed():
            reason = "it cannot be read: give this process permission to"
            log.error("a model is left out", folder=str(folder), reason=reason)

    def _computer_of(self, model: ModelKey) -> Computer:
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # it would grow with every raise
        self._queue.check_open()
        if not self._warm.is_set():
            raise NotReady("The device is warming up; try again shortly.", retry_after_seconds=2)
        computer = self._computers.get(model)
        if computer is None:
            raise NotReady(
                f"{model.name} version {model.version} came after this server last read its "
                "models: try again on another, or once it has read them again."
            )
        return computer

    def _submit(
        self,
        computer: Computer,
        phi_key: str,
        work: object,
        kind: Hashable,
        cost: int,
        owner: str,
    ) -> Future[Any]:
        entry = Entry(computer, phi_key, work, (id(computer), kind), cost, owner)
        self._queue.put(entry)
        return entry.future

    def _drop_gone(self) -> None:
        """Drops the versions that are no longer on disk; the requests that wait are served."""
        on_disk = self._registry.versions
        for key in [key for key in self._models if key.version not in on_disk(key.name)]:
            self._on_device(partial(self._drop, key))
            log.warning("a version is gone", model=key.name, version=key.version)

    def _drop(self, key: ModelKey) -> None:
        del self._models[key], self._computers[key]

    def _take_in(self, key: ModelKey) -> None:
        """Loads and warms a version, unless the engine holds it as it is on disk."""
        held = self._models.get(key)
        if held is not None and held.card == self._registry.card(key.name, key.version):
            return
        began = time.monotonic()
        with one_thread():
            model = self._registry.load(key.name, key.version)
        check_served(model)
        computer = self._on_device(partial(self._computer, model))
        for do in computer.warm(self._settings.max_support):
            self._on_device(do)
        self._computers[key] = computer
        self._models[key] = model
        seconds = round(time.monotonic() - began, 2)
        log.info("a version is served", model=key.name, version=key.version, seconds=seconds)

    def _on_device(self, do: Callable[[], T]) -> T:
        """Has the device's thread do something, and waits for it."""
        # With an owner of its own, who never has most, it gives way to no request.
        chore = Entry(None, "", Chore(do), object(), 0, owner="the engine itself")
        self._queue.put(chore, beyond_limit=True)
        result: T = chore.future.result()
        return result

    def _run(self) -> None:
        """The device's thread. However it ends, nobody is left waiting."""
        batch: list[Entry] | None = None
        torch.set_num_threads(self._threads)  # another thread may just be one_thread()
        try:
            if not self._prepare():
                return
            # What is there now stays; to look through it takes a collection a tenth of a second.
            gc.collect()
            gc.freeze()
            self._warm.set()
            while batch := self._queue.next_batch(self._settings.batch_limit, self._most_work):
                if isinstance(batch[0].work, Chore):
                    self._do(batch[0])
                    continue
                self._counts.requests += len(batch)
                self._work_off(batch)
                if self._counts.in_a_row >= FAILURES_IN_A_ROW:
                    raise RuntimeError("the device failed again and again")
        except BaseException as error:
            self._failure = EngineFailed("The device failed; it needs a restart.", 10)
            self._queue.close(self._failure)
            self._queue.fail_all(self._failure)
            for entry in batch or []:
                if not entry.future.done():
                    entry.future.set_exception(self._failure)
            log.exception("the device's thread ended", error=str(error))

    def _prepare(self) -> bool:
        """Moves every θ to the device and warms every shape that can be asked for.

        Returns:
            Whether it came to its end: False where the engine was stopped before it was ready.
        """
        began = time.monotonic()
        for key, model in self._models.items():
            try:
                self._computers[key] = self._computer(model)
                for do in self._computers[key].warm(self._settings.max_support):
                    if self._queue.closed:
                        return False
                    do()
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"The GPU's memory does not suffice for {key.name} version {key.version}: "
                    "lower INNERLOOP_MAX_SUPPORT, INNERLOOP_MAX_CLASSES or INNERLOOP_BATCH_LIMIT, "
                    "or take versions that nobody uses out of the models folder"
                ) from error
        log.info("the device is warm", seconds=round(time.monotonic() - began, 2))
        return True

    def _computer(self, model: LoadedModel) -> Computer:
        limits = self._settings
        return Computer(model, self._device, limits.max_classes, limits.batch_limit)

    def _do(self, chore: Entry) -> None:
        try:
            chore.future.set_result(chore.work.do())
        except Exception as error:  # of a new version, which says nothing of the device
            chore.future.set_exception(error)

    def _work_off(self, batch: list[Entry]) -> None:
        """Runs a batch; where it fails, each of its requests alone, so that one hurts no other."""
        try:
            self._execute(batch)
            self._counts.in_a_row = 0
        except Exception as error:
            self._counts.failures += 1
            log.exception("a batch failed", requests=len(batch), error=str(error))
            if len(batch) == 1:
                self._counts.in_a_row += 1
                failed = EngineFailed("The device failed on this request; try again.", 1)
                batch[0].future.set_exception(failed)
            else:
                for entry in batch:
                    if not entry.future.done():
                        self._work_off([entry])

    def _execute(self, batch: list[Entry]) -> None:
        while self._forgotten:
            self._cache.drop(self._forgotten.pop())
        self._counts.batches += 1
        run: dict[type, Callable[[list[Entry], Computer], None]] = {
            Adapt: self._adapt,
            Predict: self._predict,
            Export: self._export,
        }
        began = time.monotonic()
        try:
            run[type(batch[0].work)](batch, batch[0].computer)
        finally:
            self._counts.busy_seconds += time.monotonic() - began

    def _adapt(self, batch: list[Entry], computer: Computer) -> None:
        works: list[Adapt] = [entry.work for entry in batch]
        adapted = computer.adapt([work.support for work in works], works[0].steps)
        asking = [
            (index, phi, work.query)
            for index, (work, (phi, _)) in enumerate(zip(works, adapted, strict=True))
            if work.query is not None
        ]
        answers = computer.predict([(phi, query) for _, phi, query in asking])
        answered = dict(zip((index for index, _, _ in asking), answers, strict=True))
        for index, (entry, (phi, losses)) in enumerate(zip(batch, adapted, strict=True)):
            self._cache.put(entry.phi_key, phi)
            entry.future.set_result(Adapted(losses, answered.get(index)))

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
