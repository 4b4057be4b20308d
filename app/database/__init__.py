"""Tables, repositories and migrations, on SQLite or PostgreSQL.

Knows no HTTP, no engine and no environment.
"""

from app.database.database import Database
from app.database.idempotency import IdempotencyRepository, KeyTaken
from app.database.ids import SESSION_ID_PATTERN, new_session_id
from app.database.records import Asked, IdempotencyRecord, RevisionRecord, SessionRecord
from app.database.sessions import SessionRepository

__all__ = [
    "SESSION_ID_PATTERN",
    "Asked",
    "Database",
    "IdempotencyRecord",
    "IdempotencyRepository",
    "KeyTaken",
    "RevisionRecord",
    "SessionRecord",
    "SessionRepository",
    "new_session_id",
]
