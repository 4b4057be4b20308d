"""What the use cases need of the device and of the registry: a test can stand in for both."""

from concurrent.futures import Future
from typing import Protocol

from app.engine.requests import Adapted, Answers, Floats, ModelKey, SupportSet
from app.registry import Card


class Engine(Protocol):
    """The part of `app.engine.Engine` that the use cases call; none of it blocks.

    Every method that returns a future may raise a class of `app.errors.Unavailable` at once
    instead. Cancelling a future takes the request back. `owner` is who asks; owners take turns.
    """

    def card(self, model: ModelKey) -> Card | None:
        """The card of a version, of the θ that answers; None where the engine does not hold it."""
        ...

    def adapt(
        self,
        model: ModelKey,
        phi_key: str,
        support: SupportSet,
        steps: int,
        query: Floats | None,
        owner: str,
        *,
        export: bool = False,
    ) -> Future[Adapted]:
        """Adapt θ to `support`, keep φ under `phi_key`, answer `query` (Q, *input_shape).

        With `export` φ is given out, too.
        """
        ...

    def predict(self, model: ModelKey, phi_key: str, query: Floats, owner: str) -> Future[Answers]:
        """The answers to `query`; the future raises PhiMissing on a cache miss."""
        ...

    def weights(self, model: ModelKey, phi_key: str, owner: str) -> Future[dict[str, Floats]]:
        """φ by parameter name; the future raises PhiMissing on a cache miss."""
        ...

    def forget(self, phi_key: str) -> None:
        """Drop φ from the cache, if it is there."""
        ...


class Registry(Protocol):
    """The part of `app.registry.Registry` that the use cases call."""

    def names(self) -> list[str]:
        """Names that have at least one version, sorted."""
        ...

    def versions(self, name: str) -> list[int]:
        """Versions of a model, ascending; none where there is no such model."""
        ...

    def holds(self, name: str, version: int) -> bool:
        """Whether a version is there, whole or broken."""
        ...
