"""Sessions found for many callers by one statement after the other."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from app.database import Asked
from app.errors import InnerloopError, Unavailable
from app.services.store import Found, StoredSession

MOST_AT_ONCE = 100
"""So many sessions one statement finds at most."""
PATIENCE_SECONDS = 0.05
"""So long those who wait let one statement go on alone: its connection may be stuck."""
THREADS = 4
"""Of their own: a statement is short, and shall not wait for a thread that reads pictures."""

T = TypeVar("T")
_Then = Callable[[StoredSession], Any]


class _Caller(NamedTuple):
    asked: Asked
    then: _Then
    future: "asyncio.Future[Any]"


class _Outcome(NamedTuple):
    value: Any = None
    error: Exception | None = None


class Lookups:
    """Joins what is asked for while a statement is under way into the next one.

    Who comes alone is served at once. With a statement, and so a thread, for every caller the
    threads would spend their time on handing the interpreter's lock to each other.

    Args:
        find_all: finds the sessions; blocks, so it is called in a worker thread.
    """

    def __init__(self, find_all: Callable[[Sequence[Asked]], Sequence[Found]]):
        self._find_all = find_all
        self._waiting: list[_Caller] = []
        self._threads = ThreadPoolExecutor(THREADS, "lookup")
        self._task: asyncio.Task[None] | None = None
        self._serving: set[asyncio.Task[None]] = set()
        """The statements that are under way; more than one where they take long."""

    async def find(self, owner: str, session_id: str) -> StoredSession:
        """The session as it is when this is called, or later; raises what `find_all` tells."""
        return await self.find_and(owner, session_id, _itself)

    async def find_and(self, owner: str, session_id: str, then: Callable[[StoredSession], T]) -> T:
        """What `then` makes of the session that `find` gives, in the thread that found it.

        It must not take long, as others whose sessions were found along with this one wait for it.
        Where a way to another thread and back would, this is sooner done for all of them.
        """
        future = asyncio.get_running_loop().create_future()
        caller = _Caller(Asked(owner, session_id), then, future)
        self._waiting.append(caller)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        try:
            made: T = await future
            return made
        finally:
            del caller, future  # an error that it holds would hold this frame, and this frame it

    def close(self) -> None:
        """Takes no more callers; a statement that is stuck is left to itself."""
        self._threads.shutdown(wait=False)

    async def _work(self) -> None:
        while self._waiting:
            callers = self._waiting[:MOST_AT_ONCE]
            del self._waiting[:MOST_AT_ONCE]
            here = [caller for caller in callers if not caller.future.done()]
            if here:
                serving = asyncio.create_task(self._serve(here))
                self._serving.add(serving)
                serving.add_done_callback(self._serving.discard)
                await asyncio.wait({serving}, timeout=PATIENCE_SECONDS)

    async def _serve(self, callers: Sequence[_Caller]) -> None:
        asked, thens = [each.asked for each in callers], [each.then for each in callers]
        loop = asyncio.get_running_loop()
        outcomes: Sequence[_Outcome]
        try:
            # Errors know the frames of that thread, which therefore must not know the futures.
            outcomes = await loop.run_in_executor(self._threads, self._outcomes, asked, thens)
        except Exception as error:
            if len(callers) > 1 and not isinstance(error, Unavailable):
                for caller in callers:  # what is wrong with one shall hurt no other
                    await self._serve([caller])
                return
            outcomes = [_Outcome(error=error)] * len(callers)
        for caller, outcome in zip(callers, outcomes, strict=True):
            if caller.future.done():  # the caller has gone
                continue
            if outcome.error is not None:
                caller.future.set_exception(outcome.error)
            else:
                caller.future.set_result(outcome.value)
        del callers, caller, outcomes, outcome  # an error may know this frame, too

    def _outcomes(self, asked: Sequence[Asked], thens: Sequence[_Then]) -> list[_Outcome]:
        found = self._find_all(asked)
        return [_outcome(then, each) for then, each in zip(thens, found, strict=True)]


def _outcome(then: _Then, found: Found) -> _Outcome:
    """What a caller gets of what was found."""
    if isinstance(found, Exception):
        return _Outcome(error=found)
    try:
        return _Outcome(then(found))
    except InnerloopError as error:  # foreseen: nobody asks where it was raised
        return _Outcome(error=error.with_traceback(None))  # which would hold all that was found
    except Exception as error:  # of this caller, and nobody else's
        return _Outcome(error=error)


def _itself(stored: StoredSession) -> StoredSession:
    return stored
