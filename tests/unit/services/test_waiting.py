import asyncio
from concurrent.futures import Future

import pytest

from app.errors import EngineFailed, Unavailable
from app.services.waiting import wait_for

pytestmark = pytest.mark.anyio


async def test_the_answer_of_another_thread_is_awaited():
    future: Future[int] = Future()
    asyncio.get_running_loop().call_later(0.01, future.set_result, 7)
    assert await wait_for(future, 5) == 7


async def test_the_futures_error_is_raised_as_it_is():
    future: Future[int] = Future()
    error = EngineFailed("the device has failed")
    future.set_exception(error)
    with pytest.raises(EngineFailed) as caught:
        await wait_for(future, 5)
    assert caught.value is error


async def test_past_the_deadline_the_request_is_taken_back_and_may_be_tried_again():
    future: Future[int] = Future()
    with pytest.raises(Unavailable, match=r"did not answer within 0.02 s; try again") as caught:
        await wait_for(future, 0.02)
    assert caught.value.retry_after_seconds >= 1
    await asyncio.sleep(0)
    assert future.cancelled()


async def test_a_caller_who_has_gone_takes_the_request_back():
    future: Future[int] = Future()
    task = asyncio.create_task(wait_for(future, 5))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert future.cancelled()
