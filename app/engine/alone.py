"""Tasks and queries one by one, as they are: all of them on a CPU, on a GPU what shares nothing.

Nearly every method of a tensor gives the interpreter's lock away, whether it computes or not, and a
lane waits for it again while another thread runs Python, up to its switch interval. So what is not
in a graph is as little as can be, and NumPy's.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine.answering import Answering, fitted
from app.engine.graphs import Graphs, Program, Run, compiled, trace
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

Pair = tuple[Tensor, Tensor]
"""Probabilities (Q, rows), and how probable it is that a query is of no class, (Q,)."""

GRAPHS = Graphs()
"""Of all versions in this process: those whose networks, heads and steps are alike share them."""

EXAMPLES, CLASSES, QUERIES = 13, 11, 17
"""Of the task that graphs are traced with: any numbers will do that differ."""

PROGRAMS = """
def answers(kept: List[Tensor], held: List[Tensor], parts: List[Tensor]):
    found: List[Tensor] = []
    for part in parts:
        found += answer(kept + held + [part])
    return found

def adapts(
    kept: List[Tensor],
    kept_for_answers: List[Tensor],
    given: List[Tensor],
    shared: List[Tensor],
    parts: List[Tensor],
):
    found = adapt(kept + given)
    return found + answers(kept_for_answers, found[2:] + shared, parts)
"""
"""What `Alone._answers` and `Alone._adapts` do, in one call each, of the graphs `adapt` and
`answer`."""


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

    def adapt(
        self, support: SupportSet, steps: int, parts: Sequence[Floats] = ()
    ) -> tuple[Phi, Tensor, list[Pair]]:
        """Adapts θ to one support set, and answers a query part by part, as `answer` does.

        Returns:
            φ, the support loss (steps + 1,) before the first step and after each, and the answers.
        """
        rows = self._model.learner.head.rows(support.ways)
        classes = self._classes(support.ways, rows)
        task = [
            classes,
            self._tensor(support.inputs),
            self._tensor(support.labels),
            self._tensor(np.ones(len(support.labels), np.bool_)),
        ]
        found = GRAPHS.run(
            ("adapt", steps, self._what),
            self._adapts(steps),
            [*self._fixed, *task],
            [*self.answering.fitted, classes],
            [self._tensor(part) for part in parts],
        )
        vector, losses, weight, bias, means, size, *rest = found
        parameters, answers = rest[: len(self._network)], rest[len(self._network) :]
        network = dict(zip(self._network, parameters, strict=True))
        ready = Ready(network, weight, bias, means, size, classes, self.answering.calibration)
        return Phi(vector, support.ways, rows, ready), losses, _pairs(answers)

    def answer(self, phi: Phi, parts: Sequence[Floats]) -> list[Pair]:
        """Answers to the queries of one φ, part by part, as `Answering.answer` gives them."""
        ready = phi.ready
        if ready is None or ready.calibration != self.answering.calibration:  # it is another now
            held = self._layout.read(phi.vector, phi.rows)
            ready = self.answering.ready(held, self._classes(phi.ways, phi.rows))
            if phi.ready is not None:  # it takes the same memory
                phi.ready = ready
        queries = [self._tensor(part) for part in parts]
        return _pairs(self._answers(_spread(ready, self.answering.fitted), queries))

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
        GRAPHS.record([("adapt", card.steps, self._what), ("answer", self._what)], self._programs)

    def _programs(self) -> list[Program]:
        """`_adapts` by the usual number of steps, and `_answers`."""
        card = self._model.card
        learner = self._model.learner.twin()  # parameters are put into a network while it runs
        learner.to_answer(self._device)
        head = learner.head
        rows = head.rows(CLASSES)
        any_rows = head.rows(rows + 1) > rows
        classes = torch.ones(rows, dtype=torch.bool)
        inputs = torch.zeros(EXAMPLES, *card.input.shape)
        labels = torch.arange(EXAMPLES) % rows
        mask = torch.ones(EXAMPLES, dtype=torch.bool)
        adapt = trace(
            self._adaptation(learner, card.steps),
            [*self._fixed, classes, inputs, labels, mask],
            free=[*([-4] if any_rows else []), -3, -2, -1],
        )
        held = self._layout.read(torch.zeros(self._layout.length(rows)), rows)
        ready = self.answering.ready(held, classes)
        spread = _spread(ready, self.answering.fitted)
        queries = torch.zeros(QUERIES, *card.input.shape)
        free = [*([0, 1, 2, -2] if any_rows else []), -1]
        answer = trace(self._answer_to(learner), [*spread, queries], free)
        source = adapt.function("adapt") + answer.function("answer") + PROGRAMS
        adapts, answers = compiled(source, ["adapts", "answers"])
        return [partial(adapts, adapt.kept, answer.kept), partial(answers, answer.kept)]

    def _adapts(self, steps: int) -> Program:
        """An adaptation and what it answers, as the program of that name computes both."""
        adaptation = self._adaptation(self._model.learner, steps)

        def adapts(
            given: Sequence[Tensor], shared: Sequence[Tensor], parts: Sequence[Tensor]
        ) -> Sequence[Tensor]:
            found = adaptation(*given)
            return [*found, *self._answers([*found[2:], *shared], parts)]

        return adapts

    def _answers(self, held: Sequence[Tensor], parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """Answers to parts of a query one after the other, of what `_spread` gives."""
        answer = self._answer_to(self._model.learner)

        def answers(held: Sequence[Tensor], parts: Sequence[Tensor]) -> Sequence[Tensor]:
            return [found for part in parts for found in answer(*held, part)]

        return GRAPHS.run(("answer", self._what), answers, held, parts)

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

    def _answer_to(self, learner: Learner) -> Run:
        """Answers as a function of what `_spread` gives, and the queries."""

        def compute(*tensors: Tensor) -> Sequence[Tensor]:
            weight, bias, means, size, *rest = tensors
            given = iter(rest)
            parameters = {name: next(given) for name in self._network}
            numbers = [next(given) for _ in self.answering.fitted]
            classes, inputs = given
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
    """What answers are a function of, but the queries: most of it as an adaptation gives it."""
    made = [ready.weight, ready.bias, ready.means, ready.size, *ready.parameters.values()]
    return [*made, *numbers, ready.classes]


def _pairs(found: Sequence[Tensor]) -> list[Pair]:
    return list(zip(found[::2], found[1::2], strict=True))
