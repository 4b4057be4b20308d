import pytest

from app.database import Database
from app.errors import DatabaseUnavailable


def test_a_database_file_that_was_deleted_is_noticed_before_the_next_write(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'innerloop.db'}")
    try:
        database.migrate()
        database.ping()
        for file in tmp_path.iterdir():
            file.unlink()
        with pytest.raises(DatabaseUnavailable, match="gone"):
            database.ping()
        with pytest.raises(DatabaseUnavailable, match="gone"), database.transaction():
            pytest.fail("it began to write")
    finally:
        database.close()
