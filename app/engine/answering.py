"""How φ answers queries: what hangs on φ alone is worked out once for all of them.

A query by itself is little work, and every operation that Python asks for gives the interpreter's
lock away and waits for it again: the fewer they are, the sooner it is answered beside others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from app.engine.phi import Contents, Ready
from app.learning.calibration import outlier_probability, outlier_terms, temperature
from app.learning.learner import NETWORK, Learner
from app.registry.card import Calibration


class Answering:
    """The answers of one model version.

    Args:
        learner: whose φ.
        calibration: how sure they may be.
        fitted: its numbers, as `fitted` gives them.
    """

    def __init__(self, learner: Learner, calibration: Calibration | None, fitted: Sequence[Tensor]):
        self._learner = learner
        self.calibration = calibration
        self.fitted = fitted

    def ready(self, held: Contents, classes: Tensor) -> Ready:
        """Makes φ ready for queries; `classes` (rows,) bool are the rows that are classes."""
        weight, bias = self._learner.head.linear(held.parameters, classes)
        if self.calibration is not None:
            heat = temperature(self.fitted[0], held.size)
            weight, bias = weight / heat, bias / heat
        weight = weight.masked_fill(~classes[:, None], 0)  # whatever another φ may have left there
        bias = bias.masked_fill(~classes, float("-inf"))
        network = {name: p for name, p in held.parameters.items() if name.startswith(NETWORK)}
        return Ready(network, weight, bias, held.means, held.size, classes, self.calibration)

    def answer(self, ready: Ready, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (Q, rows) and how probable it is that a query is of no class, (Q,).

        The latter is zero where θ was not calibrated. `inputs` are (Q, *input_shape).
        """
        features = self._learner.features(ready.parameters, inputs)
        logits = F.linear(features, ready.weight, ready.bias)
        probabilities = logits.softmax(-1)
        if self.calibration is None:
            return probabilities, torch.zeros_like(logits[:, 0])
        terms = outlier_terms(features, ready.means, ready.classes, ready.size)
        return probabilities, outlier_probability(self.fitted[1], terms)


def fitted(calibration: Calibration | None, device: torch.device) -> list[Tensor]:
    """The weights of a calibration's temperature and of its outliers; none where there is none."""
    if calibration is None:
        return []
    return [
        torch.tensor(weights, device=device)
        for weights in (calibration.temperature, calibration.outlier)
    ]
