"""The sinusoid regression of Finn, Abbeel & Levine (2017, arXiv 1703.03400, §5.1).

A task is y = A sin(x - p) with its amplitude A uniform in [0.1, 5] and its phase p in [0, π]; x is
uniform in [-5, 5]. To the oracle A and p are part of every input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app.data.pools import WHOLE, Augmentation, TaskShape
from app.errors import DataError
from app.learning.tasks import Examples, Task
from app.registry.card import InputSpec

AMPLITUDES, PHASES, INPUTS = (0.1, 5.0), (0.0, float(np.pi)), (-5.0, 5.0)


@dataclass(frozen=True)
class Sinusoids:
    """The distribution of tasks; there is no end of them, so one serves for all parts."""

    oracle: bool = False

    @property
    def input(self) -> InputSpec:
        """x, and for the oracle A and p."""
        return InputSpec(kind="values", shape=(3 if self.oracle else 1,))

    def most_queries(self, shots: int) -> int:  # noqa: ARG002 - they are drawn anew
        """No bound that matters."""
        return 1_000_000

    def sample(
        self,
        shape: TaskShape,
        tasks: int,
        seed: Sequence[int],
        augmentation: Augmentation | None = None,  # noqa: ARG002 - there is nothing to vary
        part: slice = WHOLE,
    ) -> Task:
        """Draws a batch of tasks, as `app.data.pools.Pool.sample` does.

        Returns:
            A task of one output; inputs (B, K, 1), or (B, K, 3) for the oracle, and targets
            (B, K, 1) are float32.

        Raises:
            DataError: the tasks asked for have classes, or shots that are not all as many.
        """
        if shape.ways != (1, 1) or shape.shots[0] != shape.shots[1]:
            raise DataError("sinusoids have one output, ways = [1, 1], and one number of shots")
        rng = np.random.default_rng(list(seed))
        amplitude = rng.uniform(*AMPLITUDES, (tasks, 1))
        phase = rng.uniform(*PHASES, (tasks, 1))
        count = shape.shots[0] + shape.queries
        x = rng.uniform(*INPUTS, (tasks, count))
        y = amplitude * np.sin(x - phase)
        columns = [x, *np.broadcast_arrays(amplitude, phase, x)[:2]] if self.oracle else [x]
        inputs, targets = np.stack(columns, -1)[part], y[part, :, None]
        shots = shape.shots[0]
        return Task(
            _examples(inputs[:, :shots], targets[:, :shots]),
            _examples(inputs[:, shots:], targets[:, shots:]),
            torch.ones(len(inputs), 1, dtype=torch.bool),
        )


def _examples(inputs: NDArray[np.float64], targets: NDArray[np.float64]) -> Examples:
    return Examples(
        torch.from_numpy(inputs.astype(np.float32)),
        torch.from_numpy(targets.astype(np.float32)),
        torch.ones(inputs.shape[:2], dtype=torch.bool),
    )
