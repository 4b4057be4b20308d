"""Run the server: open the port, serve, drain, and end with an exit code."""

import asyncio
import errno
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from types import FrameType
from typing import NoReturn

import structlog
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.app import create_app
from app.api.logging import configure
from app.api.middleware import HEADER, new_request_id
from app.api.problems import MALFORMED
from app.api.resources import Resources
from app.engine import Engine
from app.settings import Settings

BACKLOG = 2048
LAST_BYTES_SECONDS = 2
"""How long connections may take to end once the application has drained."""

_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}

_log = structlog.get_logger("app.api")


class CannotStartError(Exception):
    """The server cannot start; the message says in one line what to do."""


def run(settings: Settings) -> int:
    """Serve until a signal ends it.

    Returns:
        The exit code: 0 after a shutdown that a signal asked for, another where the server could
        not start. One line on standard error then says why. Where the device still computes when
        its time to drain is over, the process ends here instead.

    Raises:
        InnerloopError: a model on disk is broken or cannot be served, or the device is not there.
    """
    # uvicorn raises the signal again once it has shut down, for the handler that was there before.
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    configure(settings.log_format)
    with ExitStack() as stack:
        try:
            listeners = _listen(settings.host, settings.port, stack)
            resources = _build(settings)
        except CannotStartError as error:
            print(f"innerloop: {error}", file=sys.stderr)
            return 1
        code = _serve(create_app(settings, resources), listeners, resources.engine)
    if threading.active_count() > 1:
        # The end of the interpreter would abort the process under a thread that computes.
        sys.stdout.flush()
        os._exit(code)
    return code


def _serve(app: FastAPI, listeners: list[socket.socket], engine: Engine) -> int:
    for listener in listeners:
        host, port = listener.getsockname()[:2]
        _log.info("listening", host=host, port=port)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=LAST_BYTES_SECONDS,
    )
    try:
        _Server(config, engine).run(listeners)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


class _Protocol(HttpToolsProtocol):
    """Answers what is no HTTP with a problem as well."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words
        """Answer and hang up."""
        request_id = new_request_id()
        answer = MALFORMED.response(request_id.decode())
        headers = [*answer.raw_headers, (HEADER, request_id)]
        lines = [b"HTTP/1.1 400 Bad Request", *(b": ".join(header) for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", answer.body]))
        self.transport.close()


class _Server(uvicorn.Server):
    """Reads the models again on SIGHUP, and answers late callers until it has drained."""

    def __init__(self, config: uvicorn.Config, engine: Engine):
        super().__init__(config)
        self._engine = engine
        self._had_terminal = _has_terminal()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and listen for the signal."""
        await super().startup(sockets)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hang_up)
        self._reload()  # for a signal that came before

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain while the port is still open, then close it and the connections."""
        drain = asyncio.create_task(self.lifespan.shutdown())
        while not (drain.done() or self.force_exit):
            await asyncio.wait({drain}, timeout=0.1)
        await super().shutdown(sockets)

    def _hang_up(self) -> None:
        if self._had_terminal and not _has_terminal():  # it was closed, and this server with it
            self.handle_exit(signal.SIGTERM, None)
        else:
            _log.info("reading the models again")
            self._reload()

    def _reload(self) -> None:
        threading.Thread(target=self._engine.reload, name="reload", daemon=True).start()


def _has_terminal() -> bool:
    """Whether standard input, output or error is a terminal."""
    return any(os.isatty(number) for number in range(3))


def _build(settings: Settings) -> Resources:
    try:
        resources = Resources.build(settings)
    except ValueError as error:
        raise CannotStartError(f"INNERLOOP_DATABASE_URL: {error}") from error
    names = resources.registry.names()
    if not names:
        raise CannotStartError(
            f"there is no model in {settings.models_dir}: make one with `innerloop train`,"
            " or set INNERLOOP_MODELS_DIR"
        )
    if settings.default_model not in names:
        _log.warning("the default model is not there", model=settings.default_model, known=names)
    return resources


def _listen(host: str, port: int, stack: ExitStack) -> list[socket.socket]:
    """Open the port on every address of the host, before anything takes time.

    `stack` closes what was opened.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise CannotStartError(f"the host {host} is not known: set INNERLOOP_HOST") from error
    listeners = []
    for family, _, _, _, address in found:
        try:
            listener = socket.create_server((str(address[0]), port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno in _NO_SUCH_ADDRESS and len(found) > 1:
                continue  # such as ::1 of localhost on a machine without IPv6
            raise CannotStartError(_refusal(error, host, port)) from error
        listeners.append(stack.enter_context(listener))
    if not listeners:
        raise CannotStartError(f"no address of {host} is this machine's: set INNERLOOP_HOST")
    return listeners


def _refusal(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken: end the other server, or set INNERLOOP_PORT"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(0)
