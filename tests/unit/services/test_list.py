"""Listing sessions, on a real SQLite and with the honest fake engine."""

import asyncio

import numpy as np
import pytest

from app.errors import InvalidInput
from app.services import Example, NewSession
from tests.fakes import picture
from tests.unit.services.common import SUPPORT

pytestmark = pytest.mark.anyio


async def test_pages_go_from_the_newest_to_the_oldest_by_key(service):
    made = []
    for i in range(5):
        made.append(await service.create("ann", NewSession(SUPPORT, metadata={"i": i})))
        await asyncio.sleep(0.002)  # ids order to the millisecond
    await service.create("bob", NewSession(SUPPORT))

    first = await service.list("ann", 2, None, None)
    assert (first.data, first.has_more) == ([made[4], made[3]], True)
    await service.delete("ann", made[3].id)
    second = await service.list("ann", 2, made[3].id, None)
    assert (second.data, second.has_more) == ([made[2], made[1]], True)
    last = await service.list("ann", 2, made[1].id, None)
    assert (last.data, last.has_more) == ([made[0]], False)


async def test_a_page_may_hold_one_models_sessions_only(service):
    white = picture(np.full((28, 28), 255, np.uint8))
    black = picture(np.zeros((28, 28), np.uint8))
    drawn = NewSession([Example(white, "w"), Example(black, "b")], model="omniglot")
    drawings = await service.create("ann", drawn)
    await service.create("ann", NewSession(SUPPORT))
    assert (await service.list("ann", 9, None, "omniglot")).data == [drawings]
    for unknown in ("nope", "\0"):
        assert (await service.list("ann", 9, None, unknown)).data == []


@pytest.mark.parametrize("after", ["", "nope", "ses_\0"])
async def test_a_page_cannot_begin_after_what_is_no_id(service, after):
    with pytest.raises(InvalidInput, match=r"^/after: is not the id of a session"):
        await service.list("ann", 9, after, None)
