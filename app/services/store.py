"""Sessions in the database, as the use cases need them.

Every method of the store blocks: call it in a worker thread.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from pydantic import TypeAdapter

from app.database import (
    SESSION_ID_PATTERN,
    Asked,
    Database,
    IdempotencyRecord,
    IdempotencyRepository,
    RevisionRecord,
    SessionRecord,
    SessionRepository,
)
from app.engine.requests import ModelKey
from app.errors import (
    IdempotencyConflict,
    InnerloopError,
    InvalidInput,
    Issue,
    ModelNotFound,
    ModelVersionGone,
    NotReady,
    SessionExpired,
    SessionNotFound,
)
from app.registry import Card
from app.registry.card import NAME_PATTERN
from app.services.models import ServedModels
from app.services.support import Examples, chain_digest, decode
from app.services.views import Idempotency, Page, Prediction, SessionView
from app.settings import Settings

SWEEP_BATCH = 100
"""Sessions erased in one transaction: a sweep must not keep the others waiting."""

_ANSWER = TypeAdapter(SessionView)


@dataclass(frozen=True)
class StoredSession:
    """A session that lives, at one revision, with the card of its model version."""

    record: SessionRecord
    card: Card

    @property
    def model_key(self) -> ModelKey:
        """Its model version, to the engine."""
        return ModelKey(self.record.model, self.record.model_version)

    @property
    def phi_key(self) -> str:
        """Where the engine keeps its φ."""
        return phi_key(self.record.id, self.record.support_sha256)


Found = StoredSession | InnerloopError
"""What there is of a session that was asked for, or why there is nothing."""


def phi_key(session_id: str, support_sha256: str) -> str:
    """Name φ by the support set that it comes from.

    The revision's number would not do: of two requests that append at once, the one that loses has
    adapted for the same number too, and its φ must never answer for the winner's.
    """
    return f"{session_id}:{support_sha256}"


def view(record: SessionRecord, predictions: list[Prediction] | None = None) -> SessionView:
    """A session as its owner sees it."""
    return SessionView(
        id=record.id,
        model=record.model,
        model_version=record.model_version,
        theta_sha256=record.theta_sha256,
        task=record.task,
        revision=record.revision,
        labels=record.labels,
        shots=record.shots,
        steps=record.steps,
        support_loss=record.support_loss,
        created_at=record.created_at,
        expires_at=record.expires_at,
        metadata=record.metadata,
        predictions=predictions,
    )


class SessionStore:
    """Each method is one transaction, or the one statement that it needs."""

    def __init__(
        self,
        database: Database,
        models: ServedModels,
        settings: Settings,
        now: Callable[[], datetime],
    ):
        self._database = database
        self._models = models
        self._idempotency = timedelta(seconds=settings.idempotency_seconds)
        self._now = now

    def find(self, owner: str, session_id: str) -> StoredSession:
        """Read a session at its current revision.

        Raises:
            SessionNotFound: this owner has no such session.
            SessionExpired: its time is over.
            ModelVersionGone: the θ that it is pinned to is no longer served.
            NotReady: its model version came after the engine last read the registry.
        """
        (found,) = self.find_all([Asked(owner, session_id)])
        if isinstance(found, InnerloopError):
            raise found
        return found

    def find_all(self, asked: Sequence[Asked]) -> list[Found]:
        """Read many sessions by one statement: for each what `find` returns or raises."""
        with self._database.single() as connection:
            records = SessionRepository(connection).get_all(asked)
        found: list[Found] = []
        for each in asked:
            try:
                found.append(self._living(records.get(each), each.session_id))
            except InnerloopError as error:
                found.append(error.with_traceback(None))  # which would hold all that was found
        return found

    def stands(self, stored: StoredSession) -> bool:
        """Whether a session is still what it was when it was found."""
        try:
            return self.find(stored.record.owner, stored.record.id).phi_key == stored.phi_key
        except (SessionNotFound, SessionExpired, ModelVersionGone, NotReady):
            return False

    def support(self, stored: StoredSession) -> list[Examples]:
        """Read the support set of a session, revision by revision, as it was when it was found.

        Raises:
            SessionNotFound, SessionExpired, ModelVersionGone: it has come to its end since.
            NotReady: its version was dropped since, and is on disk again.
            InnerloopError: the stored bytes are not what was written.
        """
        record = stored.record
        with self._database.reading() as connection:
            sessions = SessionRepository(connection)
            self._living(sessions.get(record.owner, record.id), record.id)
            blobs = sessions.support(record.id)[: record.revision]
        if chain_digest(blobs) != record.support_sha256:
            raise InnerloopError(
                f"the stored support set of session {record.id} does not have the SHA-256 that "
                "was noted with it; restore the database from a backup"
            )
        return [decode(blob) for blob in blobs]

    def page(self, owner: str, limit: int, after: str | None, model: str | None) -> Page:
        """Read one page of an owner's living sessions.

        Raises:
            InvalidInput: `after` cannot be a session's id.
        """
        if after is not None and not re.fullmatch(SESSION_ID_PATTERN, after):
            raise InvalidInput([Issue("/after", "is not the id of a session")])
        if model is not None and not re.fullmatch(NAME_PATTERN, model):
            return Page([], has_more=False)
        with self._database.single() as connection:
            records, has_more = SessionRepository(connection).page(
                owner, limit, after, model, self._now()
            )
        return Page([view(record) for record in records], has_more)

    def add(
        self, record: SessionRecord, examples: bytes, answer: SessionView, once: Idempotency | None
    ) -> None:
        """Store a new session, and the answer for its key.

        Raises:
            KeyTaken: another request with the same key was first; nothing is stored.
        """
        with self._database.transaction() as connection:
            SessionRepository(connection).add(record, examples)
            if once is not None:
                IdempotencyRepository(connection).add(self._answered(record, answer, once))

    def append(
        self, record: SessionRecord, examples: bytes, answer: SessionView, once: Idempotency | None
    ) -> bool:
        """Store a session's next revision, and the answer for its key.

        Args:
            record: the session at that revision.
            examples: the examples that the revision adds, encoded.
            answer: what its owner is told.
            once: the key to keep the answer for.

        Returns:
            False where the session is not at the revision before; nothing is stored.

        Raises:
            KeyTaken: another request with the same key was first; nothing is stored.
        """
        revision = RevisionRecord(
            labels=record.labels,
            shots=record.shots,
            support_loss=record.support_loss,
            support_sha256=record.support_sha256,
            examples=examples,
            created_at=self._now(),
        )
        with self._database.transaction() as connection:
            stands = SessionRepository(connection).append_revision(
                record.id, record.revision - 1, revision
            )
            if stands and once is not None:
                IdempotencyRepository(connection).add(self._answered(record, answer, once))
        return stands

    def delete(self, owner: str, session_id: str) -> SessionRecord:
        """Delete a session, expired or not, and return what it was.

        Raises:
            SessionNotFound: this owner has no such session.
        """
        with self._database.transaction() as connection:
            sessions = SessionRepository(connection)
            record = sessions.get(owner, session_id)
            if record is None or not sessions.delete(owner, session_id):
                raise _not_found(session_id)
        return record

    def answer(self, owner: str, once: Idempotency) -> SessionView | None:
        """Find the answer that a key has had, None where it is new or its time is over.

        Raises:
            IdempotencyConflict: the key belongs to another request.
        """
        forgotten = self._now() - self._idempotency
        with self._database.single() as connection:
            record = IdempotencyRepository(connection).get(owner, once.key)
        if record is None:
            return None
        if record.created_at < forgotten:
            with self._database.transaction() as connection:  # the next sweep may be far away
                IdempotencyRepository(connection).erase_before(forgotten)
            return None
        if record.request_sha256 != once.request_sha256:
            raise IdempotencyConflict(
                "this Idempotency-Key was used before, with another request; take a new key"
            )
        return _ANSWER.validate_json(record.body)

    def sweep(self) -> None:
        """Erase the support sets of expired sessions and the answers for old keys."""
        now = self._now()
        erased = SWEEP_BATCH
        while erased == SWEEP_BATCH:
            with self._database.transaction() as connection:
                erased = SessionRepository(connection).erase_expired(now, SWEEP_BATCH)
        with self._database.transaction() as connection:
            IdempotencyRepository(connection).erase_before(now - self._idempotency)

    def _living(self, record: SessionRecord | None, session_id: str) -> StoredSession:
        if record is None:
            raise _not_found(session_id)
        if record.expires_at is not None and record.expires_at <= self._now():
            raise SessionExpired(f"session {record.id} has expired; create a new one")
        try:
            card = self._models.card(record.model, record.model_version)
        except ModelNotFound:
            card = None
        if card is None or card.theta_sha256 != record.theta_sha256:
            raise ModelVersionGone(
                f"session {record.id} belongs to {record.model} version {record.model_version}, "
                "which is no longer served; create a new one"
            )
        return StoredSession(record, card)

    def _answered(
        self, record: SessionRecord, answer: SessionView, once: Idempotency
    ) -> IdempotencyRecord:
        return IdempotencyRecord(
            owner=record.owner,
            key=once.key,
            request_sha256=once.request_sha256,
            body=_ANSWER.dump_json(answer),
            session_id=record.id,
            created_at=self._now(),
        )


def _not_found(session_id: str) -> SessionNotFound:
    return SessionNotFound(f"there is no session {session_id!r}")
