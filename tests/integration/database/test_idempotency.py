from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event

import pytest
from sqlalchemy.exc import IntegrityError

from app.database import IdempotencyRepository, KeyTaken, SessionRepository


def create(database, session, answer):
    """Stores a session and the answer to its request in one transaction."""
    with database.transaction() as connection:
        SessionRepository(connection).add(session, b"first")
        IdempotencyRepository(connection).add(answer)


def get(database, owner="ann", key="key-1"):
    with database.reading() as connection:
        return IdempotencyRepository(connection).get(owner, key)


def find_session(database, session_id, owner="ann"):
    with database.reading() as connection:
        return SessionRepository(connection).get(owner, session_id)


def test_an_answer_comes_back_as_it_was_stored(database, make_session, make_answer):
    answer = make_answer(body=bytes(range(256)))
    create(database, make_session(), answer)
    assert get(database) == answer


def test_keys_are_each_owners_own(database, make_session, make_answer):
    create(database, make_session(1), make_answer())
    assert get(database, owner="bob") is None
    other = make_answer(owner="bob", session_id=make_session(2).id, request_sha256="4b" * 32)
    create(database, make_session(2, owner="bob"), other)
    assert get(database) == make_answer()
    assert get(database, owner="bob") == other


def test_a_key_that_is_taken_undoes_the_whole_transaction(database, make_session, make_answer):
    create(database, make_session(1), make_answer())
    with pytest.raises(KeyTaken):
        create(database, make_session(2), make_answer(session_id=make_session(2).id))
    assert find_session(database, make_session(2).id) is None
    assert get(database) == make_answer()


@pytest.mark.parametrize("first_commits", [True, False])
def test_of_two_that_overlap_the_second_waits_for_the_first_ones_end(
    database, make_session, make_answer, first_commits
):
    stored, release = Event(), Event()

    def first():
        with database.transaction() as connection:
            SessionRepository(connection).add(make_session(1), b"first")
            IdempotencyRepository(connection).add(make_answer())
            stored.set()
            assert release.wait(10)
            if not first_commits:
                connection.rollback()

    second = make_answer(session_id=make_session(2).id)
    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(first)
        assert stored.wait(10)
        two = threads.submit(create, database, make_session(2), second)
        with pytest.raises(TimeoutError):
            two.result(timeout=0.2)
        release.set()
        one.result(10)
        if first_commits:
            with pytest.raises(KeyTaken):
                two.result(10)
        else:
            two.result(10)
    assert get(database) == (make_answer() if first_commits else second)
    assert (find_session(database, make_session(2).id) is None) == first_commits


def test_an_answer_without_its_session_is_a_fault_and_no_race(database, make_answer):
    with pytest.raises(IntegrityError), database.transaction() as connection:
        IdempotencyRepository(connection).add(make_answer())


def test_an_answer_goes_with_its_session(database, make_session, make_answer):
    create(database, make_session(), make_answer())
    with database.transaction() as connection:
        assert SessionRepository(connection).delete("ann", make_session().id)
    assert get(database) is None


def test_only_answers_from_before_the_moment_are_forgotten(
    database, make_session, make_answer, now
):
    create(database, make_session(), make_answer())
    with database.transaction() as connection:
        keys = IdempotencyRepository(connection)
        keys.add(make_answer(key="old", created_at=now - timedelta(microseconds=1)))
        assert keys.erase_before(now) == 1
    assert get(database, key="old") is None
    assert get(database) == make_answer()
    assert find_session(database, make_session().id) == make_session()
