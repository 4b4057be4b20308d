"""Recorded gradients are those that are computed anew; what needs a GPU skips without one."""

from contextlib import nullcontext
from unittest.mock import MagicMock

import pytest
import torch

from app import recordings as recordings_module
from app.data.omniglot import INPUT
from app.data.pools import TaskShape
from app.errors import RecipeError
from app.learning.convolution import convolve
from app.recordings import CannotRecord, Pool, Recordings, _Recording
from app.registry.registry import build_learner
from app.training.evaluate import examples_to_device, to_device
from app.training.state import initial_state, meta_gradient, pretraining_gradient
from tests.replays import replay
from tests.unit.training.helpers import make_pool, recipe

needs_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
DEVICES = [torch.device("cpu"), torch.device("cuda")]


def test_on_the_cpu_everything_is_computed_anew():
    recordings, seen = Recordings(), []

    def double(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(inputs)
        return 2 * inputs["x"]

    for value in (1.0, 3.0):
        got = recordings.run("double", double, {"x": torch.tensor([value])})
        assert got.tolist() == [2 * value]
    assert len(seen) == 2


def gradients(
    device: torch.device, algorithm: str, at_once: int | None, seeds: range
) -> list[torch.Tensor]:
    """The meta-gradients of several meta-batches by one state, each as one vector on the CPU."""
    tiny = recipe()
    learner = build_learner(INPUT, tiny.network.model_dump(), tiny.head)
    state = initial_state(tiny, learner, device)
    learner.to(device)
    stage = tiny.stages[0].model_copy(update={"algorithm": algorithm, "tasks_at_once": at_once})
    pool, found = make_pool(10, seed=1), []
    for seed in seeds:
        shape = TaskShape((3, 3), (1, 1 + seed % 2), 2)  # two shapes, so two recordings
        tasks = to_device(pool.sample(shape, 2, (seed,)), device)
        meta_gradient(learner, state, stage, tasks, done=seed / 10)
        parts = [value.grad for value in state.parameters.values() if value.grad is not None]
        found.append(torch.cat([part.flatten() for part in parts]).cpu())
        with torch.no_grad():  # the next is of another θ
            for value in state.parameters.values():
                value.mul_(1.1)
    return found


@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("algorithm", ["maml", "first-order-maml", "multi-step-maml"])
def test_what_is_recorded_reads_nothing_that_moves(monkeypatch, algorithm, at_once):
    expected = gradients(DEVICES[0], algorithm, at_once, range(6))
    replay(monkeypatch)
    got = gradients(DEVICES[0], algorithm, at_once, range(6))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_too_little_memory_is_no_fault_of_the_network(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.")

    monkeypatch.setattr(Recordings, "run", full)
    with pytest.raises(RecipeError, match=r"memory does not suffice.*tasks_at_once.*3\.00 GiB"):
        gradients(DEVICES[0], "maml", None, range(1))


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), torch.OutOfMemoryError),
        (RuntimeError("operation not permitted when stream is capturing"), CannotRecord),
    ],
)
def test_what_goes_wrong_while_recording_is_told_apart(monkeypatch, error, raised):
    for name in ("Stream", "current_stream", "CUDAGraph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    for name in ("stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, lambda *_, **__: nullcontext())
    calls = []

    def compute(inputs: torch.Tensor) -> torch.Tensor:
        calls.append(inputs)
        if len(calls) == 2:  # the first is not recorded
            raise error
        return inputs

    with pytest.raises(raised):
        _Recording(compute, torch.zeros(2), None)


def test_a_pool_whose_recordings_are_all_gone_is_a_new_one(monkeypatch):
    handles = iter(range(10))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))

    class Recorded:
        def __init__(self, _compute, _inputs, pool: int):
            self.pool = pool

    monkeypatch.setattr(recordings_module, "_Recording", Recorded)
    pool = Pool()
    kept = [pool.record(lambda inputs: inputs, None) for _ in range(2)]
    assert [recording.pool for recording in kept] == [0, 0]
    kept.clear()
    assert pool.record(lambda inputs: inputs, None).pool == 1


@needs_a_gpu
@pytest.mark.parametrize("at_once", [None, 1])
@pytest.mark.parametrize("algorithm", ["maml", "first-order-maml", "multi-step-maml"])
def test_a_replay_has_the_gradient_of_its_own_meta_batch_and_theta(algorithm, at_once):
    expected, got = (gradients(device, algorithm, at_once, range(6)) for device in DEVICES)
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() < 1e-3 * other.norm()
    assert (got[0] - got[2]).norm() > 1e-2 * got[0].norm()


@needs_a_gpu
def test_a_replay_of_pretraining_has_the_gradient_of_its_own_pictures():
    tiny, pool = recipe(), make_pool(6, seed=1)
    learner = build_learner(INPUT, tiny.network.model_dump(), tiny.head)
    found = []
    for device in DEVICES:
        state = initial_state(tiny, learner, device, classes=6)
        for seed in range(3):
            examples = examples_to_device(pool.sample_pictures(8, (seed,)), device)
            pretraining_gradient(learner, state, examples)
        found.append(state.parameters["classifier"].grad.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@needs_a_gpu
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_the_same_on_a_gpu(stride):
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 9, 8, 2), (4, 2, 3, 3))
    )
    expected = convolve(inputs, weight, None, stride)
    torch.testing.assert_close(convolve(inputs.cuda(), weight.cuda(), None, stride).cpu(), expected)
