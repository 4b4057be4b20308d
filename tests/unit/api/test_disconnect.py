import asyncio
import json

import pytest
from structlog.testing import capture_logs

from app.api.middleware import CALLER_GONE


class Caller:
    """One request over bare ASGI, whose caller can go at any moment."""

    def __init__(self, app, state, path: str, method: str = "POST"):
        self._messages: asyncio.Queue = asyncio.Queue()
        self.sent: list[dict] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "state": dict(state),
        }
        self.task = asyncio.create_task(app(scope, self._messages.get, self._send))

    async def _send(self, message: dict) -> None:
        self.sent.append(message)

    def give(self, body: bytes, more: bool = False) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def go(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def serve(app):
    """Run a scenario against the started application."""

    def run(scenario):
        async def started():
            async with app.router.lifespan_context(app) as state:
                await until(lambda: state["lifecycle"].migrated)
                await scenario(state)
                await until(lambda: state["lifecycle"].in_flight == 0)

        asyncio.run(started())

    return run


def test_work_is_taken_back_when_its_caller_goes(serve, app, engine, resources, new_session):
    async def scenario(state):
        engine.answers = False
        caller = Caller(app, state, "/v1/sessions")
        caller.give(json.dumps(new_session).encode())
        await until(lambda: engine.futures)
        with capture_logs() as logs:
            caller.go()
            await caller.task
        assert engine.futures[0].cancelled()
        assert caller.sent == []
        assert [line["status"] for line in logs if line["event"] == "request"] == [CALLER_GONE]
        page = await resources.sessions.list("default", 10, None, None)
        assert page.data == []

    serve(scenario)


def test_a_caller_who_goes_amid_the_body_is_dropped(serve, app, engine):
    async def scenario(state):
        caller = Caller(app, state, "/v1/sessions")
        caller.give(b'{"support": [', more=True)
        caller.go()
        await caller.task
        assert caller.sent == []
        assert engine.calls == []

    serve(scenario)


def test_a_download_is_taken_back_when_its_caller_goes(serve, app, engine, new_session):
    async def scenario(state):
        maker = Caller(app, state, "/v1/sessions")
        maker.give(json.dumps(new_session).encode())
        await maker.task
        session_id = json.loads(maker.sent[1]["body"])["id"]
        engine.answers = False
        reader = Caller(app, state, f"/v1/sessions/{session_id}/weights", "GET")
        reader.give(b"")
        await until(lambda: len(engine.futures) == 2)
        reader.go()
        await reader.task
        assert engine.futures[1].cancelled()
        assert reader.sent == []

    serve(scenario)


def test_a_caller_who_stays_gets_one_whole_answer(serve, app, new_session):
    async def scenario(state):
        caller = Caller(app, state, "/v1/sessions")
        caller.give(json.dumps(new_session).encode()[:20], more=True)
        caller.give(json.dumps(new_session).encode()[20:])
        await caller.task
        assert [message["type"] for message in caller.sent] == [
            "http.response.start",
            "http.response.body",
        ]
        assert caller.sent[0]["status"] == 201

    serve(scenario)


def test_a_server_that_cancels_a_request_is_not_mistaken_for_the_caller(
    serve, app, engine, new_session
):
    async def scenario(state):
        engine.answers = False
        caller = Caller(app, state, "/v1/sessions")
        caller.give(json.dumps(new_session).encode())
        await until(lambda: engine.futures)
        caller.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller.task
        assert engine.futures[0].cancelled()

    serve(scenario)
