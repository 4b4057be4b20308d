"""The engine: callers submit work and get futures; the lanes of the device do it."""

import gc
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import structlog
import torch

from app.devices import choose_device, one_thread
from app.engine.cache import PhiCache
from app.engine.compute import Computer, check_served, computers_of
from app.engine.lane import Lane, Limits
from app.engine.queue import Entry, WorkQueue
from app.engine.recorder import Recorder
from app.engine.requests import Adapted, Answers, Floats, ModelKey, SupportSet
from app.engine.shapes import USUAL_NUMBERS, padded, sharing_of
from app.engine.work import Adapt, Chore, Export, Predict
from app.errors import DeviceError, Draining, EngineFailed, NotReady, Unavailable
from app.recordings import Pool
from app.registry import Card, LoadedModel, Registry
from app.settings import Settings

log = structlog.get_logger(__name__)

FIGURES = {
    "lanes": "Batches that the device computes at the same time, at most.",
    "queue_length": "Requests that wait for the device.",
    "batches_total": "Batches that the device began.",
    "batched_requests_total": "Requests in the batches that the device began.",
    "batch_failures_total": "Batches that failed, those of a single request too.",
    "busy_seconds_total": "Seconds that lanes computed, in all; each lane can add one a second.",
    "phi_cache_sessions": "Adapted weights in the cache.",
    "phi_cache_bytes": "Bytes of the adapted weights in the cache.",
    "phi_cache_hits_total": "Requests that found their adapted weights in the cache.",
    "phi_cache_misses_total": "Requests that did not find their adapted weights in the cache.",
    "phi_cache_evictions_total": "Adapted weights that had to make room for others.",
    "phi_cache_rebuilds_total": "Adapted weights that were made anew after a miss.",
    "phi_cache_rebuild_seconds_total": "Seconds from a miss until the new weights were cached.",
}
"""What `Engine.stats` tells, in words."""


class Engine:
    """Adapts θ to support sets and answers queries with the adapted φ.

    The device belongs to its lanes, from `start` to `stop`. Every future ends: with an answer,
    with PhiMissing, or with a class of `app.errors.Unavailable`. An answer does not depend, but for
    rounding, on which other requests shared its batch or were computed beside it.
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
        self._name_closed()
        with one_thread():
            self._models = {
                ModelKey(name, version): registry.load(name, version)
                for name in registry.names()
                for version in registry.versions(name)
            }
        for model in self._models.values():
            check_served(model)
        self._computers: dict[ModelKey, Sequence[Computer]] = {}
        """One for each lane."""
        self._cache = PhiCache(settings.phi_cache_bytes)
        threads, sharing = torch.get_num_threads(), sharing_of(self._device, USUAL_NUMBERS)
        lanes = min(threads, sharing.lanes)
        self._queue = WorkQueue(settings.queue_limit, sharing.work_at_once)
        self._lanes = [
            Lane(
                number,
                lanes,
                threads,
                queue=self._queue,
                cache=self._cache,
                limits=Limits(settings.batch_limit, sharing.work),
                run=self._run,
            )
            for number in range(lanes)
        ]
        self._pools = [Pool() for _ in self._lanes]
        self._recorder = Recorder(self._on_device, self._computers, settings.max_support)
        self._chore = threading.Lock()
        self._warm = threading.Event()
        self._failure: EngineFailed | None = None
        self._reloading = threading.Lock()

    @property
    def ready(self) -> bool:
        """Whether every shape of the newest versions was computed once, and the device works."""
        alive = all(lane.thread.is_alive() for lane in self._lanes)
        return self._warm.is_set() and self._failure is None and alive

    @property
    def failed(self) -> bool:
        """Whether the device is broken; only a restart helps."""
        return self._failure is not None

    def card(self, model: ModelKey) -> Card | None:
        """The card of a version, of the θ that answers; None where the engine does not hold it.

        It is what it was when the engine last read it, whatever lies on disk now.
        """
        held = self._models.get(model)
        return None if held is None else held.card

    def start(self) -> None:
        """Starts the first lane, which warms the newest versions and then starts the others."""
        self._lanes[0].thread.start()

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
        self._recorder.stop()
        end = time.monotonic() + drain_seconds
        for thread in (*(lane.thread for lane in self._lanes), self._recorder.thread):
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))
        self._queue.fail_all(reason)

    def adapt(
        self,
        model: ModelKey,
        phi_key: str,
        support: SupportSet,
        steps: int,
        query: Floats | None,
        owner: str = "",
        *,
        export: bool = False,
    ) -> Future[Adapted]:
        """Adapts θ to a support set, keeps φ under `phi_key` and answers the query.

        Args:
            model: which θ.
            phi_key: names this φ; the same key must always mean the same support set and steps.
            support: the support set; labels in [0, ways), at least one example of each.
            steps: inner steps.
            query: (Q, *input_shape) float32, or None.
            owner: who asks; owners take turns.
            export: whether to give φ out, as `weights` does.

        Raises:
            Unavailable: the queue is full, or the device is not warm, broken or being stopped.
        """
        computers, size = self._computers_of(model), len(support.labels)
        shares = size <= computers[0].sharing.largest
        if shares:
            size = padded(size)
        # A backward pass costs two forward ones; at the end come one more, and the queries.
        cost = size * (3 * steps + 1) + (0 if query is None else len(query))
        kind = ("adapt", size, steps) if shares else object()
        work = Adapt(support, steps, query, export)
        return self._submit(computers, phi_key, work, kind, cost, owner)

    def predict(
        self, model: ModelKey, phi_key: str, query: Floats, owner: str = ""
    ) -> Future[Answers]:
        """Answers queries (Q, *input_shape) by the φ kept under `phi_key`.

        The future raises PhiMissing where the cache has no such φ (any more).

        Raises:
            Unavailable: as for `adapt`.
        """
        computers = self._computers_of(model)
        kind: Hashable = object()
        if len(query) <= computers[0].sharing.queries:
            # Only queries of one φ gain from each other where no tasks share a computation.
            kind = ("predict", None if computers[0].sharing.largest else phi_key)
        return self._submit(computers, phi_key, Predict(query), kind, len(query), owner)

    def weights(self, model: ModelKey, phi_key: str, owner: str = "") -> Future[dict[str, Floats]]:
        """The φ kept under `phi_key`, by parameter name; PhiMissing as in `predict`.

        Raises:
            Unavailable: as for `adapt`.
        """
        return self._submit(self._computers_of(model), phi_key, Export(), "export", 1, owner)

    def forget(self, phi_key: str) -> None:
        """Drops φ from the cache; what a batch under way keeps of it goes with the batch's end."""
        self._cache.drop(phi_key)

    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges; `FIGURES` says what each is."""
        counts = [lane.counts for lane in self._lanes]
        return {
            "lanes": len(self._lanes),
            "queue_length": len(self._queue),
            "batches_total": sum(count.batches for count in counts),
            "batched_requests_total": sum(count.requests for count in counts),
            "batch_failures_total": sum(count.failures for count in counts),
            "busy_seconds_total": sum(count.busy_seconds for count in counts),
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

    def _computers_of(self, model: ModelKey) -> Sequence[Computer]:
        if self._failure is not None:
            raise self._failure.with_traceback(None)  # it would grow with every raise
        self._queue.check_open()
        if not self._warm.is_set():
            raise NotReady("The device is warming up; try again shortly.", retry_after_seconds=2)
        computers = self._computers.get(model)
        if computers is None:
            raise NotReady(f"The device does not hold {model.name} version {model.version}.")
        self._recorder.ask(model)
        return computers

    def _submit(
        self,
        computers: Sequence[Computer],
        phi_key: str,
        work: object,
        kind: Hashable,
        cost: int,
        owner: str,
    ) -> Future[Any]:
        entry = Entry(computers, phi_key, work, (id(computers), kind), cost, owner)
        self._queue.put(entry)
        return entry.future

    def _drop_gone(self) -> None:
        """Drops the versions that are no longer on disk; the requests that wait are served."""
        on_disk = self._registry.versions
        for key in [key for key in self._models if key.version not in on_disk(key.name)]:
            self._drop(key)
            log.warning("a version is gone", model=key.name, version=key.version)

    def _drop(self, key: ModelKey) -> None:
        def drop(_lane: int) -> None:
            del self._models[key], self._computers[key]

        self._on_device(drop)

    def _take_in(self, key: ModelKey) -> None:
        """Loads and warms a version, unless the engine holds it as it is on disk."""
        held = self._models.get(key)
        if held is not None and held.card == self._registry.card(key.name, key.version):
            return
        began = time.monotonic()
        with one_thread():
            model = self._registry.load(key.name, key.version)
        check_served(model)
        computers: Sequence[Computer] = self._on_device(lambda _: self._make(model))
        self._recorder.warm(computers)
        self._recorder.seen(key)
        self._computers[key] = computers
        self._models[key] = model
        seconds = round(time.monotonic() - began, 2)
        log.info("a version is served", model=key.name, version=key.version, seconds=seconds)

    def _on_device(self, do: Callable[[int], Any]) -> Any:
        """Has a lane do something, which gets the lane's number, and waits for it."""
        # With an owner of its own, who never has two, it is displaced by no request, and gives way.
        chore = Entry((), "", Chore(do), object(), 0, owner="the engine itself")
        try:
            with self._chore:
                self._queue.put(chore, beyond_limit=True)
                return chore.future.result()
        finally:
            del chore  # an error knows this frame, and would keep the chore that knows the error

    def _run(self, lane: Lane) -> None:
        """A lane's thread. However it ends, nobody is left waiting."""
        try:
            lane.use_all_threads()
            if lane is self._lanes[0] and not self._prepare():
                return
            lane.work()
        except BaseException as error:
            self._failure = EngineFailed("The device failed; it needs a restart.", 10)
            self._queue.close(self._failure)
            self._queue.fail_all(self._failure)
            for entry in lane.batch:
                if not entry.future.done():
                    entry.future.set_exception(self._failure)
            log.exception("a lane of the device ended", lane=lane.number, error=str(error))

    def _prepare(self) -> bool:
        """Moves every θ to the device, warms the newest versions and starts the other lanes.

        Returns:
            Whether it came to its end: False where the engine was stopped before it was ready.
        """
        began = time.monotonic()
        newest = {key.name: key for key in sorted(self._models, key=lambda key: key.version)}
        for key, model in self._models.items():
            try:
                self._computers[key] = self._make(model)
                if key != newest[key.name]:
                    for computer in self._computers[key]:
                        computer.recorded = False
                    continue
                self._recorder.seen(key)
                first = self._computers[key][0]
                first.record()
                for do in first.warm(self._settings.max_support):
                    if self._queue.closed:
                        return False
                    do(first)
            except torch.OutOfMemoryError as error:
                raise DeviceError(
                    f"The GPU's memory does not suffice for {key.name} version {key.version}: "
                    "lower INNERLOOP_MAX_SUPPORT, INNERLOOP_MAX_CLASSES or INNERLOOP_BATCH_LIMIT, "
                    "or take versions that nobody uses out of the models folder"
                ) from error
            except Exception:
                log.error("a version cannot be warmed", model=key.name, version=key.version)
                raise
        log.info("the device is warm", seconds=round(time.monotonic() - began, 2))
        # What is there now stays; to look through it takes a collection a tenth of a second.
        gc.collect()
        gc.freeze()
        for other in self._lanes[1:]:
            other.thread.start()
        self._warm.set()
        self._recorder.thread.start()
        return True

    def _make(self, model: LoadedModel) -> Sequence[Computer]:
        limits = self._settings
        return computers_of(
            model, self._device, limits.max_classes, limits.batch_limit, self._pools
        )
