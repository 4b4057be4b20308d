"""Ten minutes of everything at once: does the server's memory stay flat?

    python -m benchmarks.soak --json FILE

Eight callers create sessions of 2 to 20 classes, query them and old ones, add examples, evaluate,
list, download weights, delete, and send what is refused. The cache of φ is small, so that sessions
are evicted and adapted anew. The server's resident memory is read every five seconds; the growth is
the slope of a line through the readings of the second half. Fails on an answer that should not be.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import write_json
from benchmarks.server import JSON, Failed, picture_input, serving

CALLERS = 8
EVERY_SECONDS = 5.0
MEBIBYTE = 2**20
KEPT = 40
"""Sessions that a caller keeps; beyond it deletes one."""


class Caller:
    """One caller with sessions of its own."""

    def __init__(self, port: int, seed: int):
        self.answered = 0
        self._connection = HTTPConnection("127.0.0.1", port, timeout=120)
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._numbers = np.random.default_rng(seed)
        self._sessions: list[str] = []

    def run(self, until: float) -> None:
        """Sends one request after the other."""
        acts = [self._create, self._predict, self._predict, self._predict, self._add]
        acts += [self._evaluate, self._list, self._weights, self._refused]
        while time.monotonic() < until:
            act = self._random.choice(acts) if self._sessions else self._create
            act()
            if len(self._sessions) > KEPT:
                gone = self._sessions.pop(self._random.randrange(len(self._sessions)))
                self._send("DELETE", f"/v1/sessions/{gone}", 204)

    def _create(self) -> None:
        ways, shots = self._random.randint(2, 20), self._random.randint(1, 4)
        body = {"support": self._examples(range(ways), shots), "query": self._inputs(3)}
        self._sessions.append(self._send("POST", "/v1/sessions", 201, body)["id"])

    def _predict(self) -> None:
        body = {"query": self._inputs(self._random.randint(1, 20))}
        self._send("POST", f"/v1/sessions/{self._one()}/predictions", 200, body)

    def _add(self) -> None:
        body = {"support": self._examples([self._random.randint(0, 20)], 1)}
        self._send("POST", f"/v1/sessions/{self._one()}/examples", 200, body)

    def _evaluate(self) -> None:
        body = {"examples": self._examples([0, 1], 3)}
        self._send("POST", f"/v1/sessions/{self._one()}/evaluations", 200, body)

    def _list(self) -> None:
        self._send("GET", "/v1/sessions?limit=100", 200)

    def _weights(self) -> None:
        self._send("GET", f"/v1/sessions/{self._one()}/weights", 200)

    def _refused(self) -> None:
        body = {"support": [{"input": {"image": "AAAA"}, "label": "a"}]}
        self._send("POST", "/v1/sessions", 422, body)

    def _one(self) -> str:
        return self._random.choice(self._sessions)

    def _inputs(self, count: int) -> list[dict[str, str]]:
        return [
            picture_input(picture)
            for picture in self._numbers.integers(0, 256, (count, 1, 28, 28), np.uint8)
        ]

    def _examples(self, labels: Sequence[int] | range, each: int) -> list[dict[str, Any]]:
        return [
            {"input": picture, "label": f"class {label}"}
            for label in labels
            for picture in self._inputs(each)
        ]

    def _send(self, method: str, path: str, status: int, body: object = None) -> Any:
        raw = None if body is None else json.dumps(body)
        self._connection.request(method, path, raw, {"Content-Type": JSON} if raw else {})
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != status:
            raise Failed(f"{method} {path}: {answer.status} {content[:500]!r}")
        self.answered += 1
        is_json = answer.getheader("Content-Type", "").endswith("json")
        return json.loads(content) if is_json else None


def resident_bytes(process: int) -> int:
    """Memory of a process that is in RAM, as Linux counts it."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(models: Path, minutes: float) -> tuple[list[tuple[float, float]], int]:
    """Seconds and MiB of each reading, and how many requests were answered.

    Raises:
        Failed: an answer was not what it should be.
    """
    readings: list[tuple[float, float]] = []
    with serving(models, INNERLOOP_PHI_CACHE_BYTES=str(100 * MEBIBYTE)) as service:
        callers = [Caller(service.port, seed) for seed in range(CALLERS)]
        began = time.monotonic()
        until = began + 60 * minutes
        with ThreadPoolExecutor(CALLERS) as pool:
            runs = [pool.submit(caller.run, until) for caller in callers]
            while time.monotonic() < until and not any(run.done() for run in runs):
                time.sleep(EVERY_SECONDS)
                mebibytes = resident_bytes(service.process) / MEBIBYTE
                readings.append((time.monotonic() - began, mebibytes))
            for run in runs:
                run.result()
    return readings, sum(caller.answered for caller in callers)


def growth(readings: Sequence[tuple[float, float]]) -> float:
    """MiB a minute by a line of least squares through the second half of the readings."""
    seconds, mebibytes = np.array(readings[len(readings) // 2 :]).T
    return float(60 * np.polyfit(seconds, mebibytes, 1)[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak")
    parser.add_argument("--json", type=Path, help="where to write the readings")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the models folder")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long")
    options = parser.parse_args(arguments)
    try:
        readings, answered = measure(options.models, options.minutes)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{answered} requests")
    for seconds, mebibytes in readings[:: max(1, len(readings) // 20)]:
        print(f"{seconds:5.0f} s {mebibytes:7.1f} MiB")
    print(f"growth in the second half: {growth(readings):+.2f} MiB a minute")
    write_json(options.json, {"requests": answered, "readings": readings})
    return 0


if __name__ == "__main__":
    sys.exit(main())
