"""Computations on a GPU, recorded once as CUDA graphs and replayed.

A meta-gradient or an adaptation is some thousand small kernels. Launched one by one from Python
they keep the GPU waiting most of the time; a recording is launched as one (CUDA C++ Programming
Guide, "CUDA Graphs").
"""

from collections.abc import Callable, Hashable
from typing import Any
from weakref import WeakSet

import torch
from torch.utils._pytree import tree_leaves, tree_map

MOST = 512
"""Most recordings of a computation. A stage of ragged tasks has a shape for every number of classes
and shots."""

Compute = Callable[..., Any]
"""A function of a tree of tensors to a tree of tensors; what else it reads must stay where it is in
memory."""


class CannotRecord(RuntimeError):
    """A computation does what no recording can: the message says what."""


class Pool:
    """Memory of the GPU that recordings share, which never run at the same time.

    What one recording returns the next one may overwrite, of whichever computation it is.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._users: WeakSet[_Recording] = WeakSet()

    def record(self, compute: "Compute", inputs: Any) -> "_Recording":
        """A new recording; errors as of `Recordings.run`."""
        if not self._users:  # torch takes no handle again whose graphs are all gone
            self._handle = torch.cuda.graph_pool_handle()
        recording = _Recording(compute, inputs, self._handle)
        self._users.add(recording)
        return recording


class Recordings:
    """The recordings of one computation, by the shapes of its inputs.

    Args:
        device: where to compute, if that is not where the inputs are.
        pool: where recordings keep what they compute; without it in one of their own.
    """

    def __init__(self, device: torch.device | None = None, pool: Pool | None = None) -> None:
        self._device = device
        self._pool = pool or Pool()
        self._what: Hashable = None
        self._by_shapes: dict[Hashable, _Recording] = {}

    def run(self, what: Hashable, compute: Compute, inputs: Any) -> Any:
        """What `compute` returns for the inputs.

        On a GPU the tensors hold it until the next run of any that share the pool.

        Args:
            what: names the computation; the same name must always mean the same. Recordings of the
                one before are dropped.
            compute: the computation, of the inputs as its one argument.
            inputs: a tree of tensors. Those in page-locked memory must not change until the GPU
                has read them.

        Raises:
            CannotRecord: it reads values back from the GPU, or makes tensors of Python's numbers.
            torch.OutOfMemoryError: the GPU's memory does not suffice.
        """
        leaves = tree_leaves(inputs)
        device = self._device or leaves[0].device
        if device.type != "cuda":
            return compute(inputs)
        if what != self._what:
            self._what, self._by_shapes = what, {}
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        with torch.cuda.device(device):
            if shapes not in self._by_shapes:
                inputs = tree_map(lambda leaf: leaf.to(device), inputs)
                if len(self._by_shapes) >= MOST:
                    return compute(inputs)
                self._by_shapes[shapes] = self._pool.record(compute, inputs)
            return self._by_shapes[shapes].replay(inputs)


class _Recording:
    """One computation on inputs of one shape."""

    def __init__(self, compute: Compute, inputs: Any, pool: Any):
        self._inputs = tree_map(torch.clone, inputs)
        # Libraries set themselves up in their first call, which must not be recorded.
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute(self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(self._graph, pool=pool):
                self._results = compute(self._inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CannotRecord(
                "it cannot be recorded as a CUDA graph: a forward pass must not read values back "
                f"from the GPU, nor make tensors of Python's numbers ({str(error).splitlines()[0]})"
            ) from error

    def replay(self, inputs: Any) -> Any:
        """The results of the inputs, in tensors that the next replay of the pool overwrites."""
        for ours, theirs in zip(tree_leaves(self._inputs), tree_leaves(inputs), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self._graph.replay()
        return self._results
