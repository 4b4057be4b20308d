import re
import time

from app.database import SESSION_ID_PATTERN, new_session_id


def test_an_id_matches_the_published_pattern():
    assert re.fullmatch(SESSION_ID_PATTERN, new_session_id())


def test_an_id_begins_with_its_unix_microseconds(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_767_225_600_123_999_999)
    assert int(new_session_id()[4:18], 16) == 1_767_225_600_123_999


def test_ids_order_as_text_by_the_time_of_their_making(monkeypatch):
    moments = [0, 9, 10, 15, 16, 255, 256, 1_767_225_600_000, 1_767_225_600_001, 2**56 - 1]
    ids = []
    for moment in moments:
        monkeypatch.setattr(time, "time_ns", lambda moment=moment: moment * 1_000)
        ids.append(new_session_id())
    assert sorted(ids) == ids


def test_ids_of_one_microsecond_differ(monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert len({new_session_id() for _ in range(1000)}) == 1000
