import pytest
from starlette.testclient import TestClient

from app.api.app import create_app
from app.errors import DatabaseUnavailable
from tests.unit.api.helpers import check_problem


def test_a_warm_server_is_live_and_ready(client):
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_a_server_that_warms_up_is_live_but_not_ready(client, engine):
    engine.ready = False
    assert client.get("/health/live").status_code == 200
    check_problem(client.get("/health/ready"), 503, "not_ready")


def test_a_broken_device_is_neither_live_nor_ready(client, engine):
    engine.failed = True
    for probe in ("live", "ready"):
        check_problem(client.get(f"/health/{probe}"), 503, "engine_failed")


def test_a_silent_database_is_not_ready(client, resources, monkeypatch):
    def silent():
        raise DatabaseUnavailable("silent")

    monkeypatch.setattr(resources.database, "ping", silent)
    assert client.get("/health/live").status_code == 200
    check_problem(client.get("/health/ready"), 503, "database_unavailable")


def test_a_database_without_tables_is_not_ready(settings, resources, monkeypatch):
    def silent():
        raise DatabaseUnavailable("silent")

    monkeypatch.setattr(resources.database, "migrate", silent)
    monkeypatch.setattr(resources.database, "ping", lambda: None)
    with TestClient(create_app(settings, resources)) as client:
        check_problem(client.get("/health/ready"), 503, "database_unavailable")


@pytest.mark.parametrize("probe", ["live", "ready"])
def test_a_probe_may_use_head(client, probe):
    answer = client.head(f"/health/{probe}")
    assert (answer.status_code, answer.content) == (200, b"")
