"""What the tests of the use cases share: one small task, and how to wait."""

import asyncio
from collections.abc import Callable

from app.services import Idempotency, SessionService
from tests.fakes import example, values

SUPPORT = [
    example("b", 0, 0, 0, 0),
    example("a", 1, 0, 0, 0),
    example("b", 0, 1, 0, 0),
]
MORE = [example("a", 1, 1, 0, 0), example("c", 0, 0, 3, 0)]
QUERY = [values(1, 0, 0, 0), values(0, 0.5, 0, 0)]
KEY = Idempotency("key", "1" * 64)
LABELS = ["\0", "a\0b", "😀", "👩‍👩‍👧", "\u00e9", "e\u0301", " ", '"\\', "<b>", "x" * 200]
"""Labels that some database, file or encoding would spoil."""


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until `condition` holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def gathered(*awaitables) -> list:
    """Results and exceptions, in order."""
    return await asyncio.gather(*awaitables, return_exceptions=True)


def kinds(outcomes: list) -> list[type]:
    return [type(outcome) for outcome in outcomes]


async def stored(service: SessionService, owner: str = "ann") -> list:
    """All living sessions of an owner."""
    return (await service.list(owner, 100, None, None)).data


async def calls_on(service: SessionService, owner: str, session_id: str) -> list:
    """The outcomes of all calls on a session but its deletion."""
    return await gathered(
        service.get(owner, session_id),
        service.predict(owner, session_id, QUERY),
        service.append(owner, session_id, MORE),
        service.evaluate(owner, session_id, SUPPORT),
        service.weights(owner, session_id),
    )
