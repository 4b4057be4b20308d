"""The whole service under load, beside its engine, a plain server and a route that does nothing.

    pip install -e '.[bench]'      # and wrk, the HTTP load generator, from the system's packages
    python -m benchmarks.server --json FILE

`wrk` keeps so many connections busy as the concurrency says. A session is 5-way 1-shot with 15
queries a class, of the bundled model: as JSON with PNGs, or as a file of tensors. A prediction is
one query, of one session that all callers share or of one of 64. On SQLite, and in a schema of its
own on a PostgreSQL that is started for it or the one of TEST_DATABASE_URL. Everything runs on the
one machine, the load generator too.
"""

import argparse
import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from app.api.tensors import MEDIA_TYPE
from app.devices import choose_device, one_thread
from app.engine import ModelKey
from app.engine.requests import Floats
from app.registry import Registry
from app.settings import Settings
from benchmarks.adaptation import MODEL, bundled, draw_request, load, started
from benchmarks.adaptation import Request as EngineRequest
from benchmarks.output import write_json
from tests.postgresql import empty_schema, postgresql_server

WAYS, SHOTS = 5, 1
CONCURRENCY = (1, 16, 64)
SESSIONS = 64
"""So many sessions are asked in turn where callers do not share one."""
JSON = "application/json"
ROOT = Path(__file__).parents[1]

SCRIPT = """
local paths, bodies, turn = {{{paths}}}, {{}}, 0
for number, path in ipairs({{{bodies}}}) do
  local file = io.open(path, "rb"); bodies[number] = file:read("*a"); file:close()
end
function request()
  turn = turn + 1
  return wrk.format("POST", paths[turn % #paths + 1], {{["Content-Type"] = "{media_type}"}},
                    bodies[turn % #bodies + 1])
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('JSON{{"requests": %d, "microseconds": %d, "p50": %f, "p99": %f, ' ..
    '"errors": %d}}\\n', summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


class Failed(Exception):
    """A server did not start, or did not answer as it should; the message says what."""


@dataclass(frozen=True)
class Row:
    """One measurement; latencies are those that a caller sees."""

    what: str
    server: str
    concurrency: int
    per_s: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Call:
    """What callers send: paths and bodies in turn."""

    what: str
    paths: list[str]
    bodies: list[bytes]
    media_type: str = JSON


@dataclass(frozen=True)
class Task:
    """One 5-way 1-shot task of pictures (M, 1, 28, 28) uint8, dark on light."""

    support: NDArray[np.uint8]
    labels: list[str]
    query: NDArray[np.uint8]

    @classmethod
    def of(cls, request: EngineRequest) -> "Task":
        """The task of a request to the engine."""
        support = request.support

        def pixels(inputs: Floats) -> NDArray[np.uint8]:
            return (255 * (1 - inputs)).round().astype(np.uint8)

        labels = [f"class {label}" for label in support.labels]
        return cls(pixels(support.inputs), labels, pixels(request.query))

    def as_json(self, queries: int | None = None) -> bytes:
        """The body of a new session."""
        support = [
            {"input": picture_input(picture), "label": label}
            for picture, label in zip(self.support, self.labels, strict=True)
        ]
        return json.dumps({"support": support, **self._asked(queries)}).encode()

    def query_as_json(self) -> bytes:
        """The body of a query of one input."""
        return json.dumps(self._asked(1)).encode()

    def as_tensors(self) -> bytes:
        """The body of a new session."""
        said = json.dumps({"labels": self.labels})
        tensors = {"support": self.support, "query": self.query}
        return safetensors.numpy.save(tensors, {"request": said})

    def _asked(self, queries: int | None) -> dict[str, Any]:
        return {"query": [picture_input(picture) for picture in self.query[:queries]]}


def picture_input(picture: NDArray[np.uint8]) -> dict[str, str]:
    """An input of the API: a picture (1, H, W) as a PNG."""
    file = BytesIO()
    Image.fromarray(picture[0]).save(file, "PNG")
    return {"image": base64.b64encode(file.getvalue()).decode()}


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(command: Sequence[str], url: str, **variables: str) -> Iterator[int]:
    """The id of a server's process, from when `url` answers.

    Raises:
        Failed: it ended, or did not answer within five minutes.
    """
    ours = {name: it for name, it in os.environ.items() if not name.startswith("INNERLOOP_")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(  # noqa: S603 - no shell, our own program
            [sys.executable, "-m", *command],
            env=ours | variables, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            end = time.monotonic() + 300
            while not _answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise Failed(f"{command[0]} did not start: {log.read()[-2000:].decode()}")
                time.sleep(0.1)
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


@dataclass(frozen=True)
class Service:
    """An Innerloop that runs."""

    port: int
    process: int
    database_url: str

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(models: Path, database_url: str = "", **variables: str) -> Iterator[Service]:
    """Innerloop with a data folder of its own, on SQLite in it unless `database_url` says more.

    Raises:
        Failed: as `running`.
    """
    with tempfile.TemporaryDirectory() as folder:
        port, database = free_port(), database_url or f"sqlite:///{folder}/innerloop.db"
        settings = {
            "INNERLOOP_PORT": f"{port}",
            "INNERLOOP_DATA_DIR": folder,
            "INNERLOOP_MODELS_DIR": str(models.absolute()),
            "INNERLOOP_DATABASE_URL": database,
        }
        ready = f"http://127.0.0.1:{port}/health/ready"
        with running(["app", "serve"], ready, **settings, **variables) as process:
            yield Service(port, process, database)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5):  # noqa: S310 - our own address
            return True
    except OSError:
        return False


def post(url: str, body: bytes) -> dict[str, Any]:
    """Send JSON and return the answer's."""
    with urlopen(Request(url, body, {"Content-Type": JSON}), timeout=60) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
        return answer


def wrk(server: str, url: str, call: Call, concurrency: int, seconds: float) -> Row:
    """Loads a server for so many seconds, or half a second for every caller where that is more.

    Answers that are under way at the end do not count: they must be few beside those that do.

    Raises:
        Failed: an answer was an error, or none came.
    """
    seconds = max(seconds, concurrency / 2)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}" for number in range(len(call.bodies))]
        for file, body in zip(files, call.bodies, strict=True):
            file.write_bytes(body)
        script = Path(folder) / "script.lua"
        script.write_text(
            SCRIPT.format(
                paths=", ".join(map(json.dumps, call.paths)),
                bodies=", ".join(json.dumps(str(file)) for file in files),
                media_type=call.media_type,
            )
        )
        command = ["wrk", "-t", "1", "-c", f"{concurrency}", "-d", f"{seconds:.0f}s"]
        command += ["--timeout", "60s", "-s", str(script), url]
        output = subprocess.run(  # noqa: S603 - no shell
            command, check=True, capture_output=True, text=True
        ).stdout
    found = json.loads(output.partition("JSON")[2])
    if found["errors"] or not found["requests"]:
        raise Failed(f"{call.what} at {server}: {output}")
    rate = 1e6 * found["requests"] / found["microseconds"]
    return Row(call.what, server, concurrency, rate, found["p50"] / 1e3, found["p99"] / 1e3)


def measure_service(
    database: str, database_url: str, models: Path, device: str, task: Task, seconds: float
) -> list[Row]:
    """The service on one database."""
    with serving(models, database_url, INNERLOOP_DEVICE=device) as service:
        paths = []
        for _ in range(SESSIONS):
            session = post(f"{service.url}/v1/sessions", task.as_json(1))
            paths.append(f"/v1/sessions/{session['id']}/predictions")
        calls = [
            Call("session", ["/v1/sessions"], [task.as_json()]),
            Call("session of tensors", ["/v1/sessions"], [task.as_tensors()], MEDIA_TYPE),
            Call("prediction, one session", paths[:1], [task.query_as_json()]),
            Call(f"prediction, {SESSIONS} sessions", paths, [task.query_as_json()]),
        ]
        return [
            wrk(f"innerloop, {database}", service.url, call, level, seconds)
            for call in calls
            for level in CONCURRENCY
        ]


def measure_plain(models: Path, task: Task, seconds: float) -> list[Row]:
    """The plain server, at its better number of threads, and the route that does nothing."""
    rows: list[Row] = []
    for threads in sorted({1, os.cpu_count() or 1}):
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = ["benchmarks.plain_server", f"{port}", str(models.absolute()), f"{threads}"]
        with running(command, f"{url}/docs"):
            post(f"{url}/sessions", task.as_json())
            calls = [
                ("higher", Call("session", ["/sessions"], [task.as_json()])),
                ("nothing", Call("nothing", ["/nothing"], [task.query_as_json()])),
            ]
            rows += [
                wrk(server, url, call, level, seconds)
                for server, call in calls
                for level in CONCURRENCY
            ]
    best = {(row.server, row.concurrency): row for row in sorted(rows, key=lambda row: row.per_s)}
    return list(best.values())


def task_of(models: Path) -> Task:
    """A task for the bundled model."""
    return Task.of(draw_request(bundled(models), WAYS, SHOTS, seed=0))


def measure(models: Path, device: str, seconds: float) -> list[Row]:
    """Runs everything; see the module."""
    with one_thread():  # else a lone request of the engine would be slower beside this thread's
        model = bundled(models)
    request = draw_request(model, WAYS, SHOTS, seed=0)
    task = Task.of(request)
    rows = measure_plain(models, task, seconds)
    steps, key = model.card.steps, ModelKey(MODEL, model.card.version)
    engine = started(Registry(models), Settings(device=device, models_dir=models))
    try:
        for level in CONCURRENCY:
            per_s, latencies = load(engine, key, [request], steps, level, seconds)
            p50, p99 = (float(np.percentile(latencies, part)) for part in (50, 99))
            rows.append(Row("session", "engine alone", level, per_s, p50, p99))
    finally:
        engine.stop(60)
    rows += measure_service("sqlite", "", models, device, task, seconds)
    with postgresql_server() as server, empty_schema(server) as url:
        rows += measure_service("postgresql", url, models, device, task, seconds)
    return rows


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """What the service makes of its parts, at the most callers on SQLite."""
    per_s = {
        (row.what, row.server): row.per_s for row in rows if row.concurrency == CONCURRENCY[-1]
    }
    session = per_s["session", "innerloop, sqlite"]
    nothing = per_s["nothing", "nothing"]
    return {
        "sessions over the engine alone": session / per_s["session", "engine alone"],
        "sessions of tensors over the engine alone": (
            per_s["session of tensors", "innerloop, sqlite"] / per_s["session", "engine alone"]
        ),
        "sessions over the plain server with higher": session / per_s["session", "higher"],
        "predictions of one session over nothing": (
            per_s["prediction, one session", "innerloop, sqlite"] / nothing
        ),
        f"predictions of {SESSIONS} sessions over nothing": (
            per_s[f"prediction, {SESSIONS} sessions", "innerloop, sqlite"] / nothing
        ),
    }


def table(rows: Sequence[Row]) -> Table:
    """The rows for a person."""
    shown = Table("what", "server", title="The service under load")
    for name in ("callers", "a second", "p50 ms", "p99 ms"):
        shown.add_column(name, justify="right")
    for row in sorted(rows, key=lambda row: row.what):
        numbers = (f"{row.per_s:.4g}", f"{row.p50_ms:.1f}", f"{row.p99_ms:.1f}")
        shown.add_row(row.what, row.server, f"{row.concurrency}", *numbers)
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda[:n]")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the models folder")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    options = parser.parse_args(arguments)
    try:
        if not shutil.which("wrk"):
            raise Failed("wrk is missing: install it from the system's packages")
        choose_device(options.device)
        rows = measure(options.models, options.device, options.seconds)
    except Failed as error:
        Console(stderr=True).print(str(error), markup=False)
        return 1
    Console().print(table(rows))
    for name, ratio in ratios(rows).items():
        Console().print(f"{name}: {ratio:.2f}")
    write_json(options.json, {"ratios": ratios(rows), "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
