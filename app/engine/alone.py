"""Tasks and queries one by one, as they are: all of them on a CPU, on a GPU what shares nothing.

Nearly every method of a tensor gives the interpreter's lock away, whether it computes or not, and a
lane waits for it again while another thread runs Python, up to its switch interval. So what is not
in a graph is as little as can be, and NumPy's.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.answering import Answering, fitted
from app.engine.graphs import Graphs, Run
from app.engine.phi import Contents, Layout, Phi, Ready
from app.engine.requests import Floats, SupportSet
from app.learning.calibration import class_means, task_size
from app.learning.heads import Params
from app.learning.inner_loop import Alpha, adapt
from app.learning.learner import NETWORK, Learner
from app.learning.losses import membership
from app.learning.own_network import is_own
from app.learning.tasks import Examples
from app.learning.vjp import Vjp, vjp_once
from app.registry.registry import LoadedModel

PhiAndLoss = tuple[Phi, Tensor]
"""φ, and the support loss (steps + 1,) before the first step and after each.

A GPU may still be computing them: to read them is to wait for it."""

GRAPHS = Graphs()
"""Of all versions in this process: those whose networks, heads and steps are alike share them."""

EXAMPLES, CLASSES, QUERIES = 13, 11, 17
"""Of the task that graphs are traced with: any numbers will do that differ."""


class Alone:
    """One model version on a device. Only one thread at a time may compute with it.

    Args:
        model: on the device.
        layout: of its φ.
        device: where it is.
    """

    def __init__(self, model: LoadedModel, layout: Layout, device: torch.device):
        card = model.card
        self._model, self._layout, self._device = model, layout, device
        self.answering = Answering(
            model.learner, card.calibration, fitted(card.calibration, device)
        )
        self._names = sorted(model.theta)
        self._network = [name for name in self._names if name.startswith(NETWORK)]
        # Step by step already: to take a step out of each is an operation for every parameter.
        self._alpha = {name: model.alpha[name].unbind() for name in sorted(model.alpha)}
        self._fixed = [
            *(model.theta[name] for name in self._names),
            *chain.from_iterable(self._alpha.values()),
            *self.answering.fitted,
        ]
        self._what = repr(
            (
                (card.input.shape, card.input.mean, card.input.scale),
                sorted(card.network.items()),
                card.head,
                card.inner_temperature,
                card.calibration is not None,
                [(name, rates.shape) for name, rates in sorted(model.alpha.items())],
                device.type,
            )
        )

    def adapt(self, support: SupportSet, steps: int) -> PhiAndLoss:
        """Adapts θ to one support set."""
        rows = self._model.learner.head.rows(support.ways)
        task = [
            self._classes(support.ways, rows),
            self._tensor(support.inputs),
            self._tensor(support.labels),
            self._tensor(np.ones(len(support.labels), np.bool_)),
        ]
        vector, losses, weight, bias, means, size, *parameters = GRAPHS.run(
            ("adapt", steps, self._what),
            self._adaptation(self._model.learner, steps),
            [*self._fixed, *task],
        )
        network = dict(zip(self._network, parameters, strict=True))
        ready = Ready(network, weight, bias, means, size, task[0], self.answering.calibration)
        return Phi(vector, support.ways, rows, ready), losses

    def answer(self, phi: Phi, query: Floats) -> tuple[Tensor, Tensor]:
        """Answers to the queries of one φ, as `Answering.answer` gives them."""
        ready = phi.ready
        if ready is None or ready.calibration != self.answering.calibration:  # it is another now
            held = self._layout.read(phi.vector, phi.rows)
            ready = self.answering.ready(held, self._classes(phi.ways, phi.rows))
            if phi.ready is not None:  # it takes the same memory
                phi.ready = ready
        probabilities, outliers = GRAPHS.run(
            ("answer", self._what),
            self._answers(self._model.learner),
            [*_spread(ready, self.answering.fitted), self._tensor(query)],
        )
        return probabilities, outliers

    def record(self) -> None:
        """Records the adaptation by the usual number of steps, and the answers.

        Any thread may, also while another computes. A network of somebody's own is left as it is:
        what it does may hang on the number of inputs.

        Raises:
            CannotRecord: see `Graphs.record`.
        """
        card = self._model.card
        if self._device.type != "cpu" or is_own(card.network["name"]):
            return
        learner = self._model.learner.twin()  # parameters are put into a network while it runs
        learner.to_answer(self._device)
        head, steps = learner.head, card.steps
        rows = head.rows(CLASSES)
        any_rows = head.rows(rows + 1) > rows
        classes = torch.ones(rows, dtype=torch.bool)
        inputs = torch.zeros(EXAMPLES, *card.input.shape)
        labels = torch.arange(EXAMPLES) % rows
        mask = torch.ones(EXAMPLES, dtype=torch.bool)
        GRAPHS.record(
            ("adapt", steps, self._what),
            self._adaptation(learner, steps),
            [*self._fixed, classes, inputs, labels, mask],
            free=4 if any_rows else 3,
        )
        held = self._layout.read(torch.zeros(self._layout.length(rows)), rows)
        ready = self.answering.ready(held, classes)
        GRAPHS.record(
            ("answer", self._what),
            self._answers(learner),
            [*_spread(ready, self.answering.fitted), torch.zeros(QUERIES, *card.input.shape)],
            free=5 if any_rows else 1,
        )

    def _classes(self, ways: int, rows: int) -> Tensor:
        """Which of the rows of a head are classes, (rows,) bool."""
        return self._tensor(np.arange(rows) < ways)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)

    def _adaptation(self, learner: Learner, steps: int) -> Run:
        """An adaptation as a function of θ, α, the calibration's numbers, and the task."""

        def compute(*tensors: Tensor) -> Sequence[Tensor]:
            given = iter(tensors)
            theta = {name: next(given) for name in self._names}
            alpha = {name: [next(given) for _ in rates] for name, rates in self._alpha.items()}
            answering = Answering(
                learner, self.answering.calibration, [next(given) for _ in self.answering.fitted]
            )
            classes, inputs, labels, mask = given
            support = Examples(inputs, labels, mask)
            adapted, losses = adapted_contents(
                learner, theta, support, classes, alpha, steps, vjp_once
            )
            vector = torch.zeros(self._layout.length(classes.shape[0]), device=self._device)
            held = self._layout.write(vector, adapted)
            ready = answering.ready(held, classes)
            parameters = [ready.parameters[name] for name in self._network]
            return vector, losses, ready.weight, ready.bias, held.means, held.size, *parameters

        return compute

    def _answers(self, learner: Learner) -> Run:
        """Answers as a function of what `_spread` gives, and the queries."""

        def compute(*tensors: Tensor) -> Sequence[Tensor]:
            given = iter(tensors)
            parameters = {name: next(given) for name in self._network}
            numbers = [next(given) for _ in self.answering.fitted]
            size, weight, bias, means, classes, inputs = given
            calibration = self.answering.calibration
            answering = Answering(learner, calibration, numbers)
            ready = Ready(parameters, weight, bias, means, size, classes, calibration)
            return answering.answer(ready, inputs)

        return compute


def adapted_contents(
    learner: Learner,
    theta: Params,
    support: Examples,
    classes: Tensor,
    alpha: Alpha,
    steps: int,
    vjp: Vjp,
) -> tuple[Contents, Tensor]:
    """φ with the class means of its features and the task's size; the support loss (steps + 1,)."""
    phi, losses, features = adapt(learner, theta, support, classes, alpha, steps, vjp)
    means = class_means(features, support, classes.shape[-1])
    shots = membership(support, classes.shape[-1]).sum(0)
    return Contents(phi, means, task_size(shots, classes)), losses


def array_of(tensor: Tensor) -> Floats:
    """A tensor's numbers, on a CPU where they are."""
    array: Floats = (tensor if tensor.device.type == "cpu" else tensor.cpu()).numpy()
    return array


def _spread(ready: Ready, numbers: Sequence[Tensor]) -> list[Tensor]:
    """What answers are a function of, but the queries, one after the other."""
    return [
        *ready.parameters.values(),
        *numbers,
        ready.size,
        ready.weight,
        ready.bias,
        ready.means,
        ready.classes,
    ]
