import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.dialects import postgresql, sqlite

from app.database.tables import JsonText, UtcDateTime

DIALECTS = [sqlite.dialect(), postgresql.dialect()]


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_moment_is_stored_in_utc(dialect):
    paris = datetime(2026, 7, 1, 14, 30, tzinfo=timezone(timedelta(hours=2)))
    stored = UtcDateTime().process_bind_param(paris, dialect)
    assert (stored.hour, stored.utcoffset()) == (12, timedelta(0))


@pytest.mark.parametrize(
    "stored",
    [
        datetime(2026, 7, 1, 12, 30),  # as SQLite gives it
        datetime(2026, 7, 1, 14, 30, tzinfo=timezone(timedelta(hours=2))),
    ],
    ids=["without a zone", "in the server's zone"],
)
def test_a_moment_is_read_in_utc_whatever_the_driver_gives(stored):
    read = UtcDateTime().process_result_value(stored, DIALECTS[0])
    assert (read, read.tzinfo) == (datetime(2026, 7, 1, 12, 30, tzinfo=UTC), UTC)


def test_a_datetime_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="time zone"):
        UtcDateTime().process_bind_param(datetime(2026, 7, 1), DIALECTS[0])


def test_json_is_stored_as_ascii_without_control_characters():
    value = {"a\0b": ["\ud800", "日本", 0.1, None, 2**70]}
    stored = JsonText().process_bind_param(value, DIALECTS[0])
    assert stored.isascii()
    assert stored.isprintable()
    assert json.loads(stored) == value
