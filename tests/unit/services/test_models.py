"""What callers see of a registry that changes on disk."""

import pytest

from app.engine.requests import ModelKey
from app.errors import ModelNotFound, RegistryError
from app.services import ServedModels
from tests.fakes import FakeEngine, FakeRegistry, make_card


class Held(FakeEngine):
    """An engine that holds one θ of each version."""

    def __init__(self, registry: FakeRegistry):
        super().__init__()
        self.held = {}
        self.take_in(registry)

    def take_in(self, registry: FakeRegistry) -> None:
        for name in registry.names():
            for version in registry.versions(name):
                sha256 = registry.card(name, version).theta_sha256
                self.held[ModelKey(name, version)] = sha256

    def serves(self, model: ModelKey, theta_sha256: str | None = None) -> bool:
        return model in self.held and theta_sha256 in (None, self.held[model])


@pytest.fixture
def engine(registry) -> Held:
    return Held(registry)


@pytest.fixture
def models(registry, engine) -> ServedModels:
    return ServedModels(registry, engine)


def test_what_was_added_is_there_once_the_engine_has_taken_it_in(models, registry, engine):
    registry.put(make_card("values", 2))
    registry.put(make_card("young"))
    assert models.names() == ["omniglot", "values"]
    assert models.versions("values") == [1]
    assert models.newest("values").version == 1
    engine.take_in(registry)
    assert models.names() == ["omniglot", "values", "young"]
    assert models.versions("values") == [1, 2]
    assert models.newest("values").version == 2


def test_an_unknown_name_is_told_with_those_that_are_served(models, registry):
    registry.put(make_card("young"))
    for name in ("young", "none", ""):
        assert models.versions(name) == []
        with pytest.raises(
            ModelNotFound, match=f"no model '{name}'. Models here: omniglot, values"
        ):
            models.newest(name)


def test_a_card_that_the_engine_could_not_take_in_is_not_read(models, registry, monkeypatch):
    registry.put(make_card("values", 2))
    card = registry.card

    def read(name: str, version: int):
        if (name, version) == ("values", 2):
            raise RegistryError("broken")
        return card(name, version)

    monkeypatch.setattr(registry, "card", read)
    assert models.names() == ["omniglot", "values"]
    assert models.versions("values") == [1]
    assert models.newest("values").version == 1


def test_a_version_that_left_the_registry_or_was_replaced_is_not_there(models, registry, engine):
    registry.put(make_card("values", 2))
    engine.take_in(registry)
    registry.put(make_card("values", 2, theta_sha256="f" * 64))
    assert models.newest("values").version == 1
    registry.remove("values", 1)
    assert models.names() == ["omniglot"]
    engine.take_in(registry)
    assert models.newest("values").theta_sha256 == "f" * 64
