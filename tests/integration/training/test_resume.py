"""A run in a process of its own that is killed or interrupted, and then gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.unit.training.helpers import feed, recipe, run, write_recipe

ROOT = Path(__file__).parents[3]
SECONDS = 120.0


@pytest.fixture(autouse=True)
def made_up_pools(monkeypatch) -> None:
    """This process goes on with the runs: with the same pools, and one thread as they have."""
    feed(monkeypatch)


@dataclass
class Job:
    """A run that has come to an iteration, and stands still there."""

    process: subprocess.Popen[str]
    folder: Path

    def end(self, number: int) -> tuple[int, str, str]:
        """Sends a signal; exit status, standard output and standard error."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err

    @property
    def iteration(self) -> int:
        """The iteration of the checkpoint."""
        with safe_open(self.folder / "run" / "checkpoint.safetensors", "pt") as file:
            return json.loads(file.metadata()["run"])["iteration"]

    @property
    def log(self) -> list[dict]:
        lines = (self.folder / "run" / "log.jsonl").read_text().splitlines()
        return [{**json.loads(line), "wall_seconds": None} for line in lines]

    def theta(self) -> bytes:
        return (self.folder / "models" / "tiny" / "1" / "theta.safetensors").read_bytes()


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Callable[[int], Job]]:
    """Starts a run and waits until it stands still after an iteration."""
    processes = []

    def start(at: int) -> Job:
        folder, marker = tmp_path / "stopped", tmp_path / "marker"
        path = write_recipe(folder / "models")
        command = [sys.executable, "-m", "tests.integration.training.slow_job", str(at), marker]
        options = ["--run", folder / "run", "--device", "cpu", "--threads", "1"]
        process = subprocess.Popen(
            [*command, "train", path, *options],
            cwd=ROOT,
            env=os.environ | {"COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        end = time.monotonic() + SECONDS
        while not marker.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end, "the run did not come so far"
            time.sleep(0.02)
        return Job(process, folder)

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def whole(tmp_path: Path) -> Job:
    """A run that nothing stopped, in this process."""
    run(recipe(), tmp_path / "whole")
    return Job(None, tmp_path / "whole")


def check_ends_alike(stopped: Job, whole: Job) -> None:
    """Goes on with a stopped run: θ and log are those of a run that was never stopped."""
    run(recipe(), stopped.folder)
    assert stopped.theta() == whole.theta()
    assert stopped.log == whole.log


def test_a_run_killed_between_two_checkpoints_ends_with_the_same_theta_to_the_bit(standing, whole):
    stopped = standing(5)
    status, out, _ = stopped.end(signal.SIGKILL)
    assert (status, out) == (-signal.SIGKILL, "")
    assert stopped.iteration == 4
    assert not (stopped.folder / "models" / "tiny" / "1").exists()
    check_ends_alike(stopped, whole)


def test_ctrl_c_leaves_a_checkpoint_where_it_came_and_says_how_to_go_on(standing, whole):
    stopped = standing(3)
    status, out, err = stopped.end(signal.SIGINT)
    assert (status, out) == (130, "")
    assert "Traceback" not in err
    assert "the same command goes on from" in err
    assert stopped.iteration == 3
    check_ends_alike(stopped, whole)
