"""What the repositories take and return: plain values, no SQLAlchemy object.

Times are aware datetimes in UTC.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple


class Asked(NamedTuple):
    """A session by its id, as an owner asks for it."""

    owner: str
    session_id: str


@dataclass(frozen=True)
class SessionRecord:
    """A session at its current revision.

    `labels`, `shots`, `support_loss` and `support_sha256` belong to the current revision and
    describe the whole support set, all revisions together. `labels` stand in the order of their
    first appearance.
    """

    id: str
    owner: str
    model: str
    model_version: int
    theta_sha256: str
    task: str
    revision: int
    labels: list[str]
    shots: dict[str, int]
    steps: int
    support_loss: list[float]
    support_sha256: str
    created_at: datetime
    expires_at: datetime | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class RevisionRecord:
    """What a session's next revision holds.

    `examples` are only those that this revision adds, encoded; everything else describes the whole
    support set up to and including this revision, as in `SessionRecord`.
    """

    labels: list[str]
    shots: dict[str, int]
    support_loss: list[float]
    support_sha256: str
    examples: bytes
    created_at: datetime


@dataclass(frozen=True)
class IdempotencyRecord:
    """A request that was answered: what it asked (by digest), and the answer to give again."""

    owner: str
    key: str
    request_sha256: str
    body: bytes
    session_id: str
    created_at: datetime
