"""The way of a request under /v1, from the router to the endpoint."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.api.body import BodyRequest
from app.api.issues import parameter_issue
from app.api.lifecycle import Lifecycle
from app.api.resources import Resources
from app.errors import InvalidInput


class StrictRoute(APIRoute):
    """A route that refuses what is not described, and drops its work when the caller has gone.

    FastAPI reads and parses a body in its own, lenient way, and ignores unknown parameters. Here
    all that is read and checked first, and FastAPI is left to describe it.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, unless the server is draining. It is in flight until it is answered."""
        lifecycle: Lifecycle = scope["state"]["lifecycle"]
        with lifecycle.request():
            await super().handle(scope, receive, send)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the checks before FastAPI's handler."""
        answer = super().get_route_handler()
        parameters = frozenset(field.alias for field in self.dependant.query_params)
        schema: type[BaseModel] | None = None
        if self.body_field is not None:
            schema = cast("type[BaseModel]", self.body_field.field_info.annotation)

        async def handle(request: Request) -> Response:
            _check_query(request, parameters)
            if schema is not None:
                resources: Resources = request.state.resources
                request = await BodyRequest.read(request, schema, resources.settings.max_body_bytes)
            return await _unless_gone(answer(request), request.receive)

        return handle


def _check_query(request: Request, parameters: frozenset[str]) -> None:
    if not request.scope["query_string"]:
        return
    names = [name for name, _ in request.query_params.multi_items()]
    issues = [
        parameter_issue(name, "is not a known parameter")
        for name in dict.fromkeys(names)
        if name not in parameters
    ]
    issues += [
        parameter_issue(name, "must not be given twice")
        for name in sorted(parameters)
        if names.count(name) > 1
    ]
    if issues:
        raise InvalidInput(issues)


async def _unless_gone(answer: Awaitable[Response], receive: Receive) -> Response:
    """Await an answer, and cancel what it waits for when the caller goes first.

    Raises:
        ClientDisconnect: the caller has gone.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await answer
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
