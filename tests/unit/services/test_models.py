"""What callers see of a registry that changes on disk."""

import pytest

from app.errors import ModelNotFound, NotReady
from tests.fakes import make_card


def test_what_was_added_is_there_once_the_engine_has_taken_it_in(models, registry, engine):
    registry.put(make_card("values", 2))
    registry.put(make_card("young"))
    assert models.names() == ["omniglot", "values"]
    assert models.versions("values") == [1]
    assert models.newest("values").version == 1
    engine.read(registry)
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


def test_what_was_left_out_or_changed_is_as_it_was_until_the_engine_reads_it(
    models, registry, engine
):
    registry.put(make_card("values", description="Another."))
    registry.put(make_card("values", 2))
    with pytest.raises(NotReady, match="values version 2 came after"):
        models.card("values", 2)
    assert models.card("values", 1) == models.newest("values") == make_card("values")
    engine.read(registry)
    assert models.card("values", 1) == make_card("values", description="Another.")
    assert models.card("values", 2) == models.newest("values") == make_card("values", 2)


def test_a_version_that_left_the_disk_is_gone_at_once(models, registry, engine):
    registry.put(make_card("values", 2))
    engine.read(registry)
    registry.remove("values", 2)
    assert models.newest("values").version == 1
    registry.remove("values", 1)
    assert models.names() == ["omniglot"]
    with pytest.raises(ModelNotFound, match="no version 1 of a model 'values'"):
        models.card("values", 1)
