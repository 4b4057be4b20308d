"""Runs on two processes, as torchrun starts them, against the same runs on one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from app.registry import Registry
from app.training.recipe import load_recipe
from tests.unit.training.helpers import (
    FIXED,
    PRETRAINING,
    SINUSOID,
    TEXT,
    feed,
    run,
    with_stage,
    write_recipe,
)

ROOT = Path(__file__).parents[3]
SECONDS = 120.0
REPTILE = """
iterations = 3
algorithm = "reptile"
steps = 2
ways = [4, 4]
shots = [2, 2]
queries = 2
tasks = 3
learning_rate = 0.01
"""
RECIPES = {
    "maml": (TEXT, [*FIXED, ("tasks = 2\n", "tasks = 3\n")]),
    "sinusoid": (SINUSOID, []),
    "pretraining": (with_stage(PRETRAINING), [("pictures = 6", "pictures = 7")]),
    "reptile": (with_stage(REPTILE), [('"shared-row"', '"fixed-4"'), ("ways = 3", "ways = 4")]),
    "too small": (TEXT, [("tasks = 2\n", "tasks = 1\n")]),
    "wild": (SINUSOID, [("alpha_head = [0.02]", "alpha_head = [1e30]")]),
}
GOOD = ("maml", "sinusoid", "pretraining", "reptile")
ENVIRONMENT = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def start_two(*command: str | Path) -> list[subprocess.Popen[str]]:
    """Two processes of one run, with the variables that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env=ENVIRONMENT | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all recipes, each run by two processes that nothing stopped."""
    root = tmp_path_factory.mktemp("two")
    for name, (base, changes) in RECIPES.items():
        write_recipe(root / name / "models", *changes, base=base)
    processes = start_two("tests.integration.training.several", *(root / name for name in RECIPES))
    try:
        for process in processes:
            _, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, err
    finally:
        for process in processes:
            process.kill()
    return root


def theta(folder: Path) -> bytes:
    return (folder / "models" / "tiny" / "1" / "theta.safetensors").read_bytes()


def iteration(folder: Path) -> int:
    with safe_open(folder / "run" / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["run"])["iteration"]


@pytest.mark.parametrize("name", GOOD)
def test_two_processes_come_to_the_theta_of_one_but_for_rounding(done, tmp_path, monkeypatch, name):
    feed(monkeypatch)
    run(load_recipe(done / name / "models" / "tiny" / "recipe.toml"), tmp_path)
    path = Path("models/tiny/1/theta.safetensors")
    two, one = load_file(done / name / "0" / path), load_file(tmp_path / path)
    assert set(two) == set(one)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5, msg=key)
    cards = [Registry(at / "models").card("tiny", 1) for at in (done / name / "0", tmp_path)]
    assert [card.made_with["processes"] for card in cards] == ["2", "1"]
    lines = [
        [json.loads(line) for line in (at / "run" / "log.jsonl").read_text().splitlines()]
        for at in (done / name / "0", tmp_path)
    ]
    for two_line, one_line in zip(*lines, strict=True):
        assert two_line["iteration"] == one_line["iteration"]
        assert two_line["loss"] == pytest.approx(one_line["loss"], rel=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_only_the_leading_process_writes(done, name):
    assert not (done / name / "1").exists()


@pytest.mark.parametrize("rank", range(2))
def test_no_thread_outlives_the_run_and_aborts_the_process_as_it_exits(done, rank):
    assert len((done / "maml" / f"threads-{rank}.txt").read_text().splitlines()) == 1


def test_a_meta_batch_of_fewer_tasks_than_processes_is_refused_by_both(done):
    for rank in range(2):
        said = (done / "too small" / f"error-{rank}.txt").read_text()
        assert said.startswith("RecipeError: a meta-batch of 1 cannot be split among 2 processes")
    assert not (done / "too small" / "0").exists()


def test_a_run_that_diverges_ends_on_both_at_the_same_iteration_and_keeps_its_checkpoint(done):
    for rank in range(2):
        said = (done / "wild" / f"error-{rank}.txt").read_text()
        assert said.startswith("Diverged: The meta-gradient is not finite at iteration 0")
    assert iteration(done / "wild" / "0") == 0
    assert not (done / "wild" / "0" / "models").exists()


def test_a_run_killed_on_two_processes_and_gone_on_with_by_torchrun_ends_the_same_to_the_bit(
    done, tmp_path
):
    path = write_recipe(tmp_path / "models", base=SINUSOID)
    options = [path, "--run", tmp_path / "run", "--device", "cpu", "--threads", "1"]
    marker = tmp_path / "marker"
    processes = start_two("tests.integration.training.slow_job", "5", marker, "train", *options)
    try:
        end = time.monotonic() + SECONDS
        while not marker.exists():
            assert all(process.poll() is None for process in processes), processes
            assert time.monotonic() < end, "the run did not come so far"
            time.sleep(0.02)
    finally:
        for process in processes:
            process.kill()
        ends = [(process.communicate(), process.returncode)[1] for process in processes]
    assert ends == [-signal.SIGKILL] * 2
    assert iteration(tmp_path) == 4
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    again = subprocess.run(
        # Without the "--" torchrun takes --run for an option of its own.
        [*torchrun, "--nproc-per-node", "2", "-m", "--", "app", "train", *options],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    folder = tmp_path / "models" / "tiny" / "1"
    assert again.stdout == f"Wrote {folder}\n", "the leading process alone says so"
    assert theta(tmp_path) == theta(done / "sinusoid" / "0")
    logs = [
        [
            {**json.loads(line), "wall_seconds": None}
            for line in (at / "run" / "log.jsonl").read_text().splitlines()
        ]
        for at in (tmp_path, done / "sinusoid" / "0")
    ]
    assert logs[0] == logs[1]
