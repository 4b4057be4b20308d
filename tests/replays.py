"""What a GPU's recordings do, on a CPU."""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from app.recordings import Compute, Pool, Recordings


def replay(monkeypatch) -> None:
    """Has every computation that is recorded on a GPU behave so here.

    The first one of a shape is what runs ever after: on the tensors that it got, into the tensors
    that it gave. What else it has read must not have moved. What others of its pool gave before is
    lost.
    """
    given: dict[Pool, list[torch.Tensor | None]] = {}

    def run(recordings: Recordings, what: object, compute: Compute, inputs: Any) -> Any:
        recorded, shapes = recordings._by_shapes, tuple(leaf.shape for leaf in tree_leaves(inputs))
        if what != recordings._what:
            recordings._what = what
            recorded.clear()
        for result in given.setdefault(recordings._pool, []):  # another may be there by now
            if result is not None and result.is_floating_point():
                result.fill_(torch.nan)
        if shapes not in recorded:
            own = tree_map(torch.clone, inputs)
            recorded[shapes] = compute, own, tree_map(_clone, compute(own))
            given[recordings._pool] += tree_leaves(recorded[shapes][2])
        first, own, results = recorded[shapes]
        for ours, theirs in zip(tree_leaves(own), tree_leaves(inputs), strict=True):
            ours.copy_(theirs)
        for ours, theirs in zip(tree_leaves(results), tree_leaves(first(own)), strict=True):
            if ours is not None:
                ours.copy_(theirs)
        return results

    monkeypatch.setattr(Recordings, "run", run)


def _clone(result: torch.Tensor | None) -> torch.Tensor | None:
    return None if result is None else result.clone()
