"""The command `innerloop` on made-up pools; after one iteration it stands still.

`python -m tests.integration.training.slow_job ITERATION MARKER train RECIPE ...`: after that
iteration it makes the file MARKER and sleeps, so that whoever waits can end it there.
"""

import sys
import time
from pathlib import Path

import pytest

from app.cli import main
from app.training.progress import ConsoleReporter
from tests.unit.training.helpers import feed

SLEEP_SECONDS = 600


def stand_still(at: int, marker: Path) -> None:
    iteration = ConsoleReporter.iteration

    def slow(reporter, done, total, loss, accuracy):
        iteration(reporter, done, total, loss, accuracy)
        if done == at:
            marker.touch()
            time.sleep(SLEEP_SECONDS)

    ConsoleReporter.iteration = slow


if __name__ == "__main__":
    at, marker, *sys.argv[1:] = sys.argv[1:]
    feed(pytest.MonkeyPatch())
    stand_still(int(at), Path(marker))
    main()
