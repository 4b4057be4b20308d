"""The use cases of a session.

Each one reads and closes the transaction, asks the engine, and only then writes and commits, so
that no transaction waits for the device. An error anywhere leaves the database as it was.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from weakref import WeakValueDictionary

from app.database import Database, KeyTaken, SessionRecord, new_session_id
from app.engine.requests import Adapted, Answers, Floats, ModelKey, PhiMissing, SupportSet
from app.errors import Contention, InvalidInput
from app.registry import Card
from app.services.answers import check_adapted, check_answers, predictions
from app.services.checks import (
    Draft,
    check_addition,
    check_evaluation,
    check_growth,
    check_new,
    check_query,
)
from app.services.evaluation import evaluate
from app.services.lookups import Lookups
from app.services.models import ServedModels
from app.services.ports import Engine
from app.services.store import SessionStore, StoredSession, phi_key, view
from app.services.support import Growth, Inputs, grow, support_set
from app.services.views import (
    Evaluation,
    Example,
    Idempotency,
    ImageInput,
    Input,
    NewSession,
    Page,
    Predictions,
    SessionView,
    Weights,
)
from app.services.waiting import wait_for
from app.services.weights import weights_file
from app.settings import Settings

APPEND_TRIES = 5
LITTLE_QUERIES, LITTLE_BYTES, LITTLE_PIXELS = 4, 4096, 128 * 128
"""So many pictures, of so many bytes and pixels each, are read by the thread that found their
session: it takes no longer than to find it."""

T = TypeVar("T")


def utc_now() -> datetime:
    """The time of the system's clock, in UTC."""
    return datetime.now(UTC)


class SessionService:
    """Personal models as stored sessions.

    Every method raises a class of `app.errors`. Methods that take a session's id raise
    SessionNotFound where this owner has none of that id, and, but for `delete`, SessionExpired or
    ModelVersionGone where it has come to its end. Those that need the device raise Unavailable.

    Args:
        database: migrated already.
        engine: started already.
        models: what the engine holds; a session is pinned to the version that it was created with.
        settings: the limits and times.
        now: the clock; aware, in UTC.
    """

    def __init__(
        self,
        database: Database,
        engine: Engine,
        models: ServedModels,
        settings: Settings,
        now: Callable[[], datetime] = utc_now,
    ):
        self._models = models
        self._store = SessionStore(database, models, settings, now)
        self._lookups = Lookups(self._store.find_all)
        self._engine = engine
        self._settings = settings
        pixels = min(LITTLE_PIXELS, settings.max_image_pixels)
        self._for_little = settings.model_copy(update={"max_image_pixels": pixels})
        self._now = now
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def create(
        self,
        owner: str,
        new: NewSession,
        top: int | None = None,
        idempotency: Idempotency | None = None,
    ) -> SessionView:
        """Adapt a model to a support set, answer the query, and store the session.

        Args:
            owner: whose session it is.
            new: what it is made of.
            top: how many probabilities a prediction shows, all of them where None.
            idempotency: where the same request came before, its answer is given again.

        Returns:
            The session at revision 1, with predictions where there was a query.

        Raises:
            ModelNotFound: no model has that name.
            InvalidInput: with every rule that is broken.
            IdempotencyConflict: the key came before with another request.
        """
        return await self._once(
            owner, idempotency, lambda: self._create(owner, new, top, idempotency)
        )

    async def get(self, owner: str, session_id: str) -> SessionView:
        """Read a session."""
        stored = await self._lookups.find(owner, session_id)
        return view(stored.record)

    async def list(self, owner: str, limit: int, after: str | None, model: str | None) -> Page:
        """Read a page of at most `limit` sessions, newest first.

        Sessions that have expired are left out.

        Args:
            owner: whose sessions.
            limit: most sessions of the page.
            after: the id of the last session of the page before.
            model: only the sessions of this model.
        """
        return await asyncio.to_thread(self._store.page, owner, limit, after, model)

    async def delete(self, owner: str, session_id: str) -> None:
        """Delete a session with everything that is stored of it."""
        record = await asyncio.to_thread(self._store.delete, owner, session_id)
        self._engine.forget(phi_key(record.id, record.support_sha256))

    async def predict(
        self, owner: str, session_id: str, query: Sequence[Input], top: int | None = None
    ) -> Predictions:
        """Answer a query with the session's φ, adapted again where it is not in the cache.

        Raises:
            InvalidInput: with every rule that is broken.
        """

        def if_little(stored: StoredSession) -> tuple[StoredSession, Floats | None]:
            try:
                return stored, check_query(query, stored.card, self._for_little)
            except InvalidInput:  # it may have too many pixels for this thread only
                return stored, None

        inputs = None
        if _may_be_little(query):
            stored, inputs = await self._lookups.find_and(owner, session_id, if_little)
        else:
            stored = await self._lookups.find(owner, session_id)
        if inputs is None:
            inputs = await asyncio.to_thread(check_query, query, stored.card, self._settings)
        answers = await self._answers(stored, inputs, "/query/{}")
        return Predictions(
            session=stored.record.id,
            revision=stored.record.revision,
            data=predictions(stored.record.labels, answers, top),
        )

    async def append(
        self,
        owner: str,
        session_id: str,
        support: Sequence[Example],
        idempotency: Idempotency | None = None,
    ) -> SessionView:
        """Add examples, new labels too, and adapt again from θ on all of the session's examples.

        Returns:
            The session at its next revision.

        Raises:
            InvalidInput: with every rule that is broken.
            IdempotencyConflict: the key came before with another request.
            Contention: others kept appending to the same session.
        """
        # One after the other here; what another replica appends meanwhile still takes a new try.
        async with self._turns.setdefault(session_id, asyncio.Lock()):
            return await self._once(
                owner, idempotency, lambda: self._append(owner, session_id, support, idempotency)
            )

    async def evaluate(
        self, owner: str, session_id: str, examples: Sequence[Example]
    ) -> Evaluation:
        """Measure the session on labelled examples, which it does not learn.

        Raises:
            InvalidInput: with every rule that is broken.
        """
        stored = await self._lookups.find(owner, session_id)
        inputs, true = await asyncio.to_thread(
            check_evaluation, examples, stored.record.labels, stored.card, self._settings
        )
        answers = await self._answers(stored, inputs, "/examples/{}/input")
        return evaluate(stored.record.labels, true, answers.probabilities)

    async def weights(self, owner: str, session_id: str) -> Weights:
        """Give φ away, as a safetensors file that says how to run it."""
        stored = await self._lookups.find(owner, session_id)
        try:
            phi = await self._wait(self._engine.weights(stored.model_key, stored.phi_key, owner))
        except PhiMissing:
            adapted = await self._adapt_again(stored, None, export=True)
            assert adapted.weights is not None  # for they were asked for
            phi = adapted.weights
        return Weights(await asyncio.to_thread(weights_file, phi, stored.record, stored.card))

    def close(self) -> None:
        """Let go of the threads that look for sessions; nothing more can be asked."""
        self._lookups.close()

    async def sweep(self) -> None:
        """Erase the support sets of expired sessions, and the answers for old idempotency keys."""
        await asyncio.to_thread(self._store.sweep)

    async def _once(
        self,
        owner: str,
        idempotency: Idempotency | None,
        work: Callable[[], Awaitable[SessionView]],
    ) -> SessionView:
        """Work, unless the same request has its answer already."""
        if idempotency is None:
            return await work()
        answer = await asyncio.to_thread(self._store.answer, owner, idempotency)
        if answer is not None:
            return answer
        try:
            return await work()
        except KeyTaken:
            answer = await asyncio.to_thread(self._store.answer, owner, idempotency)
        if answer is None:
            raise Contention("the session of this Idempotency-Key was just deleted; try again")
        return answer

    async def _create(
        self, owner: str, new: NewSession, top: int | None, idempotency: Idempotency | None
    ) -> SessionView:
        card, draft, growth = await asyncio.to_thread(self._read_new, new)
        model = ModelKey(card.name, card.version)
        session_id, created_at = new_session_id(), self._now()  # together: both order sessions
        key = phi_key(session_id, growth.sha256)
        with self._forgetting(key):
            adapted = await self._adapt(model, key, growth.support, draft.steps, draft.query, owner)
            data = None
            if adapted.answers is not None:
                check_answers(adapted.answers, "/query/{}")
                data = predictions(growth.labels, adapted.answers, top)
            ttl = new.ttl_seconds
            record = SessionRecord(
                id=session_id,
                owner=owner,
                model=card.name,
                model_version=card.version,
                theta_sha256=card.theta_sha256,
                task=card.task,
                revision=1,
                labels=growth.labels,
                shots=growth.shots,
                steps=draft.steps,
                support_loss=list(adapted.support_loss),
                support_sha256=growth.sha256,
                created_at=created_at,
                expires_at=None if ttl is None else created_at + timedelta(seconds=ttl),
                metadata=new.metadata,
            )
            answer = view(record, data)
            await asyncio.to_thread(self._store.add, record, growth.blob, answer, idempotency)
        return answer

    async def _append(
        self,
        owner: str,
        session_id: str,
        support: Sequence[Example],
        idempotency: Idempotency | None,
    ) -> SessionView:
        found = await self._lookups.find(owner, session_id)
        inputs = await asyncio.to_thread(check_addition, support, found.card, self._settings)
        labels = [example.label for example in support]
        for _ in range(APPEND_TRIES):
            stored, growth = await asyncio.to_thread(
                self._read_growth, owner, session_id, labels, inputs
            )
            before, key = stored.record, phi_key(session_id, growth.sha256)
            with self._forgetting(key):
                adapted = await self._adapt(
                    stored.model_key, key, growth.support, before.steps, None, owner
                )
                record = replace(
                    before,
                    revision=before.revision + 1,
                    labels=growth.labels,
                    shots=growth.shots,
                    support_loss=list(adapted.support_loss),
                    support_sha256=growth.sha256,
                )
                answer = view(record)
                stands = await asyncio.to_thread(
                    self._store.append, record, growth.blob, answer, idempotency
                )
            self._engine.forget(stored.phi_key if stands else key)
            if stands:
                return answer
            if idempotency is not None:  # this same request, sent twice, may have been the faster
                given = await asyncio.to_thread(self._store.answer, owner, idempotency)
                if given is not None:
                    return given
        raise Contention("others keep adding to this session; try again")

    def _read_new(self, new: NewSession) -> tuple[Card, Draft, Growth]:
        name = self._settings.default_model if new.model is None else new.model
        card = self._models.newest(name)
        draft = check_new(new, card, self._settings)
        labels = [example.label for example in new.support]
        return card, draft, grow([], [], "", draft.support, labels)

    def _read_support(self, stored: StoredSession) -> SupportSet:
        return support_set(self._store.support(stored), len(stored.record.labels))

    def _read_growth(
        self, owner: str, session_id: str, labels: Sequence[str], inputs: Inputs
    ) -> tuple[StoredSession, Growth]:
        stored = self._store.find(owner, session_id)
        record = stored.record
        parts = self._store.support(stored)
        growth = grow(record.labels, parts, record.support_sha256, inputs, labels)
        check_growth(growth.support.ways, len(growth.support.labels), stored.card, self._settings)
        return stored, growth

    async def _adapt(
        self,
        model: ModelKey,
        key: str,
        support: SupportSet,
        steps: int,
        query: Floats | None,
        owner: str,
        *,
        export: bool = False,
    ) -> Adapted:
        adapted = await self._wait(
            self._engine.adapt(model, key, support, steps, query, owner, export=export)
        )
        check_adapted(adapted)
        return adapted

    async def _answers(self, stored: StoredSession, inputs: Floats, pointer: str) -> Answers:
        """Answers to inputs (Q, *input_shape)."""
        try:
            answers = await self._wait(
                self._engine.predict(stored.model_key, stored.phi_key, inputs, stored.record.owner)
            )
        except PhiMissing:
            adapted = await self._adapt_again(stored, inputs)
            assert adapted.answers is not None  # for there was a query
            answers = adapted.answers
        check_answers(answers, pointer)
        return answers

    async def _adapt_again(
        self, stored: StoredSession, query: Floats | None, *, export: bool = False
    ) -> Adapted:
        """Make φ anew from the stored support set: the cache may lose it at any time."""
        support = await asyncio.to_thread(self._read_support, stored)
        adapted = await self._adapt(
            stored.model_key,
            stored.phi_key,
            support,
            stored.record.steps,
            query,
            stored.record.owner,
            export=export,
        )
        if not await asyncio.to_thread(self._store.stands, stored):  # who changed it forgot before
            self._engine.forget(stored.phi_key)
        return adapted

    async def _wait(self, future: Future[T]) -> T:
        return await wait_for(future, self._settings.deadline_seconds)

    @contextmanager
    def _forgetting(self, key: str) -> Iterator[None]:
        """Leave no φ of what was not stored, whatever goes wrong."""
        try:
            yield
        except BaseException:
            self._engine.forget(key)
            raise


def _may_be_little(query: Sequence[Input]) -> bool:
    return len(query) <= LITTLE_QUERIES and all(
        isinstance(each, ImageInput) and len(each.data) <= LITTLE_BYTES for each in query
    )
