"""Meta-batches drawn ahead of a GPU are those of their iterations, in order."""

import time
from types import SimpleNamespace

import pytest
import torch

from app.training.distributed import World
from app.training.draws import DRAWERS, draw, drawn
from tests.unit.training.helpers import make_pools, recipe

SECONDS = 30
BESIDE_A_GPU = torch.device("cuda")
"""Only told apart from the CPU: nothing is moved to it."""


def job(device: torch.device, **parts) -> SimpleNamespace:
    source = SimpleNamespace(parts=make_pools() | parts)
    return SimpleNamespace(recipe=recipe(), source=source, world=World(), device=device)


@pytest.mark.parametrize("first", [0, 3, 7])
def test_they_are_the_same_as_drawn_one_by_one(first):
    iterations = range(first, recipe().iterations)
    ahead = list(drawn(job(BESIDE_A_GPU), first))
    assert len(ahead) == len(iterations)
    for batch, iteration in zip(ahead, iterations, strict=True):
        torch.testing.assert_close(tuple(batch), tuple(draw(job(torch.device("cpu")), iteration)))


def test_no_more_are_drawn_than_the_threads_have_to_do():
    train, asked = make_pools()["train"], []

    class Counting:
        def sample(self, *arguments):
            asked.append(arguments)
            return train.sample(*arguments)

    batches = drawn(job(BESIDE_A_GPU, train=Counting()), 0)
    next(batches)
    end = time.monotonic() + SECONDS
    while len(asked) < DRAWERS + 1 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.2)  # for one more to be drawn, were it asked for
    assert len(asked) == DRAWERS + 1 < recipe().iterations
    batches.close()


def test_what_goes_wrong_in_drawing_is_raised_where_the_batch_is_taken():
    with pytest.raises(AttributeError):
        next(drawn(job(BESIDE_A_GPU, train=None), 0))


def test_processes_draw_their_own_part_ahead_too():
    parts = []
    for rank in (0, 1):
        own = job(BESIDE_A_GPU)
        own.world = World(rank, 2)
        parts.append(next(drawn(own, 0)))
    whole = draw(job(torch.device("cpu")), 0)
    torch.testing.assert_close(torch.cat([part.query.inputs for part in parts]), whole.query.inputs)
