"""Waiting for the device."""

import asyncio
from concurrent.futures import Future
from typing import TypeVar

from app.errors import Unavailable

T = TypeVar("T")


async def wait_for(future: Future[T], deadline_seconds: float) -> T:
    """Await a future of the engine's thread.

    The request is taken back, by cancelling the future, where the deadline passes or where the
    awaiting task is cancelled because its caller has gone.

    Raises:
        Unavailable: no answer within the deadline.
    """
    try:
        async with asyncio.timeout(deadline_seconds):
            return await asyncio.wrap_future(future)
    except TimeoutError:
        raise Unavailable(
            f"the device did not answer within {deadline_seconds:g} s; try again"
        ) from None
