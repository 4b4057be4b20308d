"""Splitting a meta-batch; real processes are in tests/integration/training."""

import pytest
import torch

from app.errors import RecipeError
from app.training.distributed import World, joined_world
from tests.unit.training.helpers import PRETRAINING, Recorder, recipe, run, with_stage


@pytest.mark.parametrize("size", range(1, 10))
def test_parts_are_whole_disjoint_and_of_even_size(size):
    for tasks in range(size, 40):
        parts = [World(rank, size).part(tasks) for rank in range(size)]
        drawn = [number for part in parts for number in range(tasks)[part]]
        assert drawn == list(range(tasks))
        sizes = {part.stop - part.start for part in parts}
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 1


@pytest.mark.parametrize(("tasks", "size"), [(1, 2), (7, 8), (2, 9)])
def test_more_processes_than_tasks_are_refused_on_every_one(tasks, size):
    for rank in range(size):
        with pytest.raises(RecipeError, match=f"meta-batch of {tasks} .* {size} processes.*fewer"):
            World(rank, size).part(tasks)


def test_only_the_first_process_leads():
    assert [World(rank, 3).leads for rank in range(3)] == [True, False, False]


def test_without_torchrun_a_process_is_alone_and_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined_world(torch.device("cpu")) as (world, device):
        assert (world, device) == (World(0, 1), torch.device("cpu"))
        values = [torch.tensor([1.0, 2.0]), torch.tensor(3.0)]
        world.add_up(values)
        assert [value.tolist() for value in values] == [[1.0, 2.0], 3.0]
        world.wait()
        with world.leader_first():
            pass
    assert not torch.distributed.is_initialized()


def test_a_meta_batch_too_small_for_the_processes_is_refused_before_the_first_iteration(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(World, "wait", lambda _: None)
    recorder = Recorder()
    with pytest.raises(RecipeError, match="cannot be split among 3 processes"):
        run(recipe(), tmp_path, recorder, World(0, 3))
    assert recorder.iterations == []
    assert not (tmp_path / "run").exists()


def test_pretraining_with_batch_norm_is_refused_on_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(World, "wait", lambda _: None)
    tiny = recipe(("groups = 2", 'norm = "batch"'), base=with_stage(PRETRAINING))
    with pytest.raises(RecipeError, match="pre-train it on one process"):
        run(tiny, tmp_path, Recorder(), World(0, 2))
