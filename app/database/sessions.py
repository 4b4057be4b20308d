"""Sessions and their revisions."""

import re
from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import (
    Connection,
    FromClause,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    insert,
    or_,
    select,
    update,
)

from app.database.ids import SESSION_ID_PATTERN
from app.database.records import Asked, RevisionRecord, SessionRecord
from app.database.tables import revisions, sessions

# PostgreSQL takes no NUL, and neither database takes lone surrogates.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


class SessionRepository:
    """The sessions, on a connection of `Database`; what writes needs a transaction."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def add(self, record: SessionRecord, examples: bytes) -> None:
        """Store a new session with the examples of its first revision, encoded."""
        self._connection.execute(
            insert(sessions).values(
                id=record.id,
                owner=record.owner,
                model=record.model,
                model_version=record.model_version,
                theta_sha256=record.theta_sha256,
                task=record.task,
                revision=record.revision,
                steps=record.steps,
                created_at=record.created_at,
                expires_at=record.expires_at,
                metadata=record.metadata,
            )
        )
        first = RevisionRecord(
            labels=record.labels,
            shots=record.shots,
            support_loss=record.support_loss,
            support_sha256=record.support_sha256,
            examples=examples,
            created_at=record.created_at,
        )
        self._add_revision(record.id, record.revision, first)

    def get(self, owner: str, session_id: str) -> SessionRecord | None:
        """Find a session, expired or not.

        Returns:
            None where there is no such session, or it is another owner's.
        """
        asked = Asked(owner, session_id)
        return self.get_all([asked]).get(asked)

    def get_all(self, asked: Iterable[Asked]) -> dict[Asked, SessionRecord]:
        """Find many sessions, expired or not, by one statement.

        Those that are not there, or another owner's, are left out.
        """
        wanted = {each for each in asked if re.fullmatch(SESSION_ID_PATTERN, each.session_id)}
        if not wanted:
            return {}
        rows = self._connection.execute(
            _SOME,
            {
                "ids": list({each.session_id for each in wanted}),
                "owners": list({each.owner for each in wanted}),
            },
        )
        of = {Asked(row.owner, row.id): row for row in rows}  # of a pair not asked for, perhaps
        return {each: _record(of[each]) for each in wanted if each in of}

    def page(
        self, owner: str, limit: int, after: str | None, model: str | None, now: datetime
    ) -> tuple[list[SessionRecord], bool]:
        """List an owner's sessions that have not expired, newest first.

        `after` is the id of the last session of the page before; it need not exist any more. Only
        sessions of `model` are listed, unless it is None.

        Returns:
            At most `limit` sessions, and whether there are more behind them.
        """
        if not (_storable(after) and _storable(model)):
            return [], False
        query = (
            select(sessions)
            .where(
                sessions.c.owner == owner,
                sessions.c.erased_at.is_(None),  # the indexes hold no other
                or_(sessions.c.expires_at.is_(None), sessions.c.expires_at > now),
            )
            .order_by(sessions.c.id.desc())
            .limit(limit + 1)
        )
        if after is not None:
            query = query.where(sessions.c.id < after)
        if model is not None:
            query = query.where(sessions.c.model == model)
        # The page first: PostgreSQL would look through all revisions to join them by order.
        page = query.subquery()
        rows = self._connection.execute(_at_current_revision(page).order_by(page.c.id.desc())).all()
        return [_record(row) for row in rows[:limit]], len(rows) > limit

    def append_revision(
        self, session_id: str, expected_revision: int, revision: RevisionRecord
    ) -> bool:
        """Store revision `expected_revision` + 1 and make it the current one.

        Returns:
            False, with nothing changed, where the session is not at `expected_revision` any more,
            has been deleted, or its support set has been erased.
        """
        moved = self._connection.execute(
            update(sessions)
            .where(
                sessions.c.id == session_id,
                sessions.c.revision == expected_revision,
                sessions.c.erased_at.is_(None),
            )
            .values(revision=expected_revision + 1)
        )
        if moved.rowcount == 0:
            return False
        self._add_revision(session_id, expected_revision + 1, revision)
        return True

    def support(self, session_id: str) -> list[bytes]:
        """Read the encoded examples of each revision, in order.

        Read the session in the same transaction, so that both are at the same revision.
        """
        query = (
            select(revisions.c.examples)
            .where(revisions.c.session_id == session_id)
            .order_by(revisions.c.revision)
        )
        return list(self._connection.execute(query).scalars())

    def delete(self, owner: str, session_id: str) -> bool:
        """Delete a session with its revisions and the answers kept for its idempotency keys.

        Returns:
            False where there is no such session, or it is another owner's.
        """
        if not _storable(session_id):
            return False
        deleted = self._connection.execute(
            delete(sessions).where(sessions.c.id == session_id, sessions.c.owner == owner)
        )
        return deleted.rowcount == 1

    def erase_expired(self, now: datetime, limit: int) -> int:
        """Drop the support sets of sessions that expired by `now`, oldest first; the sessions stay.

        Returns:
            How many sessions, at most `limit`. Fewer means that none is left, but for those that
            another sweep holds.
        """
        expired = (
            select(sessions.c.id)
            .where(sessions.c.erased_at.is_(None), sessions.c.expires_at <= now)
            .order_by(sessions.c.expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        ids = list(self._connection.execute(expired).scalars())
        self._connection.execute(
            update(revisions).where(revisions.c.session_id.in_(ids)).values(examples=b"")
        )
        self._connection.execute(
            update(sessions).where(sessions.c.id.in_(ids)).values(erased_at=now)
        )
        return len(ids)

    def _add_revision(self, session_id: str, number: int, revision: RevisionRecord) -> None:
        self._connection.execute(
            insert(revisions).values(
                session_id=session_id,
                revision=number,
                labels=revision.labels,
                shots=revision.shots,
                support_loss=revision.support_loss,
                support_sha256=revision.support_sha256,
                created_at=revision.created_at,
                examples=revision.examples,
            )
        )


def _at_current_revision(some: FromClause) -> Select[*tuple[object, ...]]:
    """Sessions joined with what their current revision says, without its examples."""
    return select(
        some,
        revisions.c.labels,
        revisions.c.shots,
        revisions.c.support_loss,
        revisions.c.support_sha256,
    ).join(
        revisions,
        and_(revisions.c.session_id == some.c.id, revisions.c.revision == some.c.revision),
    )


_SOME = _at_current_revision(sessions).where(sessions.c.id.in_(bindparam("ids", expanding=True)))
"""Every request for a session asks this: built once."""


def _record(row: Row[*tuple[object, ...]]) -> SessionRecord:
    fields = dict(row._mapping)
    del fields["erased_at"]
    return SessionRecord(**fields)


def _storable(text: str | None) -> bool:
    """Whether a stored text can equal this at all; asking the databases would be an error."""
    return text is None or _UNSTORABLE.search(text) is None
