"""Inputs that a GPU reads by itself: none is overwritten before it was read."""

from unittest.mock import MagicMock

import torch

from app.engine.staging import TURNS, Staging


def test_a_turn_keeps_what_was_staged_until_it_comes_again():
    staging, seen = Staging(torch.device("cpu")), []
    for turn in range(TURNS):
        staging.next()
        seen.append(staging.tensor("x", (2, 3), torch.float32).fill_(turn))
    assert [int(tensor[0, 0]) for tensor in seen] == list(range(TURNS))
    staging.next()
    staging.tensor("x", (2, 3), torch.float32).fill_(9)
    assert [int(tensor[0, 0]) for tensor in seen] == [9, *range(1, TURNS)]


def test_a_buffer_grows_and_is_cut_to_every_shape():
    staging = Staging(torch.device("cpu"))
    staging.next()
    small = staging.tensor("x", (2, 2), torch.float32)
    large = staging.tensor("x", (4, 5), torch.float32)
    again = staging.tensor("x", (2, 2), torch.float32)
    other = staging.tensor("y", (2, 2), torch.int64)
    assert [tuple(tensor.shape) for tensor in (small, large, again)] == [(2, 2), (4, 5), (2, 2)]
    assert again.data_ptr() == large.data_ptr() != other.data_ptr()
    assert other.dtype == torch.int64


def test_a_turn_waits_until_the_gpu_has_read_what_it_held(monkeypatch):
    events: list[MagicMock] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda: events.append(MagicMock()) or events[-1])
    stream = MagicMock()
    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    staging = Staging(torch.device("cuda:1"))
    for _ in range(TURNS):
        staging.next()
        staging.sent()
    stream.assert_called_with(torch.device("cuda:1"))
    assert [event.record.call_count for event in events] == [1] * TURNS
    assert not any(event.synchronize.called for event in events)
    staging.next()
    assert [event.synchronize.call_count for event in events] == [1] + [0] * (TURNS - 1)
