"""How φ answers queries: what hangs on φ alone is worked out once for all of them.

A query by itself is little work, and every operation that Python asks for gives the interpreter's
lock away and waits for it again: the fewer they are, the sooner it is answered beside others.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from app.engine.phi import Contents, Ready
from app.learning.calibration import outlier_probability, outlier_terms, temperature
from app.learning.learner import Learner
from app.registry import Card


class Answering:
    """The answers of one model version.

    Args:
        learner: whose φ.
        card: says how it is calibrated.
        device: where φ and the queries are.
    """

    def __init__(self, learner: Learner, card: Card, device: torch.device):
        self._learner = learner
        self.calibration = card.calibration
        if card.calibration is not None:
            self._by_size = torch.tensor(card.calibration.temperature, device=device)
            self._by_distance = torch.tensor(card.calibration.outlier, device=device)

    def ready(self, held: Contents, classes: Tensor) -> Ready:
        """Makes φ ready for queries; `classes` (rows,) bool are the rows that are classes."""
        weight, bias = self._learner.head.linear(held.parameters, classes)
        if self.calibration is not None:
            heat = temperature(self._by_size, held.size)
            weight, bias = weight / heat, bias / heat
        weight = weight.masked_fill(~classes[:, None], 0)  # whatever another φ may have left there
        bias = bias.masked_fill(~classes, float("-inf"))
        means, size = held.means, held.size
        return Ready(held.parameters, weight, bias, means, size, classes, self.calibration)

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
        return probabilities, outlier_probability(self._by_distance, terms)
