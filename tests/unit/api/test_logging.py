import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging
import structlog
from app.api.logging import configure

configure({format!r})
with structlog.contextvars.bound_contextvars(request_id="abc"):
    structlog.get_logger("test").info("done", route="/é", status=200)
logging.getLogger("library").warning("careful: %s", "hot")
logging.getLogger("library").info("chatter")
structlog.get_logger("test").debug("detail")
def fail(kept):
    raise ValueError("wrong")
try:
    fail("call" + "er's input")
except ValueError:
    structlog.get_logger("test").exception("failed")
    logging.getLogger("library").exception("failed as well")
"""


def lines(log_format: str) -> list[str]:
    program = PROGRAM.format(format=log_format)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_every_line_is_one_json_object_whoever_wrote_it():
    ours, theirs, failed, failed_too = map(json.loads, lines("json"))
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "done",
        "level": "info",
        "request_id": "abc",
        "route": "/é",
        "status": 200,
    }
    assert (theirs["event"], theirs["level"]) == ("careful: hot", "warning")
    for line in (failed, failed_too):
        assert line["level"] == "error"
        assert "ValueError: wrong" in line["exception"]


def test_the_console_format_is_for_people():
    first, *_ = lines("console")
    assert "done" in first
    assert not first.startswith("{")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_traceback_shows_what_variables_held(log_format):
    told = "\n".join(lines(log_format))
    assert "ValueError: wrong" in told
    assert told.count("caller") == 0
