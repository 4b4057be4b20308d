import asyncio
import time
from dataclasses import replace

import pytest
from starlette.testclient import TestClient
from structlog.testing import capture_logs

from app.api.app import create_app
from app.api.lifecycle import Lifecycle
from app.database import Database
from app.errors import DatabaseUnavailable, Draining
from tests.unit.api.helpers import check_problem, wait_until


def test_a_drain_waits_for_the_requests_in_flight_and_lets_none_in():
    async def scenario():
        lifecycle, stopped = Lifecycle(), []
        with lifecycle.request():
            drain = asyncio.create_task(lifecycle.drain(stopped.append, 60))
            await asyncio.sleep(0.01)
            assert stopped == []
            with pytest.raises(Draining), lifecycle.request():
                pass
        await drain
        assert 59 < stopped[0] <= 60

    asyncio.run(scenario())


def test_a_drain_gives_up_in_time_and_leaves_the_engine_nothing_to_wait_for():
    async def scenario():
        lifecycle, stopped = Lifecycle(), []
        with lifecycle.request():
            began = time.monotonic()
            await lifecycle.drain(stopped.append, 0.05)
            assert time.monotonic() - began < 5
        assert stopped == [0]

    asyncio.run(scenario())


def test_a_request_that_fails_is_in_flight_no_more():
    lifecycle = Lifecycle()

    def fail():
        with lifecycle.request():
            assert lifecycle.in_flight == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert lifecycle.in_flight == 0


def test_a_draining_server_refuses_new_work_and_keeps_answering_probes(client, session_url):
    client.app_state["lifecycle"].draining = True
    for answer in (
        client.get(session_url),
        client.post("/v1/sessions", json={}),
        client.get("/v1/models"),
    ):
        check_problem(answer, 503, "draining")
        assert answer.headers["connection"] == "close"
    check_problem(client.get("/health/ready"), 503, "draining")
    assert client.get("/health/live").status_code == 200
    assert client.get("/metrics").status_code == 200


def test_the_end_of_the_server_stops_the_engine_once(app, engine, settings):
    with TestClient(app):
        assert engine.stopped_with == []
    [seconds] = engine.stopped_with
    assert 0 < seconds <= settings.drain_seconds


def test_the_database_is_brought_up_to_date_as_soon_as_it_answers(settings, resources, monkeypatch):
    tries = []

    def migrate():
        tries.append(1)
        if len(tries) < 3:
            raise DatabaseUnavailable("silent")

    monkeypatch.setattr("app.api.app.MIGRATION_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(resources.database, "migrate", migrate)
    with TestClient(create_app(settings, resources)) as client:
        wait_until(lambda: client.app_state["lifecycle"].migrated)
    assert len(tries) == 3


def test_why_the_database_does_not_answer_is_in_the_log(settings, resources, tmp_path):
    file = tmp_path / "broken.db"
    file.write_bytes(b"no database " * 1000)
    database = Database(f"sqlite:///{file}")
    app = create_app(settings, replace(resources, database=database))
    with capture_logs() as lines, TestClient(app):
        wait_until(lambda: len(lines) > 0)
    assert lines[0]["event"] == "the database is not available"
    assert lines[0]["cause"] == f"{file}: file is not a database"


def test_sweeps_go_on_after_one_that_failed(settings, resources, monkeypatch):
    sweeps = []

    async def sweep(_):
        sweeps.append(1)
        raise RuntimeError("broken")

    object.__setattr__(settings, "sweep_seconds", 0.001)
    monkeypatch.setattr(type(resources.sessions), "sweep", sweep)
    with TestClient(create_app(settings, resources)):
        wait_until(lambda: len(sweeps) >= 3)


def test_nothing_happens_before_the_lifespan(settings, engine, resources):
    engine.ready = False
    create_app(settings, resources)
    assert not engine.ready
    assert list(settings.data_dir.iterdir()) == []
