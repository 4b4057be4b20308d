"""The card: what a model version is, how it was made and what was measured."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.learning.calibration import OUTLIER_TERMS, TEMPERATURE_TERMS

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class InputSpec(BaseModel):
    """What one input is: `shape` is (C, H, W) for pictures, anything else for plain values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["image", "values"]
    shape: tuple[int, ...]
    dark_on_light: bool = False
    """Whether pictures are inverted, so that ink becomes 1 and the ground 0."""
    mean: tuple[float, ...] | None = None
    """What the model subtracts of values first, for each place of the first axis; None: nothing."""
    scale: tuple[float, ...] | None = None
    """What it then divides them by."""

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        sizes = {len(part) for part in (self.mean, self.scale) if part is not None}
        if sizes and (sizes != {self.shape[0]} or None in (self.mean, self.scale)):
            raise ValueError("mean and scale need as many numbers as the first axis is long")
        return self


Protocol = Literal["inductive", "transductive"]
"""Whether each query was predicted on its own, or with the statistics of its query set."""


class AccuracyFigure(BaseModel):
    """One measured figure: percent, with the protocol it was measured by."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str
    protocol: Protocol
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
    nearest_class_mean_interval_95: tuple[float, float] | None = None
    calibration_error: float | None = None
    """Expected calibration error of the probabilities, in [0, 1]; None: not calibrated."""
    outlier_auroc: float | None = None
    """Area under the ROC curve of `outlier` against queries of as many other classes."""


class ErrorFigure(BaseModel):
    """One measured figure of regression: the mean squared error, by inner step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: str
    protocol: Protocol
    shots: int
    queries: int
    tasks: int
    seed: int
    mse: float
    confidence_interval_95: tuple[float, float]
    mse_by_step: tuple[float, ...]


class Calibration(BaseModel):
    """What makes confidence honest; `app.learning.calibration` says what the numbers are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: tuple[float, ...] = Field(
        min_length=TEMPERATURE_TERMS, max_length=TEMPERATURE_TERMS
    )
    outlier: tuple[float, ...] = Field(min_length=OUTLIER_TERMS, max_length=OUTLIER_TERMS)


class Card(BaseModel):
    """The card of one model version, `card.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    description: str
    intended_use: str = ""
    out_of_scope: str = ""
    task: Literal["classification", "regression"]
    input: InputSpec
    network: dict[str, Any]
    """`name` and the arguments of the network, as in the recipe."""
    head: str
    inner_temperature: float = Field(1.0, gt=0)
    """What logits are divided by in the loss that the inner loop descends on."""
    steps: int = Field(ge=1)
    """Inner steps in testing, and the default of a session."""
    alpha: dict[str, tuple[float, ...]]
    """Inner step sizes by parameter, one number per step; where each number of the parameter has
    its own (Meta-SGD), their mean. A parameter without α is not adapted."""
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
    peak_memory_bytes: int | None = None
    """Most memory that a process of meta-training held, on a GPU its own; None: not measured."""
    made_with: dict[str, str]
    """Versions of the libraries that made θ, the device, its threads and processes."""
    calibration: Calibration | None = None
    """None: probabilities are softmax(logits), and nothing is said of outliers."""
    figures: tuple[AccuracyFigure | ErrorFigure, ...]
