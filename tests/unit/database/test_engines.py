from pathlib import Path

import pytest

from app.database.engines import make_engines


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_usual_spelling_of_postgresql_uses_psycopg(scheme):
    engine = make_engines(f"{scheme}://user:secret@host:5433/name", pool_size=1).writing
    assert engine.driver == "psycopg"
    _, arguments = engine.dialect.create_connect_args(engine.url)
    assert (
        arguments.items()
        >= {
            "host": "host",
            "port": 5433,
            "dbname": "name",
            "user": "user",
            "password": "secret",
        }.items()
    )


def test_a_connection_attempt_gives_up_after_a_time_that_the_url_can_change():
    url = "postgresql://host/name"
    default = make_engines(url, pool_size=1).writing.url
    assert default.query["connect_timeout"] == "5"
    changed = make_engines(f"{url}?connect_timeout=30&sslmode=require", pool_size=1).writing.url
    assert changed.query["connect_timeout"] == "30"
    assert changed.query["sslmode"] == "require"


def test_a_sqlite_url_names_its_file(tmp_path):
    url = f"sqlite:///{tmp_path}/deep/innerloop.db"
    assert make_engines(url, pool_size=1).file == tmp_path / "deep" / "innerloop.db"
    assert make_engines("sqlite:///innerloop.db", pool_size=1).file == Path.cwd() / "innerloop.db"


def test_building_the_engines_touches_no_disk(tmp_path):
    make_engines(f"sqlite:///{tmp_path}/deep/innerloop.db", pool_size=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:name?mode=memory&uri=true"]
)
def test_a_sqlite_database_that_threads_cannot_share_is_refused(url):
    with pytest.raises(ValueError, match="sqlite:///path"):
        make_engines(url, pool_size=1)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no url; secret",
        "mysql://user:secret@host/name",
        "postgresql+asyncpg://user:secret@host/name",
        "postgresql://user:secret@host:port/name",
    ],
)
def test_any_other_url_is_refused_without_giving_the_password_away(url):
    with pytest.raises(ValueError, match="sqlite") as refusal:
        make_engines(url, pool_size=1)
    assert "secret" not in str(refusal.value)
