"""Adding examples to a session, on a real SQLite and with the honest fake engine."""

import asyncio

import numpy as np
import pytest

from app.database import RevisionRecord, SessionRepository
from app.errors import Contention, InvalidInput
from app.services import NewSession, SessionService
from app.services.sessions import utc_now
from app.services.support import Inputs, decode, grow
from app.settings import Settings
from tests.fakes import class_means, example, probabilities
from tests.unit.services.common import MORE, QUERY, SUPPORT, until

pytestmark = pytest.mark.anyio


async def test_appending_adapts_again_from_theta_on_all_examples(service, engine):
    created = await service.create(
        "ann", NewSession(SUPPORT, steps=2, metadata={"k": 1}, ttl_seconds=9)
    )
    appended = await service.append("ann", created.id, MORE)
    assert appended.revision == 2
    assert appended.labels == ["b", "a", "c"]
    assert appended.shots == {"b": 2, "a": 2, "c": 1}
    assert (engine.calls[1].steps, len(appended.support_loss)) == (2, 3)
    assert appended.support_loss[0] == pytest.approx(np.log(3))
    unchanged = ("id", "model", "steps", "created_at", "expires_at", "metadata", "predictions")
    assert [getattr(appended, name) for name in unchanged] == [
        getattr(created, name) for name in unchanged
    ]
    assert await service.get("ann", created.id) == appended
    assert engine.calls[1].support.inputs.tolist() == [
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 1, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 3, 0],
    ]
    assert engine.calls[1].support.labels.tolist() == [0, 1, 0, 1, 2]


async def test_only_the_newest_phi_is_kept(service, engine):
    created = await service.create("ann", NewSession(SUPPORT))
    old = engine.calls[0].phi_key
    await service.append("ann", created.id, MORE)
    assert list(engine.phi) == [engine.calls[1].phi_key]
    assert old in engine.forgotten


@pytest.mark.parametrize(
    ("support", "detail"),
    [
        ([example("a", 0, 0, 0, 0)] * 4, "makes 7 examples of this session, at most 6"),
        (
            [example(label, 0, 0, 0, 0) for label in "cde"],
            "makes 5 distinct labels of this session, at most 4",
        ),
    ],
)
async def test_limits_count_all_revisions_together(service, engine, support, detail):
    created = await service.create("ann", NewSession(SUPPORT))
    with pytest.raises(InvalidInput, match=f"^/support: {detail}"):
        await service.append("ann", created.id, support)
    assert await service.get("ann", created.id) == created
    assert engine.methods() == ["adapt"]


async def test_two_that_append_at_once_both_stand_and_phi_holds_both(service, replica, engine):
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = False
    tasks = [
        asyncio.create_task(one.append("ann", created.id, [added]))
        for one, added in zip((service, replica), MORE, strict=True)
    ]
    await until(lambda: len(engine.held) == 2)
    engine.release()
    revisions = sorted([(await task).revision for task in tasks])
    assert revisions == [2, 3]

    session = await service.get("ann", created.id)
    assert (session.revision, session.shots) == (3, {"b": 2, "a": 2, "c": 1})
    assert list(engine.phi) == [engine.calls[-1].phi_key]
    got = await service.predict("ann", created.id, QUERY)
    assert engine.methods()[-1] == "predict"  # answered from the cache
    everything = engine.calls[-2].support
    expected = probabilities(class_means(everything), engine.calls[-1].query)
    assert len(everything.labels) == 5
    assert [list(p.probabilities.values()) for p in got.data] == expected.tolist()


async def test_many_that_append_at_once_to_one_session_all_stand(service):
    created = await service.create("ann", NewSession(SUPPORT[:2]))
    added = [service.append("ann", created.id, MORE[:1]) for _ in range(4)]
    sessions = await asyncio.gather(*added)
    assert sorted(session.revision for session in sessions) == [2, 3, 4, 5]


async def test_phi_of_a_lost_race_never_answers(service, replica, engine):
    """Between the winner's commit and the loser's, a query must get the winner's φ."""
    created = await service.create("ann", NewSession(SUPPORT))
    engine.answers = False
    loser = asyncio.create_task(replica.append("ann", created.id, MORE[:1]))
    await until(lambda: len(engine.held) == 1)
    held, engine.held = engine.held, []
    engine.answers = True
    winner = await service.append("ann", created.id, MORE[1:])
    engine.answers = False  # the loser is not to win its second try before the query is answered
    held[0]()  # the loser's adaptation ends last, for the same number of revision
    query = asyncio.create_task(service.predict("ann", created.id, QUERY))
    await until(lambda: len(engine.held) == 2)
    engine.held.pop(engine.methods()[-2:].index("predict"))()
    got = await query
    assert got.revision == winner.revision == 2
    assert list(got.data[0].probabilities) == ["b", "a", "c"]
    engine.release()
    await loser


async def test_a_query_in_flight_while_others_append_is_answered_at_its_own_revision(
    service, engine
):
    created = await service.create("ann", NewSession(SUPPORT, query=QUERY))
    engine.answers = False
    query = asyncio.create_task(service.predict("ann", created.id, QUERY))
    await until(lambda: len(engine.held) == 1)
    held, engine.held = engine.held, []
    engine.answers = True
    await service.append("ann", created.id, MORE)
    held[0]()  # its φ has been dropped by now
    got = await query
    assert got.revision == 1
    assert got.data == created.predictions
    assert len(engine.calls[-1].support.labels) == len(SUPPORT)


async def test_who_is_never_fast_enough_is_told_to_try_again(
    service, engine, database, models, monkeypatch
):
    created = await service.create("ann", NewSession(SUPPORT[:2]))
    adapt = engine.adapt

    def adapt_too_late(*arguments, **options):
        """While this adapts, another server appends an example to the same session."""
        with database.transaction() as connection:
            sessions = SessionRepository(connection)
            record = sessions.get("ann", created.id)
            growth = grow(
                record.labels,
                [decode(blob) for blob in sessions.support(created.id)],
                record.support_sha256,
                Inputs.of([np.zeros(4, np.float32)], (4,)),
                ["a"],
            )
            revision = RevisionRecord(
                labels=growth.labels,
                shots=growth.shots,
                support_loss=record.support_loss,
                support_sha256=growth.sha256,
                examples=growth.blob,
                created_at=record.created_at,
            )
            assert sessions.append_revision(created.id, record.revision, revision)
        return adapt(*arguments, **options)

    service = SessionService(database, engine, models, Settings(), utc_now)
    monkeypatch.setattr(engine, "adapt", adapt_too_late)
    with pytest.raises(Contention, match="try again"):
        await service.append("ann", created.id, MORE)
    assert engine.methods() == ["adapt"] * 6
    assert len(engine.calls[-1].support.labels) == 2 + 4 + 2  # it read the rival's each time
    assert [key for key in engine.phi if key != engine.calls[0].phi_key] == []
    session = await service.get("ann", created.id)
    assert (session.revision, session.shots) == (6, {"b": 1, "a": 6})
