"""Requests that come twice, on a real SQLite and with the honest fake engine."""

import asyncio

import pytest

from app.errors import EngineFailed, IdempotencyConflict
from app.services import Idempotency, NewSession
from tests.fakes import example
from tests.unit.services.common import KEY, MORE, QUERY, SUPPORT, gathered, stored, until

pytestmark = pytest.mark.anyio


async def test_the_same_request_again_gets_the_same_answer_and_no_work(service, engine):
    new = NewSession(SUPPORT, query=QUERY, ttl_seconds=60, metadata={"k": [1.5, None]})
    created = await service.create("ann", new, idempotency=KEY)
    assert await service.create("ann", new, idempotency=KEY) == created
    assert await stored(service) == [await service.get("ann", created.id)]
    assert engine.methods() == ["adapt"]


async def test_another_request_with_the_same_key_conflicts_and_changes_nothing(service, engine):
    created = await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    other = Idempotency("key", "2" * 64)
    with pytest.raises(IdempotencyConflict):
        await service.create("ann", NewSession(MORE), idempotency=other)
    with pytest.raises(IdempotencyConflict):
        await service.append("ann", created.id, MORE, idempotency=other)
    assert await stored(service) == [created]
    assert engine.methods() == ["adapt"]


async def test_a_key_belongs_to_its_owner(service):
    first = await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    second = await service.create("bob", NewSession(SUPPORT), idempotency=KEY)
    assert first.id != second.id


async def test_the_same_examples_sent_again_are_added_once(service):
    created = await service.create("ann", NewSession(SUPPORT))
    appended = await service.append("ann", created.id, MORE, idempotency=KEY)
    assert await service.append("ann", created.id, MORE, idempotency=KEY) == appended
    assert await service.get("ann", created.id) == appended


async def test_an_answer_is_given_again_after_the_session_has_changed(service):
    created = await service.create("ann", NewSession(SUPPORT, query=QUERY), idempotency=KEY)
    await service.append("ann", created.id, MORE)
    assert await service.create("ann", NewSession(SUPPORT), idempotency=KEY) == created


async def test_two_at_once_with_one_key_make_one_session(service, engine):
    new = NewSession(SUPPORT, query=QUERY)
    engine.answers = False
    tasks = [asyncio.create_task(service.create("ann", new, idempotency=KEY)) for _ in range(2)]
    await until(lambda: len(engine.held) == 2)
    engine.release()
    first, second = await asyncio.gather(*tasks)
    assert first == second
    assert await stored(service) == [await service.get("ann", first.id)]
    assert [key.split(":")[0] for key in engine.phi] == [first.id]


async def test_two_at_once_with_one_key_and_other_bodies_make_one_session(service, engine):
    engine.answers = False
    tasks = [
        asyncio.create_task(
            service.create("ann", NewSession(SUPPORT), idempotency=Idempotency("key", digest))
        )
        for digest in ("1" * 64, "2" * 64)
    ]
    await until(lambda: len(engine.held) == 2)
    engine.release()
    outcomes = await gathered(*tasks)
    assert sum(isinstance(outcome, IdempotencyConflict) for outcome in outcomes) == 1
    assert len(await stored(service)) == 1


async def test_two_at_once_that_append_with_one_key_add_once(service, replica, engine):
    """The later one must not be judged by limits that the earlier one has used up."""
    created = await service.create("ann", NewSession(SUPPORT))
    three = [example("a", 1, i, 0, 0) for i in range(3)]
    engine.answers = False
    tasks = [
        asyncio.create_task(one.append("ann", created.id, three, idempotency=KEY))
        for one in (service, replica)
    ]
    await until(lambda: len(engine.held) == 2)
    engine.release()
    first, second = await asyncio.gather(*tasks)
    assert first == second == await service.get("ann", created.id)
    assert first.shots == {"b": 2, "a": 4}


@pytest.mark.parametrize("swept", [True, False])
async def test_a_key_is_forgotten_after_its_time(service, clock, swept):
    first = await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    clock.advance(600)
    assert (await service.create("ann", NewSession(SUPPORT), idempotency=KEY)).id == first.id
    clock.advance(0.1)
    if swept:
        await service.sweep()
    again = Idempotency("key", "2" * 64)
    second = await service.create("ann", NewSession(MORE), idempotency=again)
    assert second.id != first.id
    assert await service.create("ann", NewSession(MORE), idempotency=again) == second


async def test_deleting_a_session_forgets_the_answers_that_tell_of_it(service):
    created = await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    await service.delete("ann", created.id)
    again = await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    assert again.id != created.id


async def test_a_request_that_failed_does_not_use_up_its_key(service, engine):
    engine.failure = EngineFailed("the device has failed")
    with pytest.raises(EngineFailed):
        await service.create("ann", NewSession(SUPPORT), idempotency=KEY)
    engine.failure = None
    other = Idempotency("key", "2" * 64)
    await service.create("ann", NewSession(SUPPORT), idempotency=other)
