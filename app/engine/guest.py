"""Warming up a model while the device serves others."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from app.engine.cache import Phi
from app.engine.compute import Computer
from app.engine.requests import Answers, Floats, SupportSet
from app.registry.registry import LoadedModel


class Guest(Computer):
    """A computer that any thread may call: each of its batches waits for its turn on the device.

    Args:
        model: what to warm up.
        device: where.
        max_classes: as for `Computer`, as is `at_once`.
        turn: has the device's thread do something, and gives what came out.
    """

    def __init__(
        self,
        model: LoadedModel,
        device: torch.device,
        max_classes: int,
        at_once: int,
        turn: Callable[[Callable[[], Any]], Any],
    ):
        super().__init__(model, device, max_classes, at_once)
        self._turn = turn

    def adapt(
        self, supports: Sequence[SupportSet], steps: int
    ) -> list[tuple[Phi, tuple[float, ...]]]:
        """As `Computer.adapt`."""
        adapted: list[tuple[Phi, tuple[float, ...]]] = self._turn(
            partial(super().adapt, supports, steps)
        )
        return adapted

    def predict(self, requests: Sequence[tuple[Phi, Floats]]) -> list[Answers]:
        """As `Computer.predict`."""
        answers: list[Answers] = self._turn(partial(super().predict, requests))
        return answers
