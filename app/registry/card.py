"""The card: what a model version is, how it was made and what was measured."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class InputSpec(BaseModel):
    """What one input is: `shape` is (C, H, W) for pictures, anything else for plain values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["image", "values"]
    shape: tuple[int, ...]
    dark_on_light: bool = False
    """Whether pictures are inverted, so that ink becomes 1 and the ground 0."""


class AccuracyFigure(BaseModel):
    """One measured figure: percent, with the protocol it was measured by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str
    protocol: Literal["inductive"]
    ways: int
    shots: int
    queries: int
    """Queries of each class."""
    tasks: int
    seed: int
    accuracy: float
    confidence_interval_95: tuple[float, float]
    accuracy_by_step: tuple[float, ...]
    nearest_class_mean: float
    """Accuracy of the nearest class mean of θ's own features, in percent, on the same tasks."""


class Card(BaseModel):
    """The card of one model version, `card.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    description: str
    task: Literal["classification"]
    input: InputSpec
    network: dict[str, Any]
    """`name` and the arguments of the network, as in the recipe."""
    head: str
    steps: int = Field(ge=1)
    """Inner steps that θ was trained for, and the default of a session."""
    alpha: dict[str, tuple[float, ...]]
    """Learned inner step sizes by parameter, one number per step."""
    trained_ways: tuple[int, int]
    trained_shots: tuple[int, int]
    theta_sha256: str
    theta_bytes: int
    parameters: int
    created_at: str
    recipe: dict[str, Any]
    seed: int
    data_digest: str
    iterations: int
    wall_seconds: float
    made_with: dict[str, str]
    """Versions of the libraries that made θ, the device and its threads."""
    figures: tuple[AccuracyFigure, ...]
