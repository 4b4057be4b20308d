"""What can wait in the queue for the device."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.engine.requests import Floats, SupportSet


@dataclass(frozen=True)
class Adapt:
    """Adapt θ to a support set, answer the query, if there is one, and give φ out or not."""

    support: SupportSet
    steps: int
    query: Floats | None
    export: bool


@dataclass(frozen=True)
class Predict:
    """Answer queries by a φ that is kept."""

    query: Floats


@dataclass(frozen=True)
class Export:
    """Give out a φ that is kept."""


@dataclass(frozen=True)
class Chore:
    """What a lane does between two batches, for no request; it gets the lane's number."""

    do: Callable[[int], Any]
