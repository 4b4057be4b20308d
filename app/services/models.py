"""What a caller sees of the models."""

from app.engine.requests import ModelKey
from app.errors import ModelNotFound, NotReady
from app.registry import Card
from app.services.ports import Engine, Registry


class ServedModels:
    """The versions that the engine holds, as it holds them, as long as they are on disk.

    What was added or changed since the engine last read the registry is not there for callers; what
    was taken away is gone at once.
    """

    def __init__(self, registry: Registry, engine: Engine):
        self._registry = registry
        self._engine = engine

    def names(self) -> list[str]:
        """Names that have at least one version, sorted."""
        return [name for name in self._registry.names() if self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """Versions of a name, ascending; none where there is no such name."""
        return [card.version for card in self._served(name)]

    def newest(self, name: str) -> Card:
        """The card of a name's newest version.

        Raises:
            ModelNotFound: no such name.
        """
        served = self._served(name)
        if not served:
            known = ", ".join(self.names()) or "none"
            raise ModelNotFound(f"There is no model {name!r}. Models here: {known}.")
        return served[-1]

    def card(self, name: str, version: int) -> Card:
        """The card of one version.

        Raises:
            ModelNotFound: it is not on disk.
            NotReady: it is, but the engine does not hold it.
        """
        if not self._registry.holds(name, version):
            raise ModelNotFound(f"There is no version {version} of a model {name!r}.")
        card = self._engine.card(ModelKey(name, version))
        if card is None:
            raise NotReady(
                f"{name} version {version} came after this server last read its models: try again "
                "on another, or once it has read them again."
            )
        return card

    def _served(self, name: str) -> list[Card]:
        held = (self._engine.card(ModelKey(name, each)) for each in self._registry.versions(name))
        return [card for card in held if card is not None]
