from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from app.database import Database, IdempotencyRecord, RevisionRecord, SessionRecord

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def now() -> datetime:
    return NOON


@pytest.fixture
def postgresql_database(postgresql_url: str) -> Iterator[Database]:
    """A migrated PostgreSQL, for what SQLite has nothing like."""
    with closing(Database(postgresql_url)) as database:
        database.migrate()
        yield database


@pytest.fixture
def make_session() -> Callable[..., SessionRecord]:
    """Makes a session's record; `number` gives its id, in order."""

    def make(number: int = 1, **changes) -> SessionRecord:
        fields = {
            "id": f"ses_{number:032x}",
            "owner": "ann",
            "model": "omniglot",
            "model_version": 1,
            "theta_sha256": "0f" * 32,
            "task": "classification",
            "revision": 1,
            "labels": ["b", "a"],
            "shots": {"b": 1, "a": 3},
            "steps": 2,
            "support_loss": [0.7, 0.2, 0.1],
            "support_sha256": "1e" * 32,
            "created_at": NOON,
            "expires_at": None,
            "metadata": {},
        }
        return SessionRecord(**{**fields, **changes})

    return make


@pytest.fixture
def make_revision() -> Callable[..., RevisionRecord]:
    """Makes the record of a session's second revision."""

    def make(**changes) -> RevisionRecord:
        fields = {
            "labels": ["b", "a", "c"],
            "shots": {"b": 1, "a": 3, "c": 1},
            "support_loss": [1.1, 0.4, 0.3],
            "support_sha256": "2d" * 32,
            "examples": b"second",
            "created_at": NOON,
        }
        return RevisionRecord(**{**fields, **changes})

    return make


@pytest.fixture
def make_answer() -> Callable[..., IdempotencyRecord]:
    """Makes the record of an answer to a request that created `make_session()`."""

    def make(**changes) -> IdempotencyRecord:
        fields = {
            "owner": "ann",
            "key": "key-1",
            "request_sha256": "3c" * 32,
            "body": b'{"id": "ses_"}',
            "session_id": f"ses_{1:032x}",
            "created_at": NOON,
        }
        return IdempotencyRecord(**{**fields, **changes})

    return make
