"""What a caller sees of the registry."""

from app.engine.requests import ModelKey
from app.errors import ModelNotFound
from app.registry import Card
from app.services.ports import Engine, Registry


class ServedModels:
    """The versions on disk that the engine holds, with the very θ that is there.

    What was added since the engine last read the registry is not there for callers.
    """

    def __init__(self, registry: Registry, engine: Engine):
        self._registry = registry
        self._engine = engine

    def names(self) -> list[str]:
        """Names that have at least one version, sorted."""
        return [name for name in self._registry.names() if self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """Versions of a name, ascending; none where there is no such name."""
        return [number for number in self._registry.versions(name) if self._served(name, number)]

    def newest(self, name: str) -> Card:
        """The card of a name's newest version.

        Raises:
            ModelNotFound: no such name.
        """
        for version in reversed(self._registry.versions(name)):
            card = self._served(name, version)
            if card is not None:
                return card
        known = ", ".join(self.names()) or "none"
        raise ModelNotFound(f"There is no model {name!r}. Models here: {known}.")

    def _served(self, name: str, version: int) -> Card | None:
        key = ModelKey(name, version)
        if not self._engine.serves(key):  # nothing is read of it: it may be broken
            return None
        card = self._registry.card(name, version)
        return card if self._engine.serves(key, card.theta_sha256) else None
