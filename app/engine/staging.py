"""Memory of the host from which a GPU reads by itself, while the host prepares what comes next."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

TURNS = 2
"""So many batches may be prepared or on their way."""


class Staging:
    """Buffers by name, used in turns; page-locked where the device is a GPU.

    Args:
        device: what reads them.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._read: list[torch.cuda.Event | None] = [None] * TURNS
        self._turn = 0

    def next(self) -> None:
        """The next turn begins, once the device has read what was staged in it before."""
        self._turn = (self._turn + 1) % TURNS
        read = self._read[self._turn]
        if read is not None:
            read.synchronize()
            self._read[self._turn] = None

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor that holds whatever was there before, good until the turn comes again."""
        key, count = (name, self._turn), math.prod(shape)
        buffer = self._buffers.get(key)
        if buffer is None or len(buffer) < count:
            buffer = torch.empty(count, dtype=dtype, pin_memory=self._device.type == "cuda")
            self._buffers[key] = buffer
        return buffer[:count].view(*shape)

    def sent(self) -> None:
        """The device has been asked to read all that was staged in this turn."""
        if self._device.type == "cuda":
            read = torch.cuda.Event()  # type: ignore[no-untyped-call]
            read.record(torch.cuda.current_stream(self._device))
            self._read[self._turn] = read
