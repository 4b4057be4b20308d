"""What the use cases take and return: plain dataclasses, no HTTP and no database rows."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class ImageInput:
    """An encoded picture: the bytes of a PNG, JPEG or WebP file."""

    data: bytes


@dataclass(frozen=True)
class ValuesInput:
    """Nested lists of numbers of the model's exact input shape."""

    values: Any


@dataclass(frozen=True)
class ArrayInput:
    """An array of the model's exact input shape: float32 values, or the uint8 pixels of a picture.

    Pixels are those of an encoded picture of that size, channels first.
    """

    array: NDArray[Any]


Input = ImageInput | ValuesInput | ArrayInput


@dataclass(frozen=True)
class Example:
    """One labelled example."""

    input: Input
    label: str


@dataclass(frozen=True)
class Idempotency:
    """A caller's promise that `key` always comes with this same request."""

    key: str
    request_sha256: str


@dataclass(frozen=True)
class NewSession:
    """What a session is made of; None stands for the default."""

    support: list[Example]
    model: str | None = None
    query: list[Input] | None = None
    steps: int | None = None
    ttl_seconds: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Prediction:
    """The answer to one query: `label` is the most probable one.

    `outlier` is the probability that the query belongs to none of the session's labels, None where
    the model was not calibrated.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    outlier: float | None = None


@dataclass(frozen=True)
class SessionView:
    """A session as its owner sees it. Times are in UTC."""

    id: str
    model: str
    model_version: int
    theta_sha256: str
    task: str
    revision: int
    labels: list[str]
    shots: dict[str, int]
    steps: int
    support_loss: list[float]
    created_at: datetime
    expires_at: datetime | None
    metadata: dict[str, Any]
    predictions: list[Prediction] | None = None


@dataclass(frozen=True)
class Predictions:
    """The answers to a query, and the revision that gave them."""

    session: str
    revision: int
    data: list[Prediction]


@dataclass(frozen=True)
class Page:
    """One page of sessions, newest first."""

    data: list[SessionView]
    has_more: bool


@dataclass(frozen=True)
class Evaluation:
    """Accuracy on labelled examples.

    `confusion[true][predicted]` counts them, over all of the session's labels.
    """

    n: int
    accuracy: float
    confidence_interval_95: tuple[float, float]
    confusion: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Weights:
    """φ as a safetensors file."""

    content: bytes
