"""The most memory that a run has held."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from app.registry import Registry
from app.training import job
from tests.unit.training.helpers import SINUSOID, Killed, Recorder, kill, recipe, run

TINY = recipe(base=SINUSOID)


def checkpointed(folder: Path) -> int:
    with safe_open(folder / "run" / "checkpoint.safetensors", "pt") as file:
        return json.loads(file.metadata()["run"])["peak_memory_bytes"]


def on_card(folder: Path) -> int | None:
    return Registry(folder / "models").card("tiny", 1).peak_memory_bytes


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the truth on Linux alone")
def test_it_is_what_the_system_says_of_the_process():
    lines = Path("/proc/self/status").read_text().splitlines()
    [high_water] = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
    assert job.peak_memory(torch.device("cpu")) == pytest.approx(1024 * int(high_water), rel=0.02)


def test_checkpoint_and_card_hold_it(tmp_path):
    run(TINY, tmp_path)
    unit = 1 if sys.platform == "darwin" else 1024
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert on_card(tmp_path) == checkpointed(tmp_path)
    assert 50_000_000 < on_card(tmp_path) <= now, "torch alone takes 50 MB"


@pytest.mark.parametrize(("before", "after"), [(7_000, 5_000), (5_000, 7_000)])
def test_it_is_the_largest_of_all_parts_of_an_interrupted_run(tmp_path, monkeypatch, before, after):
    monkeypatch.setattr(job, "peak_memory", lambda _: before)
    with pytest.raises(Killed):
        run(TINY, tmp_path, Recorder({5: kill}))
    assert checkpointed(tmp_path) == before
    monkeypatch.setattr(job, "peak_memory", lambda _: after)
    run(TINY, tmp_path)
    assert on_card(tmp_path) == 7_000
