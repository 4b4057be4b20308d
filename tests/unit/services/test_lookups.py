"""Many callers who look for sessions at the same time."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from app.database import Asked
from app.errors import DatabaseUnavailable, InvalidInput, Issue, SessionNotFound
from app.services import NewSession, lookups
from app.services.lookups import Lookups
from app.services.store import Found
from tests.unit.services.common import SUPPORT, until

pytestmark = pytest.mark.anyio

SECONDS = 20


class Statements:
    """Finds every session as its own name, or what was planned; each statement waits for `gate`."""

    def __init__(self) -> None:
        self.seen: list[list[Asked]] = []
        self.began = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.planned: dict[str, Any] = {}

    def __call__(self, asked: Sequence[Asked]) -> Sequence[Found]:
        self.seen.append(list(asked))
        self.began.set()
        assert self.gate.wait(SECONDS)
        if "all" in self.planned:
            raise self.planned["all"]
        if "odd" in [each.session_id for each in asked]:
            raise ValueError("a row that cannot be read")
        return [self.planned.get(each.session_id, tuple(each)) for each in asked]

    async def hold(self, lookups: Lookups, session_id: str) -> asyncio.Task[Any]:
        """Starts a statement for one session, which waits for the gate."""
        self.gate.clear()
        self.began.clear()
        task = asyncio.create_task(lookups.find("ann", session_id))
        assert await asyncio.to_thread(self.began.wait, SECONDS)
        return task


@pytest.fixture
def statements() -> Statements:
    return Statements()


@pytest.fixture(autouse=True)
def patient(monkeypatch) -> None:
    """However slow this machine is, one statement comes after the other."""
    monkeypatch.setattr(lookups, "PATIENCE_SECONDS", SECONDS)


async def begin(lookups: Lookups, *asked: tuple[str, str]) -> list[asyncio.Task[Any]]:
    """Callers who all wait."""
    tasks = [asyncio.create_task(lookups.find(*each)) for each in asked]
    await asyncio.sleep(0)
    return tasks


async def test_who_comes_alone_has_a_statement_at_once(statements):
    lookups = Lookups(statements)
    assert await lookups.find("ann", "a") == ("ann", "a")
    assert await lookups.find("bob", "b") == ("bob", "b")
    assert statements.seen == [[("ann", "a")], [("bob", "b")]]


async def test_those_who_come_during_a_statement_share_the_next(statements):
    lookups = Lookups(statements)
    held = await statements.hold(lookups, "first")
    asked = [("ann", "a"), ("bob", "b"), ("bob", "a"), ("ann", "first")]
    tasks = await begin(lookups, *asked)
    statements.gate.set()
    assert await held == ("ann", "first")
    assert await asyncio.gather(*tasks) == asked
    assert statements.seen == [[("ann", "first")], asked]


async def test_behind_a_statement_that_is_stuck_others_are_found(statements, monkeypatch):
    monkeypatch.setattr("app.services.lookups.PATIENCE_SECONDS", 0.05)
    lookups = Lookups(statements)
    held = await statements.hold(lookups, "stuck")
    monkeypatch.setattr(lookups, "_find_all", lambda asked: [tuple(each) for each in asked])
    found = await asyncio.wait_for(lookups.find("ann", "a"), SECONDS)
    assert found == ("ann", "a")
    assert not held.done()
    statements.gate.set()
    assert await held == ("ann", "stuck")


@pytest.mark.parametrize(
    ("session_id", "error", "words"),
    [("none", SessionNotFound, "there is no session"), ("odd", ValueError, "cannot be read")],
    ids=["not there", "broken"],
)
async def test_what_is_wrong_with_one_is_no_other_callers_trouble(
    statements, session_id, error, words
):
    lookups = Lookups(statements)
    held = await statements.hold(lookups, "first")
    statements.planned["none"] = SessionNotFound("there is no session")
    a, wrong, c = await begin(lookups, ("ann", "a"), ("bob", session_id), ("ann", "c"))
    statements.gate.set()
    assert await asyncio.gather(held, a, c) == [("ann", "first"), ("ann", "a"), ("ann", "c")]
    with pytest.raises(error, match=words):
        await wrong


async def test_it_waits_for_no_thread_that_is_busy_with_something_else(statements):
    busy = threading.Event()
    others = [asyncio.create_task(asyncio.to_thread(busy.wait, SECONDS)) for _ in range(40)]
    try:
        found = await asyncio.wait_for(Lookups(statements).find("ann", "a"), SECONDS / 2)
        assert found == ("ann", "a")
    finally:
        busy.set()
        await asyncio.gather(*others)


@pytest.mark.parametrize("error", [DatabaseUnavailable("no answer"), RuntimeError("a mistake")])
async def test_a_statement_that_fails_fails_its_callers_and_no_later_ones(statements, error):
    lookups = Lookups(statements)
    held = await statements.hold(lookups, "first")
    tasks = await begin(lookups, ("ann", "a"), ("ann", "b"))
    statements.planned["all"] = error
    statements.gate.set()
    for task in (held, *tasks):
        with pytest.raises(type(error), match=str(error)):
            await task
    del statements.planned["all"]
    assert await lookups.find("ann", "c") == ("ann", "c")


async def test_what_follows_is_done_by_the_thread_that_found_the_session(statements):
    def tell(found: Any) -> tuple[Any, str]:
        return found, threading.current_thread().name

    found, thread = await Lookups(statements).find_and("ann", "a", tell)
    assert found == ("ann", "a")
    assert thread.startswith("lookup")


async def test_what_follows_and_fails_is_no_other_callers_trouble(statements):
    def fail(found: Any) -> None:
        raise ValueError(f"{found[1]} cannot be read")

    joined = Lookups(statements)
    held = await statements.hold(joined, "first")
    failing = asyncio.create_task(joined.find_and("ann", "a", fail))
    missing = asyncio.create_task(joined.find_and("ann", "none", fail))
    (other,) = await begin(joined, ("ann", "b"))
    statements.planned["none"] = SessionNotFound("there is no session")
    statements.gate.set()
    assert await asyncio.gather(held, other) == [("ann", "first"), ("ann", "b")]
    with pytest.raises(ValueError, match="a cannot be read"):
        await failing
    with pytest.raises(SessionNotFound):
        await missing
    assert [len(asked) for asked in statements.seen] == [1, 3]


@pytest.mark.parametrize("error", [None, DatabaseUnavailable, KeyError])
async def test_what_failed_is_not_kept_until_the_next_garbage_collection(statements, error):
    class Query:
        def __call__(self, found: Any) -> None:
            raise InvalidInput([Issue("/query/0", f"{found[1]} cannot be read")])

    if error is not None:
        statements.planned["all"] = error("of the statement")
    query = Query()
    left = weakref.ref(query)
    gc.disable()
    try:
        with suppress(InvalidInput, KeyError, DatabaseUnavailable):
            await Lookups(statements).find_and("ann", "a", query)
        del query
        statements.planned.clear()
        await until(lambda: left() is None)
    finally:
        gc.enable()


async def test_who_has_gone_is_skipped(statements):
    lookups = Lookups(statements)
    held = await statements.hold(lookups, "first")
    gone, stays, other = await begin(lookups, ("ann", "gone"), ("ann", "a"), ("ann", "gone too"))
    for task in (held, gone, other):
        task.cancel()
    await asyncio.sleep(0)
    statements.gate.set()
    assert await stays == ("ann", "a")
    assert statements.seen == [[("ann", "first")], [("ann", "a")]]


async def test_where_all_have_gone_nothing_is_asked(statements):
    lookups = Lookups(statements)
    held = await statements.hold(lookups, "first")
    (gone,) = await begin(lookups, ("ann", "gone"))
    gone.cancel()
    statements.gate.set()
    await held
    assert await lookups.find("ann", "a") == ("ann", "a")
    assert statements.seen == [[("ann", "first")], [("ann", "a")]]


async def test_a_statement_finds_no_more_than_so_many(statements, monkeypatch):
    monkeypatch.setattr(lookups, "MOST_AT_ONCE", 3)
    joined = Lookups(statements)
    held = await statements.hold(joined, "first")
    asked = [("ann", f"{number}") for number in range(7)]
    tasks = await begin(joined, *asked)
    statements.gate.set()
    await held
    assert await asyncio.gather(*tasks) == asked
    assert statements.seen[1:] == [asked[:3], asked[3:6], asked[6:]]


async def test_of_many_callers_each_gets_the_own_session_and_no_other_owners(service):
    created = {
        owner: [(await service.create(owner, NewSession(SUPPORT))).id for _ in range(3)]
        for owner in ("ann", "bob")
    }
    asked = [
        (owner, session_id)
        for owner in created
        for of, ids in created.items()
        for session_id in [*ids, "ses_none", f"\0{of}"]
    ]
    found = await asyncio.gather(
        *(service.get(owner, session_id) for owner, session_id in asked), return_exceptions=True
    )
    for (owner, session_id), each in zip(asked, found, strict=True):
        if session_id in created[owner]:
            assert each.id == session_id
        else:
            assert isinstance(each, SessionNotFound)
