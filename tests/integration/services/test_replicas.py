"""The use cases on each database that is supported, as two replicas see it."""

import asyncio

import numpy as np
import pytest

from app.database import SessionRepository
from app.errors import (
    Contention,
    IdempotencyConflict,
    SessionExpired,
    SessionNotFound,
)
from app.services import Example, Idempotency, NewSession
from tests.fakes import example, picture, values
from tests.unit.services.common import KEY, LABELS, MORE, QUERY, SUPPORT, gathered, stored, until

pytestmark = pytest.mark.anyio


async def test_what_one_replica_answered_another_reads_and_answers_alike(service, other_service):
    new = NewSession(SUPPORT, query=QUERY, ttl_seconds=60, metadata={"\0": ["é", 10**20, 0.1]})
    created = await service.create("ann", new, idempotency=KEY)
    assert await other_service.create("ann", new, idempotency=KEY) == created
    [read] = await stored(other_service)
    assert (
        read == await service.get("ann", created.id) == await other_service.get("ann", created.id)
    )
    assert (read.metadata, read.support_loss) == (created.metadata, created.support_loss)
    assert (read.created_at, read.expires_at) == (created.created_at, created.expires_at)
    assert (await other_service.predict("ann", created.id, QUERY)).data == created.predictions


async def test_a_replica_never_answers_with_a_phi_that_another_has_outdated(service, other_service):
    created = await service.create("ann", NewSession(SUPPORT))
    await other_service.predict("ann", created.id, QUERY)
    await service.append("ann", created.id, MORE)
    here = await service.predict("ann", created.id, QUERY)
    there = await other_service.predict("ann", created.id, QUERY)
    assert here == there
    assert list(there.data[0].probabilities) == ["b", "a", "c"]


async def test_any_text_may_be_a_label(service, other_service):
    support = [example(label, i, 0, 0, 0) for i, label in enumerate(LABELS)]
    query = [values(i, 0, 0, 0) for i in range(len(LABELS))]
    created = await service.create("ann", NewSession(support, query=query), idempotency=KEY)
    assert created.labels == list(created.shots) == LABELS
    read = await other_service.get("ann", created.id)
    assert read.labels == list(read.shots) == LABELS
    got = await other_service.predict("ann", created.id, query)
    assert [prediction.label for prediction in got.data] == LABELS
    assert await other_service.create("ann", NewSession(support), idempotency=KEY) == created


async def test_inputs_are_stored_bit_by_bit(service, engine, other_service, other_engine):
    random = np.random.default_rng(0)
    drawings = random.integers(0, 256, (2, 28, 28), dtype=np.uint8)
    support = [Example(picture(drawing), str(i)) for i, drawing in enumerate(drawings)]
    support += [Example(values(*random.normal(size=(1, 28, 28)).tolist()), "v")]
    query = [picture(drawings[0])]
    created = await service.create("ann", NewSession(support, model="omniglot"))
    await other_service.predict("ann", created.id, query)
    first, again = engine.calls[0].support, other_engine.calls[-1].support
    assert again.inputs.tobytes() == first.inputs.tobytes()
    assert again.labels.tobytes() == first.labels.tobytes()


async def test_replicas_that_append_at_once_lose_no_example(
    service, engine, other_service, other_engine
):
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = other_engine.answers = False
    tasks = [
        asyncio.create_task(replica.append("ann", created.id, [added]))
        for replica, added in zip((service, other_service), MORE, strict=True)
    ]
    await until(lambda: len(engine.held) + len(other_engine.held) == 2)
    engine.release()
    other_engine.release()
    assert sorted([(await task).revision for task in tasks]) == [2, 3]
    session = await service.get("ann", created.id)
    assert (session.revision, session.shots) == (3, {"b": 2, "a": 2, "c": 1})
    here = await service.predict("ann", created.id, QUERY)
    assert here == await other_service.predict("ann", created.id, QUERY)


async def test_under_contention_each_append_stands_whole_or_not_at_all(service, other_service):
    created = await service.create("ann", NewSession(SUPPORT))
    outcomes = await gathered(
        *(
            replica.append("ann", created.id, [example("a", 1, i, 0, 0)] * 2)
            for i in range(6)
            for replica in (service, other_service)
        )
    )
    stood = [outcome for outcome in outcomes if not isinstance(outcome, Contention)]
    session = await service.get("ann", created.id)
    assert stood
    assert sorted(view.revision for view in stood) == list(range(2, session.revision + 1))
    assert session.shots == {"b": 2, "a": 1 + 2 * len(stood)}


async def test_replicas_that_create_at_once_with_one_key_make_one_session(
    service, engine, other_service, other_engine
):
    engine.answers = other_engine.answers = False
    tasks = [
        asyncio.create_task(replica.create("ann", NewSession(SUPPORT), idempotency=KEY))
        for replica in (service, other_service)
    ]
    await until(lambda: len(engine.held) + len(other_engine.held) == 2)
    engine.release()
    other_engine.release()
    first, second = await asyncio.gather(*tasks)
    assert first == second
    assert [session.id for session in await stored(service)] == [first.id]


async def test_replicas_that_append_at_once_with_one_key_add_once(
    service, engine, other_service, other_engine
):
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = other_engine.answers = False
    tasks = [
        asyncio.create_task(replica.append("ann", created.id, MORE, idempotency=KEY))
        for replica in (service, other_service)
    ]
    await until(lambda: len(engine.held) + len(other_engine.held) == 2)
    engine.release()
    other_engine.release()
    first, second = await asyncio.gather(*tasks)
    assert first == second == await service.get("ann", created.id)
    assert first.shots == {"b": 2, "a": 2, "c": 1}


async def test_a_key_with_another_request_conflicts_on_every_replica(service, other_service):
    created = await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    with pytest.raises(IdempotencyConflict):
        await other_service.create(
            "ann", NewSession(SUPPORT), idempotency=Idempotency("key", "2" * 64)
        )
    assert await stored(service) == [created]


async def test_a_session_deleted_while_another_replica_adds_to_it_stays_deleted(
    service, engine, other_service
):
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = False
    task = asyncio.create_task(service.append("ann", created.id, MORE, idempotency=KEY))
    await until(lambda: len(engine.held) == 1)
    await other_service.delete("ann", created.id)
    engine.release()
    with pytest.raises(SessionNotFound):
        await task
    assert await stored(service) == []


async def test_two_sweeps_at_once_erase_what_has_expired_and_spare_what_lives(
    service, other_service, database, clock
):
    ended = [await service.create("ann", NewSession(SUPPORT, ttl_seconds=60)) for _ in range(3)]
    lives = await service.create("ann", NewSession(SUPPORT))
    clock.advance(60)
    await asyncio.gather(service.sweep(), other_service.sweep())
    with database.reading() as connection:
        sessions = SessionRepository(connection)
        assert [sessions.support(session.id) for session in ended] == [[b""]] * 3
        assert len(sessions.support(lives.id)[0]) > 1
    with pytest.raises(SessionExpired):
        await other_service.predict("ann", ended[0].id, QUERY)
    assert await stored(other_service) == [lives]
