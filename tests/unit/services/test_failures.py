"""What fails changes nothing, on a real SQLite and with the honest fake engine."""

import asyncio

import pytest

from app.errors import DatabaseUnavailable, EngineFailed, QueueFull, Unavailable
from app.services import NewSession, SessionService
from tests.unit.services.common import KEY, MORE, QUERY, SUPPORT, gathered, kinds, stored, until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("when", ["failure", "refusal"])
@pytest.mark.parametrize("error", [QueueFull("the queue is full"), EngineFailed("failed")])
async def test_a_failing_engine_changes_nothing(service, engine, when, error):
    created = await service.create("ann", NewSession(SUPPORT))
    kept = dict(engine.phi)
    setattr(engine, when, error)
    outcomes = await gathered(
        service.create("ann", NewSession(SUPPORT), idempotency=KEY),
        service.append("ann", created.id, MORE),
        service.predict("ann", created.id, QUERY),
        service.evaluate("ann", created.id, SUPPORT),
        service.weights("ann", created.id),
    )
    assert outcomes == [error] * 5
    assert await stored(service) == [created]
    assert engine.phi == kept
    setattr(engine, when, None)
    assert (await service.append("ann", created.id, MORE)).revision == 2


async def test_what_could_not_be_stored_is_not_answered_and_its_phi_dropped(
    service, engine, database, monkeypatch
):
    created = await service.create("ann", NewSession(SUPPORT))
    kept = dict(engine.phi)

    def unavailable():
        raise DatabaseUnavailable("The database does not answer: try again.")

    with monkeypatch.context() as patch:
        patch.setattr(database, "transaction", unavailable)
        outcomes = await gathered(
            service.create("ann", NewSession(SUPPORT, query=QUERY)),
            service.append("ann", created.id, MORE),
        )
    assert kinds(outcomes) == [DatabaseUnavailable] * 2
    assert engine.phi == kept
    assert await stored(service) == [created]


async def test_a_device_that_never_answers_is_given_up_at_the_deadline(
    database, engine, models, settings, clock
):
    hasty = settings.model_copy(update={"deadline_seconds": 0.05})
    service = SessionService(database, engine, models, hasty, clock)
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = False
    outcomes = await gathered(
        service.create("ann", NewSession(SUPPORT)),
        service.append("ann", created.id, MORE),
        service.predict("ann", created.id, QUERY),
        service.evaluate("ann", created.id, SUPPORT),
        service.weights("ann", created.id),
    )
    assert kinds(outcomes) == [Unavailable] * 5
    assert [future.cancelled() for future in engine.futures[1:]] == [True] * 5
    assert await stored(service) == [created]


@pytest.mark.parametrize("call", ["create", "append", "predict", "evaluate", "weights"])
async def test_a_caller_who_has_gone_takes_the_request_back(service, engine, call):
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = False
    work = {
        "create": lambda: service.create("ann", NewSession(SUPPORT), idempotency=KEY),
        "append": lambda: service.append("ann", created.id, MORE, idempotency=KEY),
        "predict": lambda: service.predict("ann", created.id, QUERY),
        "evaluate": lambda: service.evaluate("ann", created.id, SUPPORT),
        "weights": lambda: service.weights("ann", created.id),
    }[call]
    task = asyncio.create_task(work())
    await until(lambda: len(engine.held) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert engine.futures[-1].cancelled()
    engine.release()
    assert await stored(service) == [created]
    assert len(engine.phi) == 1
