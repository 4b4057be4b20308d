from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, timedelta, timezone
from threading import Barrier, Event

import pytest
from sqlalchemy import Engine, event

from app.database import Asked, SessionRepository


def add(database, *records, examples=b"first"):
    with database.transaction() as connection:
        for record in records:
            SessionRepository(connection).add(record, examples)


def get(database, session_id, owner="ann"):
    with database.reading() as connection:
        return SessionRepository(connection).get(owner, session_id)


def support(database, session_id):
    with database.reading() as connection:
        return SessionRepository(connection).support(session_id)


def page(database, now, owner="ann", limit=10, after=None, model=None):
    with database.reading() as connection:
        records, has_more = SessionRepository(connection).page(owner, limit, after, model, now)
    return [int(record.id[4:], 16) for record in records], has_more


def append(database, session_id, expected, revision):
    with database.transaction() as connection:
        return SessionRepository(connection).append_revision(session_id, expected, revision)


@contextmanager
def statements():
    """Collects the statements that reach any database, but for those that begin a transaction."""
    seen = []

    def note(connection, cursor, statement, parameters, context, many):
        if not statement.startswith(("PRAGMA", "BEGIN")):
            seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


class TestOneSession:
    def test_it_comes_back_as_it_was_stored(self, database, make_session, now):
        record = make_session(
            expires_at=now + timedelta(days=1, microseconds=7),
            support_loss=[0.1 + 0.2, 1e-300, 5.0],
            metadata={"user": "42", "deep": [None, True, 1.5, {"ключ": "值"}], "big": 2**63},
        )
        add(database, record)
        assert get(database, record.id) == record

    def test_any_label_and_metadata_survive(self, database, make_session):
        labels = ["\0", "a\0b", "\ud800", "🤖", 'quote"\\', "line\nend", " ", "ﷺ" * 200]
        record = make_session(
            labels=labels, shots=dict.fromkeys(labels, 1), metadata={"\0": "\0", "\udfff": "\t"}
        )
        add(database, record)
        assert get(database, record.id) == record

    def test_moments_come_back_in_utc(self, database, make_session, now):
        tokyo = timezone(timedelta(hours=9))
        add(database, make_session(created_at=now.astimezone(tokyo)))
        created_at = get(database, make_session().id).created_at
        assert (created_at, created_at.tzinfo) == (now, UTC)

    def test_another_owner_never_sees_it(self, database, make_session):
        record = make_session()
        add(database, record)
        assert get(database, record.id, owner="bob") is None

    def test_one_that_has_expired_is_still_found(self, database, make_session, now):
        record = make_session(expires_at=now - timedelta(days=400))
        add(database, record)
        assert get(database, record.id) == record

    def test_many_come_by_one_statement_each_to_its_owner(self, database, make_session):
        anns, bobs = make_session(), make_session(2, owner="bob")
        add(database, anns, bobs)
        there = {Asked(record.owner, record.id): record for record in (anns, bobs)}
        others = [
            Asked("bob", anns.id),
            Asked("ann", bobs.id),
            Asked("ann", "ses_none"),
            Asked("ann", "\0"),
        ]
        with statements() as seen, database.single() as connection:
            found = SessionRepository(connection).get_all([*there, *others, *there])
        assert found == there
        assert len(seen) == 1

    @pytest.mark.parametrize("session_id", ["", "ses_", "ses_\0", "\ud800", "%", "' OR ''='"])
    def test_an_id_that_is_none_finds_nothing(self, database, make_session, session_id):
        add(database, make_session())
        assert get(database, session_id) is None
        with database.transaction() as connection:
            assert not SessionRepository(connection).delete("ann", session_id)

    def test_its_examples_are_any_bytes(self, database, make_session):
        examples = bytes(range(256)) * 4096
        add(database, make_session(), examples=examples)
        assert support(database, make_session().id) == [examples]

    def test_one_query_reads_it_and_leaves_the_examples_alone(self, database, make_session):
        add(database, make_session())
        with statements() as seen:
            get(database, make_session().id)
        [(statement, _)] = seen
        assert "examples" not in statement


class TestPages:
    def test_newest_come_first_and_has_more_is_exact(self, database, make_session, now):
        add(database, *(make_session(number) for number in (3, 1, 5, 2, 4)))
        assert page(database, now, limit=4) == ([5, 4, 3, 2], True)
        assert page(database, now, limit=5) == ([5, 4, 3, 2, 1], False)
        assert page(database, now, limit=3, after=make_session(4).id) == ([3, 2, 1], False)
        assert page(database, now, after=make_session(1).id) == ([], False)

    def test_nothing_is_skipped_or_repeated_while_others_come_and_go(
        self, database, make_session, now
    ):
        add(database, *(make_session(number) for number in range(1, 7)))
        first, _ = page(database, now, limit=2)
        last = make_session(first[-1])
        with database.transaction() as connection:
            assert SessionRepository(connection).delete("ann", last.id)
        add(database, make_session(99))
        assert page(database, now, limit=2, after=last.id) == ([4, 3], True)

    def test_another_owners_sessions_are_never_listed(self, database, make_session, now):
        add(database, make_session(1), make_session(2, owner="bob"), make_session(3))
        assert page(database, now) == ([3, 1], False)
        assert page(database, now, owner="bob", after=make_session(3).id) == ([2], False)
        assert page(database, now, owner="an") == ([], False)

    def test_only_the_asked_model_is_listed(self, database, make_session, now):
        add(database, make_session(1), make_session(2, model="digits"), make_session(3))
        assert page(database, now, model="omniglot") == ([3, 1], False)
        assert page(database, now, model="digits", limit=1) == ([2], False)
        assert page(database, now, model="none\0") == ([], False)

    def test_expired_sessions_are_not_listed(self, database, make_session, now):
        add(
            database,
            make_session(1, expires_at=now - timedelta(microseconds=1)),
            make_session(2, expires_at=now),
            make_session(3, expires_at=now + timedelta(microseconds=1)),
            make_session(4),
        )
        assert page(database, now) == ([4, 3], False)

    def test_a_page_shows_the_current_revision(self, database, make_session, make_revision, now):
        add(database, make_session())
        assert append(database, make_session().id, 1, make_revision())
        with database.reading() as connection:
            [record], _ = SessionRepository(connection).page("ann", 10, None, None, now)
        assert record == get(database, make_session().id)
        assert record.labels == make_revision().labels

    @pytest.mark.parametrize(
        ("model", "index"),
        [(None, "ix_sessions_owner_id"), ("omniglot", "ix_sessions_owner_model_id")],
    )
    def test_a_page_is_one_query_served_in_order_by_an_index(
        self, database, make_session, now, model, index
    ):
        add(database, *(make_session(n, owner=f"owner-{n % 100}") for n in range(1000)))
        with statements() as seen:
            numbers, _ = page(database, now, "owner-3", 5, make_session(960).id, model)
        assert numbers == [903, 803, 703, 603, 503]
        [(statement, parameters)] = seen
        assert "examples" not in statement
        with database.transaction() as connection:
            sqlite = connection.dialect.name == "sqlite"
            connection.exec_driver_sql("ANALYZE")
            if not sqlite:  # which would rather sort a table of this size
                connection.exec_driver_sql("SET LOCAL enable_sort = off")
                connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
            rows = connection.exec_driver_sql(explain + statement, parameters).all()
        plan = [str(row[-1]).strip() for row in rows]
        [at] = [number for number, step in enumerate(plan) if index in step]
        assert not any("Merge" in step or "Hash" in step for step in plan), "nor all revisions"
        if sqlite:  # it sorts the page once more, which the index has in order
            assert not any("TEMP B-TREE" in step for step in plan[: at + 1])
            assert [step for step in plan if "TEMP B-TREE" in step] == plan[-1:]
            assert not any("SCAN sessions" in step or "SCAN revisions" in step for step in plan)
        else:
            assert not any("Sort" in step for step in plan)


class TestRevisions:
    def test_an_appended_revision_becomes_the_current_one(
        self, database, make_session, make_revision
    ):
        record, revision = make_session(), make_revision()
        add(database, record)
        assert append(database, record.id, 1, revision)
        assert get(database, record.id) == replace(
            record,
            revision=2,
            labels=revision.labels,
            shots=revision.shots,
            support_loss=revision.support_loss,
            support_sha256=revision.support_sha256,
        )

    def test_the_support_set_is_read_in_the_order_of_revisions(
        self, database, make_session, make_revision
    ):
        add(database, make_session(1), make_session(2))
        blobs = [f"revision {number}".encode() for number in range(2, 13)]
        for number, blob in enumerate(blobs, start=1):
            assert append(database, make_session(1).id, number, make_revision(examples=blob))
        assert support(database, make_session(1).id) == [b"first", *blobs]
        assert support(database, make_session(2).id) == [b"first"]

    @pytest.mark.parametrize("expected", [0, 1, 3])
    def test_one_that_expects_another_revision_changes_nothing(
        self, database, make_session, make_revision, expected
    ):
        add(database, make_session())
        assert append(database, make_session().id, 1, make_revision())
        before = get(database, make_session().id)
        assert not append(database, make_session().id, expected, make_revision(examples=b"late"))
        assert get(database, make_session().id) == before
        assert support(database, make_session().id) == [b"first", b"second"]

    def test_of_two_that_overlap_the_second_waits_and_loses(
        self, database, make_session, make_revision
    ):
        session_id = make_session().id
        add(database, make_session())
        appended, release = Event(), Event()

        def first():
            with database.transaction() as connection:
                repository = SessionRepository(connection)
                won = repository.append_revision(session_id, 1, make_revision(examples=b"A"))
                appended.set()
                assert release.wait(10)
            return won

        with ThreadPoolExecutor(2) as threads:
            one = threads.submit(first)
            assert appended.wait(10)
            two = threads.submit(append, database, session_id, 1, make_revision(examples=b"B"))
            with pytest.raises(TimeoutError):
                two.result(timeout=0.2)
            release.set()
            assert (one.result(10), two.result(10)) == (True, False)
        assert get(database, session_id).revision == 2
        assert support(database, session_id) == [b"first", b"A"]

    def test_of_many_that_race_exactly_one_wins(self, database, make_session, make_revision):
        add(database, make_session())
        barrier = Barrier(6)

        def race(number):
            barrier.wait(10)
            revision = make_revision(examples=f"{number}".encode())
            return append(database, make_session().id, 1, revision)

        with ThreadPoolExecutor(6) as threads:
            won = list(threads.map(race, range(6)))
        assert won.count(True) == 1
        assert support(database, make_session().id) == [b"first", f"{won.index(True)}".encode()]

    def test_nothing_can_be_appended_to_a_session_that_is_gone(
        self, database, make_session, make_revision
    ):
        assert not append(database, make_session().id, 1, make_revision())
        assert support(database, make_session().id) == []


class TestDeletion:
    def test_a_deleted_session_leaves_nothing_behind(self, database, make_session, make_revision):
        add(database, make_session(1), make_session(2))
        append(database, make_session(1).id, 1, make_revision())
        with database.transaction() as connection:
            assert SessionRepository(connection).delete("ann", make_session(1).id)
        assert get(database, make_session(1).id) is None
        assert support(database, make_session(1).id) == []
        assert support(database, make_session(2).id) == [b"first"]

    def test_a_second_deletion_finds_nothing(self, database, make_session):
        add(database, make_session())
        with database.transaction() as connection:
            repository = SessionRepository(connection)
            assert repository.delete("ann", make_session().id)
            assert not repository.delete("ann", make_session().id)

    def test_another_owner_cannot_delete_it(self, database, make_session):
        add(database, make_session())
        with database.transaction() as connection:
            assert not SessionRepository(connection).delete("bob", make_session().id)
        assert get(database, make_session().id) == make_session()


class TestErasure:
    def erase(self, database, now, limit=10):
        with database.transaction() as connection:
            return SessionRepository(connection).erase_expired(now, limit)

    def test_only_the_support_sets_of_expired_sessions_go_and_the_sessions_stay(
        self, database, make_session, make_revision, now
    ):
        expired = make_session(1, expires_at=now)
        living = make_session(2, expires_at=now + timedelta(microseconds=1))
        endless = make_session(3)
        add(database, expired, living, endless)
        append(database, expired.id, 1, make_revision())
        before = get(database, expired.id)
        assert self.erase(database, now) == 1
        assert support(database, expired.id) == [b"", b""]
        assert get(database, expired.id) == before
        assert support(database, living.id) == support(database, endless.id) == [b"first"]

    def test_a_sweep_takes_the_oldest_up_to_its_limit_and_none_twice(
        self, database, make_session, now
    ):
        add(
            database,
            *(make_session(n, expires_at=now - timedelta(hours=n)) for n in range(1, 6)),
        )
        assert self.erase(database, now, limit=2) == 2
        assert [support(database, make_session(n).id) for n in range(1, 6)] == [
            [b"first"],
            [b"first"],
            [b"first"],
            [b""],
            [b""],
        ]
        assert [self.erase(database, now, limit=2) for _ in range(3)] == [2, 1, 0]

    def test_nothing_can_be_appended_to_an_erased_support_set(
        self, database, make_session, make_revision, now
    ):
        add(database, make_session(expires_at=now))
        assert self.erase(database, now) == 1
        assert not append(database, make_session().id, 1, make_revision())
        assert support(database, make_session().id) == [b""]

    def test_two_sweeps_share_the_work(self, postgresql_database, make_session, now):
        add(postgresql_database, *(make_session(n, expires_at=now) for n in range(5)))
        with postgresql_database.transaction() as one, postgresql_database.transaction() as two:
            two.exec_driver_sql("SET LOCAL lock_timeout = '5s'")
            assert SessionRepository(one).erase_expired(now, 2) == 2
            assert SessionRepository(two).erase_expired(now, 10) == 3
