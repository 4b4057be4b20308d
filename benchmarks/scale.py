"""What a million stored sessions cost: predictions and lists, beside the same with a thousand.

    python -m benchmarks.scale --json FILE

Half of the sessions have expired and were erased: the newer half, which a list has to leave out.
Rows are stored directly, as copies of a real session, while a server runs on the database; one
caller sends it one request after the other. On SQLite and PostgreSQL, as in `benchmarks.server`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from rich.console import Console
from rich.table import Table
from sqlalchemy import insert, select

from app.database import Database
from app.database.tables import revisions, sessions
from benchmarks.output import write_json
from benchmarks.server import post, serving, task_of
from tests.postgresql import empty_schema, postgresql_server

SIZES = (1_000, 1_000_000)
AT_ONCE = 5_000
"""Rows of one insert."""
REQUESTS = 300


@dataclass(frozen=True)
class Row:
    """Median latency of one kind of request."""

    database: str
    stored: int
    what: str
    median_ms: float


class Store:
    """A database that a server runs on, filled with copies of the one session that is there."""

    def __init__(self, database: Database):
        self._database = database
        self.ids: list[str] = []
        """The sessions that have not expired, newest first."""
        with database.reading() as connection:
            self._session, self._revision = (
                dict(connection.execute(select(table)).one()._mapping)
                for table in (sessions, revisions)
            )
        self._filled = 1

    def fill(self, count: int) -> None:
        """Stores so many in all: older ones that live, and as many newer ones that were erased."""
        for start in range(self._filled, count, AT_ONCE):
            rows = [self._copy(number) for number in range(start, min(start + AT_ONCE, count))]
            with self._database.transaction() as connection:
                connection.execute(insert(sessions), [session for session, _ in rows])
                connection.execute(insert(revisions), [revision for _, revision in rows])
        self._filled = count
        with self._database.transaction() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("ANALYZE")  # as its daemon does sooner or later

    def _copy(self, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        made: datetime = self._session["created_at"]
        erased = number % 2 == 1
        at = made + timedelta(seconds=number if erased else -number)
        session_id = f"ses_{int(at.timestamp() * 1e6):014x}{number:018x}"
        end = at if erased else None
        own = {"id": session_id, "created_at": at, "expires_at": end, "erased_at": end}
        examples = b"" if erased else self._revision["examples"]
        if not erased:
            self.ids.append(session_id)
        said = {"session_id": session_id, "created_at": at, "examples": examples}
        return self._session | own, self._revision | said


def medians(url: str, store: Store, query: bytes) -> Iterator[tuple[str, float]]:
    """What requests cost, in ms."""
    ids, step = store.ids, max(1, len(store.ids) // REQUESTS)
    spread = ids[::step][:REQUESTS]
    middle = ids[len(ids) // 2]

    def predict(session_id: str) -> None:
        post(f"{url}/v1/sessions/{session_id}/predictions", query)

    def read(path: str) -> None:
        with urlopen(f"{url}/v1/sessions{path}", timeout=60) as response:  # noqa: S310 - ours
            response.read()

    work: dict[str, Callable[[int], None]] = {
        "prediction of one session": lambda _: predict(ids[0]),
        "prediction, φ made anew": lambda turn: predict(spread[turn % len(spread)]),
        "a session": lambda turn: read(f"/{spread[turn % len(spread)]}"),
        "the first page": lambda _: read("?limit=20"),
        "a page in the middle": lambda _: read(f"?limit=20&after={middle}"),
        "the first page of a model": lambda _: read("?limit=20&model=omniglot"),
        "the page of a model without sessions": lambda _: read("?limit=20&model=other"),
    }
    for what, request in work.items():
        times = []
        for turn in range(REQUESTS):
            start = time.perf_counter()
            request(turn)
            times.append(1e3 * (time.perf_counter() - start))
        yield what, statistics.median(times)


def measure(name: str, database_url: str, models: Path, sizes: Sequence[int]) -> list[Row]:
    """One database, filled step by step."""
    task, rows = task_of(models), []
    few = str(64 * 2**20)  # φ of fewer sessions than are asked for in turn
    with (
        serving(models, database_url, INNERLOOP_PHI_CACHE_BYTES=few) as service,
        closing(Database(service.database_url)) as database,
    ):
        post(f"{service.url}/v1/sessions", task.as_json(1))
        store = Store(database)
        for size in sizes:
            store.fill(size)
            for what, median in medians(service.url, store, task.query_as_json()):
                rows.append(Row(name, size, what, median))
    return rows


def table(rows: Sequence[Row]) -> Table:
    """Latencies by number of sessions, and the last over the first."""
    sizes = sorted({row.stored for row in rows})
    shown = Table("database", "request", title="Median latency in ms by stored sessions")
    for size in sizes:
        shown.add_column(f"{size:,}", justify="right")
    shown.add_column("ratio", justify="right")
    found = {(row.database, row.what, row.stored): row.median_ms for row in rows}
    for database, what in dict.fromkeys((row.database, row.what) for row in rows):
        times = [found[database, what, size] for size in sizes]
        shown.add_row(database, what, *(f"{it:.2f}" for it in times), f"{times[-1] / times[0]:.2f}")
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--models", type=Path, default=Path("models"), help="the models folder")
    options = parser.parse_args(arguments)
    rows = measure("sqlite", "", options.models, SIZES)
    with postgresql_server() as server, empty_schema(server) as url:
        rows += measure("postgresql", url, options.models, SIZES)
    Console().print(table(rows))
    write_json(options.json, {"rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
