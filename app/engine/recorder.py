"""Versions are recorded and warmed beside requests: older ones once somebody asks for them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from queue import SimpleQueue
from typing import Any

import structlog
import torch

from app.engine.compute import Computer
from app.engine.requests import ModelKey
from app.errors import Unavailable

log = structlog.get_logger(__name__)

OnDevice = Callable[[Callable[[int], Any]], Any]
"""Has a lane do something, which gets the lane's number, and waits for it."""


class Recorder:
    """A thread that makes older versions as fast as new ones.

    Until one is warm, its requests are computed as they come and record nothing.

    Args:
        on_device: see there; it raises Unavailable once there is no device any more.
        served: the computers of every version, one for each lane, as they are at the time.
        max_support: most examples of a support set.
    """

    def __init__(
        self,
        on_device: OnDevice,
        served: Mapping[ModelKey, Sequence[Computer]],
        max_support: int,
    ):
        self._on_device = on_device
        self._served = served
        self._max_support = max_support
        self._asked: SimpleQueue[ModelKey | None] = SimpleQueue()
        self._seen: set[ModelKey] = set()
        self.thread = threading.Thread(target=self._work, name="recorder", daemon=True)

    def seen(self, model: ModelKey) -> None:
        """A version is warm, or is being warmed by somebody else."""
        self._seen.add(model)

    def ask(self, model: ModelKey) -> None:
        """Somebody asks for a version: it is warmed, unless it was seen before."""
        if model not in self._seen:
            self._seen.add(model)
            self._asked.put(model)

    def stop(self) -> None:
        """Ends the thread once it has done what it is about."""
        self._asked.put(None)

    def warm(
        self, computers: Sequence[Computer], wanted: Callable[[], bool] = lambda: True
    ) -> None:
        """Records and warms a version, as long as it is wanted; blocks.

        Raises:
            Unavailable: there is no device any more.
            Exception: whatever goes wrong while it is computed.
        """
        computers[0].record()
        for do in computers[0].warm(self._max_support):
            if not wanted():
                return
            self._on_device(partial(_rehearse, computers, do))

    def _work(self) -> None:
        while (model := self._asked.get()) is not None:
            try:
                self._warm_older(model)
            except Unavailable:
                return

    def _warm_older(self, model: ModelKey) -> None:
        computers = self._served.get(model, ())

        def wanted() -> bool:
            return self._served.get(model) is computers

        if not wanted():
            return
        began = time.monotonic()
        try:
            self.warm(computers, wanted)
        except Unavailable:
            raise
        except Exception as error:  # its requests are computed as they come
            reason = str(error)
            if isinstance(error, torch.OutOfMemoryError):
                reason = f"lower INNERLOOP_MAX_SUPPORT or INNERLOOP_BATCH_LIMIT: {reason}"
            log.warning(
                "an older version stays slow until a restart",
                model=model.name,
                version=model.version,
                reason=reason,
            )
            self._on_device(lambda lane: computers[lane].forget_recordings())
            return
        if not wanted():
            return
        for computer in computers:
            computer.recorded = True
        seconds = round(time.monotonic() - began, 2)
        log.info(
            "an older version is warm", model=model.name, version=model.version, seconds=seconds
        )


def _rehearse(computers: Sequence[Computer], do: Callable[[Computer], object], lane: int) -> None:
    computers[lane].rehearse(do)
