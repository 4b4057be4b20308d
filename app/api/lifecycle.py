"""Where a server stands between its start and its end, and how many requests are in flight."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from app.errors import Draining

LAST_ANSWERS_SECONDS = 1.0
"""How long a shutdown waits for the answers that the engine's end set free."""


class Lifecycle:
    """One server's state. Lives on the event loop; not for other threads."""

    def __init__(self) -> None:
        self.migrated = False
        """Whether the database has today's tables."""
        self.draining = False
        """Whether the server is shutting down."""
        self.in_flight = 0
        """Requests that were let in and are not answered yet."""
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let one request in, and count it until it is answered.

        Raises:
            Draining: the server is shutting down.
        """
        if self.draining:
            raise Draining("This server is shutting down: send the request again.")
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    async def drain(self, stop_engine: Callable[[float], None], seconds: float) -> None:
        """Let no more requests in, wait for those in flight, and stop the engine.

        All of it within about `seconds`: `stop_engine` is given those that are left, and what
        still waits for the engine then gets its error.
        """
        self.draining = True
        start = time.monotonic()
        await self._wait_until_idle(seconds)
        left = max(0.0, seconds - (time.monotonic() - start))
        own = ThreadPoolExecutor(1)  # all others may be busy
        await asyncio.get_running_loop().run_in_executor(own, stop_engine, left)
        own.shutdown(wait=False)
        await self._wait_until_idle(LAST_ANSWERS_SECONDS)

    async def _wait_until_idle(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
