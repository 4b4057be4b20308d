"""Answers kept for requests that may come again."""

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.exc import IntegrityError

from app.database.records import IdempotencyRecord
from app.database.tables import idempotency_keys


class KeyTaken(Exception):
    """Another request with this owner and key was first: read its answer in a new transaction."""


class IdempotencyRepository:
    """The idempotency keys, on a connection of `Database`; what writes needs a transaction."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def get(self, owner: str, key: str) -> IdempotencyRecord | None:
        """Find the answer kept for an owner's key."""
        query = select(idempotency_keys).where(
            idempotency_keys.c.owner == owner, idempotency_keys.c.key == key
        )
        row = self._connection.execute(query).one_or_none()
        return None if row is None else IdempotencyRecord(**row._mapping)

    def add(self, record: IdempotencyRecord) -> None:
        """Keep an answer. Its session must be stored already; deleting that deletes the answer too.

        Where another transaction is about to store the same key, this waits for its end.

        Raises:
            KeyTaken: the owner's key is stored already. Let it leave the transaction, to undo what
                came before.
        """
        try:
            with self._connection.begin_nested():
                self._connection.execute(insert(idempotency_keys).values(**vars(record)))
        except IntegrityError:
            if self.get(record.owner, record.key) is None:
                raise
            raise KeyTaken(record.key) from None

    def erase_before(self, moment: datetime) -> int:
        """Forget the answers given before `moment`, and return how many."""
        erased = self._connection.execute(
            delete(idempotency_keys).where(idempotency_keys.c.created_at < moment)
        )
        return erased.rowcount
