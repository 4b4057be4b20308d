"""One run on several processes, each with a part of every meta-batch.

Started by `torchrun --standalone --nproc-per-node N -m -- app train ...`, where the lone dashes
keep torchrun from taking `--run` for its own. Every process holds all of θ and of the
optimiser, and takes the same outer steps along the sum of all parts' gradients.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # while there is no group yet, see joined_world
from torch import Tensor

from app.errors import RecipeError

PATIENCE = timedelta(days=7)
"""How long the others wait for the leading process, which alone measures the figures. That a
process died is for torchrun to see, not for this."""


@dataclass(frozen=True)
class World:
    """This process among those of a run."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, validates and reports."""
        return self.rank == 0

    def part(self, tasks: int) -> slice:
        """This process's part of a meta-batch.

        Raises:
            RecipeError: there are fewer tasks than processes.
        """
        if tasks < self.size:
            raise RecipeError(
                f"a meta-batch of {tasks} cannot be split among {self.size} processes: "
                "start fewer, or raise `tasks` in the recipe"
            )
        return slice(tasks * self.rank // self.size, tasks * (self.rank + 1) // self.size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes, in place."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        first = 0
        for tensor in tensors:
            tensor.copy_(flat[first : first + tensor.numel()].view_as(tensor))
            first += tensor.numel()

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            dist.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The others enter the block once the leading process has left it."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


@contextmanager
def joined_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Joins the processes that torchrun started; without torchrun, this one is all there is.

    Gradients travel by NCCL between GPUs, of which each process takes its own, else by gloo.

    The functions of `torch.distributed.nn` take the group that there is when they are imported as
    a default argument, and the optimisers import them. Imported within the block, they would keep
    the group's threads alive past its end, and such a thread that wants the interpreter while that
    is shutting down aborts the process.
    """
    if "WORLD_SIZE" not in os.environ:
        yield World(), device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    finally:
        dist.destroy_process_group()
