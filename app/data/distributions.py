"""Where tasks come from, by name."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from app.data import mini_imagenet, omniglot
from app.data.pools import WHOLE, Augmentation, Pool, TaskShape, data_digest
from app.data.sinusoid import Sinusoids
from app.data.split import PARTS
from app.errors import DataError
from app.learning.tasks import Task
from app.registry.card import InputSpec

SPLITS = {
    "omniglot": ("background/evaluation", "1200/423"),
    "mini-imagenet": ("64/16/20",),
    "sinusoid": ("function", "oracle"),
}
"""The splits of each distribution; of the sinusoid, what an input holds."""


class Distribution(Protocol):
    """Tasks that can be drawn by seed."""

    def sample(
        self,
        shape: TaskShape,
        tasks: int,
        seed: Sequence[int],
        augmentation: Augmentation | None = None,
        part: slice = WHOLE,
    ) -> Task:
        """Draws a batch of tasks; see `app.data.pools.Pool.sample`."""

    def most_queries(self, shots: int) -> int:
        """How many queries of a class there are beside its shots."""


@dataclass(frozen=True)
class Source:
    """A loaded distribution."""

    input: InputSpec
    parts: Mapping[str, Distribution]
    digest: str
    """SHA-256 of the data: another digest, another θ."""


def load_source(
    distribution: str, split: str, folder: Path, progress: Callable[[str, int, int], None]
) -> Source:
    """The parts `train`, `validation` and `test` of a distribution.

    Args:
        distribution: its name.
        split: one of its splits.
        folder: where its data lies, or will lie.
        progress: told of a name, how much is loaded and how much there is.

    Raises:
        DataError: no such distribution or split, or a file is missing or broken.
    """
    if split not in SPLITS.get(distribution, ()):
        known = "; ".join(f"{name}: {', '.join(splits)}" for name, splits in SPLITS.items())
        raise DataError(f"no split {split!r} of {distribution!r}: use one of {known}")
    if distribution == "sinusoid":
        sinusoids = Sinusoids(oracle=split == "oracle")
        digest = hashlib.sha256(repr(sinusoids).encode()).hexdigest()
        return Source(sinusoids.input, dict.fromkeys(PARTS, sinusoids), digest)
    pools: Mapping[str, Pool]
    if distribution == "omniglot":
        spec, pools = omniglot.INPUT, omniglot.load_omniglot(folder, split, progress)
    else:
        spec, pools = mini_imagenet.INPUT, mini_imagenet.load_mini_imagenet(folder, progress)
    return Source(spec, pools, data_digest(pools))
