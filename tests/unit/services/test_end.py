"""How a session ends, and who may see it, on a real SQLite and with the honest fake engine."""

import asyncio

import numpy as np
import pytest
import safetensors.numpy

from app.database import SessionRepository
from app.errors import ModelVersionGone, NotReady, SessionExpired, SessionNotFound
from app.services import NewSession
from tests.fakes import class_means, make_card
from tests.unit.services.common import MORE, QUERY, SUPPORT, calls_on, kinds, stored, until

pytestmark = pytest.mark.anyio


async def test_another_owner_cannot_tell_that_a_session_exists(service):
    created = await service.create("ann", NewSession(SUPPORT))
    assert kinds(await calls_on(service, "bob", created.id)) == [SessionNotFound] * 5
    with pytest.raises(SessionNotFound) as foreign:
        await service.delete("bob", created.id)
    missing_id = "ses_" + "0" * 32
    with pytest.raises(SessionNotFound) as missing:
        await service.delete("bob", missing_id)
    assert str(foreign.value).replace(created.id, missing_id) == str(missing.value)
    assert await stored(service, "bob") == []
    assert await service.get("ann", created.id) == created


@pytest.mark.parametrize("session_id", ["", "nope", "ses_" + "0" * 32, "ses_\0", "ses_😀"])
async def test_what_is_no_id_of_a_session_is_not_found(service, session_id):
    assert kinds(await calls_on(service, "ann", session_id)) == [SessionNotFound] * 5
    with pytest.raises(SessionNotFound):
        await service.delete("ann", session_id)


async def test_a_deleted_session_leaves_nothing(service, engine):
    created = await service.create("ann", NewSession(SUPPORT))
    await service.delete("ann", created.id)
    assert engine.phi == {}
    assert kinds(await calls_on(service, "ann", created.id)) == [SessionNotFound] * 5
    with pytest.raises(SessionNotFound):
        await service.delete("ann", created.id)


async def test_a_session_ends_at_its_time_and_can_only_be_deleted(service, clock):
    created = await service.create("ann", NewSession(SUPPORT, ttl_seconds=60))
    clock.advance(59.9)
    assert await service.get("ann", created.id) == created
    clock.advance(0.1)
    assert kinds(await calls_on(service, "ann", created.id)) == [SessionExpired] * 5
    assert await stored(service) == []
    await service.delete("ann", created.id)
    with pytest.raises(SessionNotFound):
        await service.get("ann", created.id)


async def test_a_swept_session_is_still_known_to_have_expired(service, clock, database):
    created = await service.create("ann", NewSession(SUPPORT, ttl_seconds=60))
    clock.advance(60)
    await service.sweep()
    assert kinds(await calls_on(service, "ann", created.id)) == [SessionExpired] * 5
    with database.reading() as connection:
        assert SessionRepository(connection).support(created.id) == [b""]


async def test_a_sweep_spares_what_lives_and_ends_with_the_last_of_many(
    service, clock, database, monkeypatch
):
    monkeypatch.setattr("app.services.store.SWEEP_BATCH", 2)
    ended = [await service.create("ann", NewSession(SUPPORT, ttl_seconds=60)) for _ in range(5)]
    lives = await service.create("ann", NewSession(SUPPORT))
    clock.advance(60)
    await service.sweep()
    with database.reading() as connection:
        sessions = SessionRepository(connection)
        assert [sessions.support(session.id) for session in ended] == [[b""]] * 5
        assert len(sessions.support(lives.id)[0]) > 1
    assert await service.get("ann", lives.id) == lives


async def test_a_session_that_expires_while_its_phi_is_missing_is_gone(service, engine, clock):
    created = await service.create("ann", NewSession(SUPPORT, ttl_seconds=60))
    engine.phi.clear()
    engine.answers = False
    query = asyncio.create_task(service.predict("ann", created.id, QUERY))
    await until(lambda: len(engine.held) == 1)
    clock.advance(60)
    await service.sweep()
    engine.release()
    with pytest.raises(SessionExpired):
        await query


@pytest.mark.parametrize("change", ["deleted", "extended"])
async def test_what_changes_while_its_phi_is_made_anew_leaves_no_phi(service, engine, change):
    created = await service.create("ann", NewSession(SUPPORT))
    engine.phi.clear()
    engine.answers = False
    query = asyncio.create_task(service.predict("ann", created.id, QUERY))
    await until(lambda: len(engine.held) == 1)
    engine.held.pop(0)()  # the cache does not have it
    await until(lambda: engine.methods()[-1] == "adapt" and len(engine.held) == 1)
    again = engine.held.pop(0)
    engine.answers = True
    if change == "deleted":
        await service.delete("ann", created.id)
    else:
        await service.append("ann", created.id, MORE)
    stand = dict(engine.phi)
    again()
    assert (await query).data
    assert engine.phi == stand


async def test_weights_of_a_session_that_grows_meanwhile_are_those_that_were_asked_for(
    service, engine
):
    created = await service.create("ann", NewSession(SUPPORT))
    expected = class_means(engine.calls[0].support)
    engine.answers = False
    download = asyncio.create_task(service.weights("ann", created.id))
    await until(lambda: len(engine.held) == 1)
    engine.answers = True
    await service.append("ann", created.id, MORE)
    stand = dict(engine.phi)
    engine.held.pop(0)()
    content = (await download).content
    assert b'"revision":"1"' in content
    assert np.array_equal(safetensors.numpy.load(content)["means"], expected)
    assert engine.phi == stand


@pytest.mark.parametrize("change", ["removed", "retrained"])
async def test_a_session_whose_theta_has_gone_can_only_be_deleted(
    service, registry, engine, change
):
    created = await service.create("ann", NewSession(SUPPORT))
    registry.remove("values", 1)
    if change == "retrained":
        registry.put(make_card("values", 1, theta_sha256="f" * 64))
        assert await service.get("ann", created.id) == created  # by the θ that the engine holds
        engine.read(registry)
    assert kinds(await calls_on(service, "ann", created.id)) == [ModelVersionGone] * 5
    assert await stored(service) == [created]
    await service.delete("ann", created.id)
    assert await stored(service) == []


async def test_a_session_of_a_version_that_is_not_read_yet_has_to_wait(service, engine, registry):
    registry.put(make_card("values", 2))
    before = engine.cards
    engine.read(registry)
    created = await service.create("ann", NewSession(SUPPORT))
    engine.cards = before  # as on another server, that has not read the models again
    assert kinds(await calls_on(service, "ann", created.id)) == [NotReady] * 5
    assert await stored(service) == [created]
    engine.read(registry)
    assert await service.get("ann", created.id) == created
