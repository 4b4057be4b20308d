"""Stand-ins for the device and for the models on disk.

The engine is honest: it really learns from the support set, by nearest class mean on the raw
inputs, so that a test can ask for the right answer and not only for an answer.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from io import BytesIO

import numpy as np
from PIL import Image

from app.engine.requests import Adapted, Answers, Floats, ModelKey, PhiMissing, SupportSet
from app.registry.card import AccuracyFigure, Card, InputSpec
from app.services.views import Example, ImageInput, ValuesInput


@dataclass(frozen=True)
class Call:
    """One call of the engine, as the service made it."""

    method: str
    model: ModelKey
    phi_key: str
    owner: str
    support: SupportSet | None = None
    steps: int | None = None
    query: Floats | None = None


@dataclass
class FakeEngine:
    """φ is the mean of each class; probabilities are softmax(-‖x - mean‖²), and an outlier is what
    is far from all of them.

    `failure`: every future raises it. `refusal`: every call raises it at once. `keeps = False`: no
    φ is kept, so that every later use is a miss. `answers = False`: futures stay pending until
    `release`. `cards`: what it holds, at first what a new `FakeRegistry` has.
    """

    failure: Exception | None = None
    refusal: Exception | None = None
    keeps: bool = True
    answers: bool = True
    ready: bool = True
    failed: bool = False
    cards: dict[ModelKey, Card] = field(default_factory=lambda: FakeRegistry().all())
    phi: dict[str, Floats] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    futures: list[Future] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    held: list[Callable[[], None]] = field(default_factory=list)

    def start(self) -> None:
        self.ready = True

    def stop(self, drain_seconds: float) -> None:
        self.ready = False

    def card(self, model: ModelKey) -> Card | None:
        return self.cards.get(model)

    def read(self, registry: "FakeRegistry") -> None:
        """Hold what is in a registry now."""
        self.cards = registry.all()

    def adapt(
        self,
        model: ModelKey,
        phi_key: str,
        support: SupportSet,
        steps: int,
        query: Floats | None,
        owner: str,
        *,
        export: bool = False,
    ) -> Future[Adapted]:
        self.calls.append(Call("adapt", model, phi_key, owner, support, steps, query))

        def answer() -> Adapted:
            means = class_means(support)
            if self.keeps:
                self.phi[phi_key] = means
            return Adapted(
                support_loss=tuple(
                    cross_entropy(probabilities(means, support.inputs, step / steps), support)
                    for step in range(steps + 1)
                ),
                answers=None if query is None else answers(means, query),
                weights={"means": means} if export else None,
            )

        return self._future(answer)

    def predict(self, model: ModelKey, phi_key: str, query: Floats, owner: str) -> Future[Answers]:
        self.calls.append(Call("predict", model, phi_key, owner, query=query))
        return self._future(lambda: answers(self._kept(phi_key), query))

    def weights(self, model: ModelKey, phi_key: str, owner: str) -> Future[dict[str, Floats]]:
        self.calls.append(Call("weights", model, phi_key, owner))
        return self._future(lambda: {"means": self._kept(phi_key)})

    def forget(self, phi_key: str) -> None:
        self.forgotten.append(phi_key)
        self.phi.pop(phi_key, None)

    def release(self) -> None:
        """Answer what is pending, and from now on at once."""
        self.answers = True
        while self.held:
            self.held.pop(0)()

    def methods(self) -> list[str]:
        """The names of the methods called so far, in order."""
        return [call.method for call in self.calls]

    def _kept(self, phi_key: str) -> Floats:
        if phi_key not in self.phi:
            raise PhiMissing(phi_key)
        return self.phi[phi_key]

    def _future(self, answer) -> Future:
        if self.refusal is not None:
            raise self.refusal
        future: Future = Future()
        self.futures.append(future)

        def resolve() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                if self.failure is not None:
                    raise self.failure
                future.set_result(answer())
            except Exception as error:
                future.set_exception(error)

        if self.answers:
            resolve()
        else:
            self.held.append(resolve)
        return future


def class_means(support: SupportSet) -> Floats:
    """Mean input of each class, (ways, *input_shape)."""
    return np.stack(
        [support.inputs[support.labels == way].mean(axis=0) for way in range(support.ways)]
    )


def answers(means: Floats, inputs: Floats) -> Answers:
    """Probabilities, and 1 - exp(-‖x - mean‖²) of the nearest mean."""
    with np.errstate(all="ignore"):
        nearest = distances(means, inputs).min(axis=-1, initial=np.inf)
        return Answers(probabilities(means, inputs), 1 - np.exp(-nearest))


def distances(means: Floats, inputs: Floats) -> Floats:
    """‖x - mean‖², (N, ways)."""
    differences = inputs[:, None] - means[None]  # (N, ways, *input_shape)
    return (differences**2).reshape(len(inputs), len(means), -1).sum(axis=-1)


def probabilities(means: Floats, inputs: Floats, sharpness: float = 1.0) -> Floats:
    """softmax(-sharpness ‖x - mean‖²) over the classes, (N, ways)."""
    with np.errstate(all="ignore"):  # huge inputs overflow, here as on a device
        logits = -sharpness * distances(means, inputs)
        exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)


def cross_entropy(rows: Floats, support: SupportSet) -> float:
    """Mean negative log probability of the true classes."""
    return float(-np.log(np.maximum(rows[np.arange(len(rows)), support.labels], 1e-30)).mean())


def make_card(name: str, version: int = 1, **changes) -> Card:
    """A card of a tiny model; `changes` replace its fields."""
    fields = {
        "name": name,
        "version": version,
        "description": f"The tests' tiny model {name}.",
        "task": "classification",
        "input": InputSpec(kind="values", shape=(4,)),
        "network": {"name": "mlp", "hidden": [8]},
        "head": "shared-row",
        "steps": 3,
        "alpha": {"weight": (0.1, 0.1, 0.1)},
        "trained_ways": (2, 5),
        "trained_shots": (1, 5),
        "theta_sha256": sha256(f"{name} {version}".encode()).hexdigest(),
        "theta_bytes": 128,
        "parameters": 32,
        "created_at": "2026-01-01T00:00:00Z",
        "recipe": {},
        "seed": 0,
        "data_digest": "0" * 64,
        "iterations": 10,
        "wall_seconds": 1.0,
        "made_with": {"torch": "2"},
        "figures": (
            AccuracyFigure(
                split="test",
                protocol="inductive",
                ways=5,
                shots=1,
                queries=15,
                tasks=100,
                seed=0,
                accuracy=90.0,
                confidence_interval_95=(88.0, 92.0),
                accuracy_by_step=(20.0, 60.0, 80.0, 90.0),
                nearest_class_mean=85.0,
            ),
        ),
    }
    return Card(**{**fields, **changes})


class FakeRegistry:
    """Two tiny models: `omniglot` takes pictures of 28 x 28, `values` takes four numbers."""

    def __init__(self):
        omniglot = InputSpec(kind="image", shape=(1, 28, 28), dark_on_light=True)
        self._cards: dict[ModelKey, Card] = {}
        self.put(make_card("omniglot", input=omniglot, steps=5))
        self.put(make_card("values"))

    def put(self, card: Card) -> None:
        self._cards[ModelKey(card.name, card.version)] = card

    def remove(self, name: str, version: int) -> None:
        del self._cards[ModelKey(name, version)]

    def names(self) -> list[str]:
        return sorted({key.name for key in self._cards})

    def versions(self, name: str) -> list[int]:
        return sorted(key.version for key in self._cards if key.name == name)

    def holds(self, name: str, version: int) -> bool:
        return ModelKey(name, version) in self._cards

    def all(self) -> dict[ModelKey, Card]:
        return dict(self._cards)


@dataclass
class FakeClock:
    """A clock that stands until it is moved."""

    moment: datetime = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


def values(*numbers: float) -> ValuesInput:
    """An input of the model `values`."""
    return ValuesInput(list(numbers))


def picture(pixels: np.ndarray) -> ImageInput:
    """A PNG of (H, W) or (H, W, 3) uint8."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageInput(buffer.getvalue())


def example(label: str, *numbers: float) -> Example:
    """A labelled example for the model `values`."""
    return Example(values(*numbers), label)
