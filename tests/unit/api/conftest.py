import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.api.app import create_app
from app.api.resources import Resources
from app.database import Database
from app.services import SessionService
from app.settings import Settings
from tests.fakes import FakeRegistry
from tests.unit.api.helpers import Device, wait_until


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.time = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(
        data_dir=tmp_path, models_dir=tmp_path / "models", max_body_bytes=100_000, drain_seconds=0.2
    )


@pytest.fixture
def engine() -> Device:
    return Device()


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def resources(settings, engine, registry, clock) -> Resources:
    database = Database(settings.database_url)
    resources = Resources.of(settings, registry, database, engine)
    sessions = SessionService(database, engine, resources.models, settings, clock)
    return replace(resources, sessions=sessions)


@pytest.fixture
def app(settings, resources) -> FastAPI:
    return create_app(settings, resources)


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """A database with today's tables: copying it is faster than making them for each test."""
    path = tmp_path_factory.mktemp("database") / "innerloop.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def client(app, settings, migrated_file):
    shutil.copy(migrated_file, settings.data_dir)
    with TestClient(app) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


@pytest.fixture
def new_session() -> dict:
    """A body for POST /v1/sessions: two labels far apart, in the model that takes four numbers."""
    return {
        "model": "values",
        "support": [
            {"input": {"values": [0, 0, 0, 0]}, "label": "low"},
            {"input": {"values": [3, 3, 3, 3]}, "label": "high"},
        ],
    }


@pytest.fixture
def session(client, new_session) -> dict:
    answer = client.post("/v1/sessions", json=new_session)
    assert answer.status_code == 201, answer.text
    return answer.json()


@pytest.fixture
def session_url(session) -> str:
    return f"/v1/sessions/{session['id']}"
