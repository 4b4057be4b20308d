"""What can wait in the queue for the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.engine.requests import Floats, SupportSet


@dataclass(frozen=True)
class Adapt:
    """Adapt θ to a support set and answer the query, if there is one."""

    support: SupportSet
    steps: int
    query: Floats | None


@dataclass(frozen=True)
class Predict:
    """Answer queries by a φ that is kept."""

    query: Floats


@dataclass(frozen=True)
class Export:
    """Give out a φ that is kept."""


@dataclass(frozen=True)
class Chore:
    """What a lane does between two batches, for no request."""

    do: Callable[[], Any]
