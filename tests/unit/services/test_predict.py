"""Asking a session something, on a real SQLite and with the honest fake engine."""

import threading

import numpy as np
import pytest
import safetensors.numpy

from app.errors import InnerloopError, InvalidInput
from app.services import NewSession, SessionService, sessions
from app.services.views import ImageInput
from tests.fakes import class_means, example
from tests.unit.services.common import MORE, QUERY, SUPPORT, calls_on

pytestmark = pytest.mark.anyio


async def test_a_query_is_answered_from_the_cache(service, engine):
    created = await service.create("ann", NewSession(SUPPORT, query=QUERY))
    got = await service.predict("ann", created.id, QUERY)
    assert (got.session, got.revision) == (created.id, 1)
    assert got.data == created.predictions
    assert engine.methods() == ["adapt", "predict"]


async def test_the_engine_is_told_whose_request_it_is(service, engine):
    for owner in ("ann", "bob"):
        created = await service.create(owner, NewSession(SUPPORT, query=QUERY))
        await service.append(owner, created.id, MORE)
        engine.phi.clear()
        await calls_on(service, owner, created.id)
        assert len(engine.calls) > 5
        assert {call.owner for call in engine.calls} == {owner}
        engine.calls.clear()


async def test_phi_is_made_anew_from_the_stored_support_set(service, engine):
    created = await service.create("ann", NewSession(SUPPORT, query=QUERY, steps=2))
    appended = await service.append("ann", created.id, MORE)
    before = await service.predict("ann", created.id, QUERY)
    first = engine.calls[1].support
    engine.phi.clear()
    engine.calls.clear()

    after = await service.predict("ann", created.id, QUERY)
    assert after == before
    assert after.revision == appended.revision == 2
    assert engine.methods() == ["predict", "adapt"]
    again = engine.calls[1]
    assert again.steps == 2
    assert np.array_equal(again.support.inputs, first.inputs)
    assert np.array_equal(again.support.labels, first.labels)
    assert again.support.ways == first.ways

    await service.predict("ann", created.id, QUERY)
    assert engine.methods() == ["predict", "adapt", "predict"]


LIMIT = 10**6


@pytest.mark.parametrize(
    ("query", "read"),
    [
        ([ImageInput(bytes(4096))] * 4, [("lookup", 128 * 128), ("asyncio", LIMIT)]),
        ([ImageInput(bytes(4097))], [("asyncio", LIMIT)]),
        ([ImageInput(bytes(1))] * 5, [("asyncio", LIMIT)]),
        (QUERY, [("asyncio", LIMIT)]),
    ],
    ids=["few and small", "large", "many", "numbers"],
)
async def test_finding_a_session_waits_for_no_long_query_and_no_large_picture(
    database, engine, models, settings, monkeypatch, query, read
):
    """What is refused where a session is found is read once more, with the usual limits."""
    settings = settings.model_copy(update={"max_image_pixels": LIMIT})
    service = SessionService(database, engine, models, settings)
    created = await service.create("ann", NewSession(SUPPORT))
    check, seen = sessions.check_query, []

    def checking(query, card, settings):
        thread = threading.current_thread().name.partition("_")[0]
        seen.append((thread, settings.max_image_pixels))
        return check(query, card, settings)

    monkeypatch.setattr(sessions, "check_query", checking)
    if query is QUERY:
        await service.predict("ann", created.id, query)
    else:
        with pytest.raises(InvalidInput, match="takes no pictures"):
            await service.predict("ann", created.id, query)
    assert seen == read


async def test_every_query_is_answered_where_the_cache_keeps_nothing(service, engine):
    engine.keeps = False
    created = await service.create("ann", NewSession(SUPPORT, query=QUERY))
    assert (await service.predict("ann", created.id, QUERY)).data == created.predictions


async def test_an_evaluation_compares_with_the_true_labels_and_learns_nothing(service, engine):
    created = await service.create("ann", NewSession(SUPPORT))
    examples = [example("a", 1, 0, 0, 0), example("b", 1, 0, 0, 0), example("b", 0, 0, 0, 0)]
    got = await service.evaluate("ann", created.id, examples)
    assert (got.n, got.accuracy) == (3, pytest.approx(2 / 3))
    assert got.confusion == {"b": {"b": 1, "a": 1}, "a": {"b": 0, "a": 1}}
    assert engine.methods() == ["adapt", "predict"]
    assert await service.get("ann", created.id) == created


async def test_an_evaluation_names_the_examples_that_overflow(service):
    created = await service.create("ann", NewSession(SUPPORT))
    with pytest.raises(InvalidInput, match=r"^/examples/1/input: too large"):
        await service.evaluate("ann", created.id, [SUPPORT[0], example("a", 3e38, 0, 0, 0)])


async def test_an_evaluation_knows_labels_of_every_revision(service):
    created = await service.create("ann", NewSession(SUPPORT))
    with pytest.raises(InvalidInput, match="/examples/0/label"):
        await service.evaluate("ann", created.id, [MORE[1]])
    await service.append("ann", created.id, MORE)
    assert (await service.evaluate("ann", created.id, [MORE[1]])).accuracy == 1


@pytest.mark.parametrize("cached", ["cached", "not any more", "never"])
async def test_weights_are_phi_cached_or_not(service, engine, cached):
    engine.keeps = cached != "never"
    created = await service.create("ann", NewSession(SUPPORT))
    if cached == "not any more":
        engine.phi.clear()
    content = (await service.weights("ann", created.id)).content
    expected = class_means(engine.calls[0].support)
    assert np.array_equal(safetensors.numpy.load(content)["means"], expected)
    assert created.id.encode() in content


async def test_a_support_set_that_changed_on_disk_never_answers(service, engine, database):
    created = await service.create("ann", NewSession(SUPPORT))
    with database.transaction() as connection:
        connection.exec_driver_sql("UPDATE revisions SET examples = zeroblob(9)")
    engine.phi.clear()
    with pytest.raises(InnerloopError, match="does not have the SHA-256"):
        await service.predict("ann", created.id, QUERY)
