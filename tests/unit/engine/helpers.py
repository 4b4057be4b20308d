"""Tiny models on disk, few-shot problems, and their answers without engine, padding or batch."""

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from app.engine import Engine, ModelKey, SupportSet
from app.engine.compute import Computer
from app.engine.requests import Adapted, Answers, Floats
from app.engine.shapes import ON_CPU
from app.learning.inner_loop import adapt
from app.learning.tasks import Examples
from app.registry import InputSpec, LoadedModel, Registry
from app.registry.card import Calibration
from app.registry.registry import build_learner, encode_theta
from tests.fakes import make_card

CONV = ModelKey("conv", 1)
NEWER = ModelKey("conv", 2)
"""Of the model of `CONV`, in registries that have one."""
DEEP = ModelKey("deep", 2)
FIXED = ModelKey("fixed", 1)
SHAPES = {CONV: (1, 12, 12), DEEP: (5,), FIXED: (5,)}
CALIBRATION = Calibration(temperature=(0.4, 0.3, -0.2), outlier=(-1, 0.5, 1.5, 0.2, 0.3, -0.1))
SHARED = replace(ON_CPU, largest=16, together=80, queries_together=80, lanes=1, work_at_once=1000)
"""As a device that computes several tasks at once, but with few shapes to warm."""
PADDED = replace(SHARED, least=1)
"""As a GPU, which computes a lone task too in a shape that was recorded, and replays it."""
SAME = {"rtol": 0, "atol": 1e-5}
"""How near answers must be that are to be the same."""
SECONDS = 30.0
"""Longest wait for any future: a hang is a failure, not a hang of the suite."""


def save_models(root: Path) -> Registry:
    """`conv` reads pictures of 12 x 12, `deep` and `fixed` five numbers; `fixed` has three rows.

    `conv` alone is calibrated.
    """
    registry = Registry(root)
    conv = {"name": "conv", "filters": 8, "blocks": 2, "groups": 2}
    save_model(registry, CONV, conv, shape=SHAPES[CONV], calibration=CALIBRATION)
    deep = {"name": "mlp", "hidden": [16, 16]}
    save_model(registry, DEEP, deep, steps=4, shape=SHAPES[DEEP])
    fixed = {"name": "mlp", "hidden": [16]}
    save_model(registry, FIXED, fixed, head="fixed-3", shape=SHAPES[FIXED])
    return registry


def save_model(
    registry: Registry,
    key: ModelKey,
    network: dict,
    *,
    steps: int = 3,
    head: str = "shared-row",
    shape: tuple[int, ...],
    rates: Callable[[str, torch.Tensor], torch.Tensor | None] | None = None,
    seed: int = 7,
    **facts,
) -> None:
    """A model of an untrained θ; `rates` gives α of a parameter, `facts` are more of its card."""
    spec = InputSpec(kind="values", shape=shape)
    learner = build_learner(spec, network, head)
    theta = learner.initial(seed)

    def falling(name: str, _: torch.Tensor) -> torch.Tensor:
        return torch.linspace(0.1, 0.02, steps) * (1.0 if name.startswith("head.") else 0.2)

    given = {name: (rates or falling)(name, value) for name, value in theta.items()}
    alpha = {name: value for name, value in given.items() if value is not None}
    content = encode_theta(theta, alpha)
    card = make_card(
        key.name,
        key.version,
        network=network,
        head=head,
        steps=steps,
        alpha={name: tuple(v.flatten(1).mean(1) if v.ndim > 1 else v) for name, v in alpha.items()},
        theta_sha256=sha256(content).hexdigest(),
        theta_bytes=len(content),
        **({"input": spec} | facts),
    )
    registry.save(card, content)


@dataclass(frozen=True)
class Problem:
    """A support set and queries for it."""

    model: ModelKey
    support: SupportSet
    query: Floats
    steps: int = 3


def problem(
    seed: int, shots: list[int], queries: int = 6, steps: int = 3, model: ModelKey = CONV
) -> Problem:
    """Noisy copies of one random pattern a class; `shots` examples of each, in mixed order."""
    rng = np.random.default_rng(seed)
    patterns = rng.uniform(0, 1, (len(shots), *SHAPES[model])).astype(np.float32)
    labels = rng.permutation(np.repeat(np.arange(len(shots)), shots))
    wanted = rng.integers(len(shots), size=queries)

    def noisy(rows: np.ndarray) -> Floats:
        noise = rng.normal(0, 0.2, (len(rows), *SHAPES[model]))
        return (patterns[rows] + noise).astype(np.float32)

    return Problem(model, SupportSet(noisy(labels), labels, len(shots)), noisy(wanted), steps)


def plain(model: LoadedModel, work: Problem) -> Adapted:
    """The inner loop alone on the unpadded support set, and every query by itself."""
    examples = Examples(
        torch.from_numpy(work.support.inputs),
        torch.from_numpy(work.support.labels),
        torch.ones(len(work.support.labels), dtype=torch.bool),
    )
    classes = torch.ones(work.support.ways, dtype=torch.bool)
    phi, losses, _ = adapt(model.learner, model.theta, examples, classes, model.alpha, work.steps)
    calibration = model.card.calibration
    shots = np.bincount(work.support.labels, minlength=work.support.ways)
    size = np.log([work.support.ways, work.support.ways / (1 / shots).sum()])
    a, *slopes = calibration.temperature if calibration else (0, 0, 0)
    temperature = math.exp(a + np.dot(slopes, size))
    features = model.learner.features(phi, examples.inputs).detach().numpy()
    means = [features[work.support.labels == way].mean(0) for way in range(work.support.ways)]
    rows, outliers = [], []
    for query in torch.from_numpy(work.query)[:, None]:
        rows.append((model.learner.logits(phi, query) / temperature).softmax(-1))
        feature = model.learner.features(phi, query).detach().numpy()[0]
        distances = [((feature - mean) ** 2).sum() for mean in means]
        near = math.log(min(distances))
        terms = [1, near, near - math.log(np.mean(distances)), *size, near * size[0]]
        outliers.append(
            1 / (1 + math.exp(-np.dot(calibration.outlier if calibration else [0] * 6, terms)))
        )
    answers = torch.cat(rows).detach().numpy() if rows else np.empty((0, work.support.ways))
    known = np.array(outliers, np.float32) if calibration else None
    return Adapted(tuple(losses.tolist()), Answers(answers, known))


def rows_of(adapted: Adapted) -> Floats:
    """The probabilities that an adaptation was answered with."""
    assert adapted.answers is not None
    return adapted.answers.probabilities


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls a condition that another thread brings about."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def start(engine: Engine) -> Engine:
    """Starts an engine and waits until it is ready."""
    engine.start()
    wait_until(lambda: engine.ready or engine.failed)
    assert engine.ready
    return engine


def submit(engine: Engine, key: str, work: Problem):
    """The future of a problem's adaptation, its φ kept under `key`."""
    return engine.adapt(work.model, key, work.support, work.steps, work.query)


def answer(engine: Engine, key: str, work: Problem) -> Adapted:
    """The engine's answer to a problem."""
    return submit(engine, key, work).result(SECONDS)


@dataclass
class Device:
    """Steers `Computer`: makes it wait at a gate, and fail on chosen inputs.

    Inputs are chosen by their very first number.
    """

    gate: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)
    poison: dict[float, BaseException] = field(default_factory=dict)
    adapted: int = 0
    """Support sets whose adaptation was begun."""

    WAIT = 1000.0

    def steer(self, monkeypatch) -> None:
        adapt_all, predict_all = Computer.adapt, Computer.predict

        def adapt(computer, supports, steps, queries=()):
            self.adapted += len(supports)
            for support in supports:
                self._meet(support.inputs)
            adapted = adapt_all(computer, supports, steps, queries or None)
            for query in queries if computer.sharing == ON_CPU else ():  # others by `predict`
                self._meet(np.empty(0) if query is None else query)
            return adapted

        def predict(computer, requests):
            for _, query in requests:
                self._meet(query)
            return predict_all(computer, requests)

        monkeypatch.setattr(Computer, "adapt", adapt)
        monkeypatch.setattr(Computer, "predict", predict)

    def hold(self, engine: Engine):
        """Submits work that keeps the device busy until `gate` is set; returns its future."""
        self.gate.clear()
        self.reached.clear()
        future = submit(engine, "held", marked(problem(0, [1, 1]), self.WAIT))
        assert self.reached.wait(SECONDS)
        return future

    def _meet(self, inputs: Floats) -> None:
        mark = float(inputs.flat[0]) if inputs.size else 0.0
        if mark == self.WAIT:
            self.reached.set()
            assert self.gate.wait(SECONDS)
        if mark in self.poison:
            raise self.poison[mark]


def marked(work: Problem, mark: float) -> Problem:
    """The same problem with its first support number replaced."""
    inputs = work.support.inputs.copy()
    inputs.flat[0] = mark
    support = SupportSet(inputs, work.support.labels, work.support.ways)
    return Problem(work.model, support, work.query, work.steps)


def frames(error: BaseException) -> int:
    """Length of an error's traceback, which keeps the frames' variables alive."""
    count, trace = 0, error.__traceback__
    while trace is not None:
        count, trace = count + 1, trace.tb_next
    return count
