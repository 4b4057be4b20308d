"""Real servers in processes of their own, with the bundled models and databases of their own."""

import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest
from PIL import Image, ImageDraw

MODELS = Path(__file__).parents[2] / "models"
STOP_SECONDS = 60
WAIT_SECONDS = 300
POLL_SECONDS = 0.1
SETTINGS = {
    "INNERLOOP_HOST": "127.0.0.1",
    "INNERLOOP_MODELS_DIR": str(MODELS),
    "INNERLOOP_DEVICE": "cpu",
    # Small limits make for few shapes to warm.
    "INNERLOOP_MAX_SUPPORT": "128",
    "INNERLOOP_MAX_CLASSES": "64",
    "INNERLOOP_BATCH_LIMIT": "4",
    "INNERLOOP_MAX_BODY_BYTES": "1000000",
    "INNERLOOP_DRAIN_SECONDS": "5",
}

T = TypeVar("T")


@dataclass
class Server:
    """A server's process; `log` is the file that its output goes to."""

    process: subprocess.Popen
    url: str
    log: Path
    client: httpx2.Client

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code."""
        return self.process.wait(STOP_SECONDS)

    def wait_until(self, probe: str) -> None:
        """Wait until `live` or `ready` answers 200."""

        def answers() -> bool:
            assert self.process.poll() is None, f"not {probe}: {self.log.read_text()}"
            try:
                return self.client.get(f"/health/{probe}").status_code == 200
            except httpx2.TransportError:
                return False

        self.wait_for(answers)

    def logged(self, **fields: object) -> list[dict]:
        """The log's lines that have these values."""
        whole = [line for line in self.log.read_text().splitlines(True) if line.endswith("\n")]
        return [line for line in map(json.loads, whole) if fields.items() <= line.items()]

    def wait_for(self, condition: Callable[[], T]) -> T:
        """What the condition gives once that is true: much is done only after an answer is out."""
        give_up = time.monotonic() + WAIT_SECONDS
        while not (result := condition()):
            assert time.monotonic() < give_up, f"{condition}: {self.log.read_text()}"
            time.sleep(POLL_SECONDS)
        return result


StartServer = Callable[..., AbstractContextManager[Server]]


def environment(folder: Path, **changes: str) -> dict[str, str]:
    """The environment of a server whose data lie in `folder`."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("INNERLOOP_")}
    return {**ours, **SETTINGS, "INNERLOOP_DATA_DIR": str(folder), **changes}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextmanager
def running(folder: Path, until: str, **changes: str) -> Iterator[Server]:
    """Run a server, and kill it at the end where it still runs."""
    port = free_port()
    variables = environment(folder, **{"INNERLOOP_PORT": str(port), **changes})
    log = folder / f"{port}.log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "app", "serve"]
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, timeout=60) as client:
        server = Server(process, url, log, client)
        try:
            server.wait_until(until)
            yield server
        finally:
            if process.poll() is None:
                server.signal(signal.SIGKILL)
                server.wait()


@pytest.fixture(scope="session")
def models_folder() -> Path:
    """The bundled models."""
    if not list(MODELS.glob("*/*/card.json")):
        pytest.skip("models/ holds no version of any model yet: make one with `innerloop train`")
    return MODELS


@pytest.fixture(scope="session")
def server(models_folder, tmp_path_factory) -> Iterator[Server]:
    """One server for all tests of this process that leave it running."""
    with running(tmp_path_factory.mktemp("server"), "ready") as server:
        yield server


@pytest.fixture
def client(server) -> httpx2.Client:
    return server.client


@pytest.fixture
def start_server(models_folder, tmp_path) -> StartServer:
    """Starts a server of the test's own: `with start_server(INNERLOOP_...="...") as server`.

    All that one test starts share a data folder, and so a database.
    """

    def start(until: str = "ready", **changes: str) -> AbstractContextManager[Server]:
        return running(tmp_path, until, **changes)

    return start


@pytest.fixture
def server_environment(tmp_path) -> dict[str, str]:
    """The environment of a server, for a test that starts it by itself."""
    return environment(tmp_path, INNERLOOP_PORT=str(free_port()))


@pytest.fixture(scope="session")
def drawing() -> Callable[[int, int], dict]:
    """Gives the input with one hand's drawing of one of any number of invented characters."""

    def draw(character: int, hand: int) -> dict:
        strokes, shake = random.Random(character), random.Random(f"{character} {hand}")
        image = Image.new("L", (105, 105), 255)
        pen = ImageDraw.Draw(image)
        for _ in range(3):
            corners = [(strokes.uniform(15, 90), strokes.uniform(15, 90)) for _ in range(3)]
            pen.line([(x + shake.gauss(0, 2), y + shake.gauss(0, 2)) for x, y in corners], 0, 3)
        file = BytesIO()
        image.save(file, "PNG")
        return {"image": base64.b64encode(file.getvalue()).decode()}

    return draw
