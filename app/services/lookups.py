"""Sessions found for many callers by one statement after the other."""

import asyncio
from collections.abc import Callable, Sequence

from app.database import Asked
from app.errors import InnerloopError
from app.services.store import StoredSession

MOST_AT_ONCE = 100
"""So many sessions one statement finds at most: nobody shall wait for a thousand others."""


class Lookups:
    """Joins what is asked for while a statement is under way into the next one.

    Who comes alone is served at once. With a statement for every caller the threads that wait for
    the database would take the interpreter's lock from each other.

    Args:
        find_all: finds the sessions; blocks, so it is called in a worker thread.
    """

    def __init__(
        self, find_all: Callable[[Sequence[Asked]], Sequence[StoredSession | InnerloopError]]
    ):
        self._find_all = find_all
        self._waiting: list[tuple[Asked, asyncio.Future[StoredSession]]] = []
        self._task: asyncio.Task[None] | None = None

    async def find(self, owner: str, session_id: str) -> StoredSession:
        """As `SessionStore.find`: the session as it is once this is called, or later."""
        future: asyncio.Future[StoredSession] = asyncio.get_running_loop().create_future()
        self._waiting.append((Asked(owner, session_id), future))
        if self._task is None:
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = (
                    self._waiting[:MOST_AT_ONCE],
                    self._waiting[MOST_AT_ONCE:],
                )
                await self._serve(
                    [each for each in batch if not each[1].done()]
                )  # others have gone
        finally:
            self._task = None

    async def _serve(self, batch: Sequence[tuple[Asked, "asyncio.Future[StoredSession]"]]) -> None:
        found: Sequence[StoredSession | Exception]
        try:
            found = await asyncio.to_thread(self._find_all, [asked for asked, _ in batch])
        except Exception as error:
            found = [error] * len(batch)
        for (_, future), each in zip(batch, found, strict=True):
            if future.done():
                continue
            if isinstance(each, Exception):
                future.set_exception(each)
            else:
                future.set_result(each)
