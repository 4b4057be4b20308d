"""The bodies of the requests, strict, and of the answers. The OpenAPI document is made of them."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainValidator,
    Tag,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import TypeAliasType

from app.api import examples
from app.api.checks import check_metadata, check_numbers, decode_base64, flaw
from app.registry import AccuracyFigure, Card, InputSpec
from app.services import views
from app.services.checks import default_steps
from app.settings import Settings

# --- Requests ------------------------------------------------------------------------------------


class RequestBody(BaseModel):
    """Nothing is coerced, nothing unknown is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


Base64 = Annotated[
    bytes,
    BeforeValidator(decode_base64),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "minLength": 4}),
]
NestedNumbers = TypeAliasType("NestedNumbers", "list[float | NestedNumbers]")
Numbers = Annotated[list[Any], PlainValidator(check_numbers, json_schema_input_type=NestedNumbers)]
Count = Annotated[int, Field(ge=1)]


class ImageInput(RequestBody):
    """A picture, for a model whose input is of kind `image`."""

    image: Base64
    """A PNG, JPEG or WebP file in base64 (RFC 4648). It is made the model's channels and size."""

    def view(self) -> views.Input:
        """The input as the use cases take it."""
        return views.ImageInput(self.image)


class ValuesInput(RequestBody):
    """Plain numbers, of the model's exact input shape."""

    values: Numbers
    """A nested list of finite numbers."""

    def view(self) -> views.Input:
        """The input as the use cases take it."""
        return views.ValuesInput(self.values)


def _kind(value: object) -> str | None:
    if not isinstance(value, dict):
        return None
    kinds = [kind for kind in ("image", "values") if kind in value]
    return f"<{kinds[0]}>" if len(kinds) == 1 else None


Input = Annotated[
    Annotated[ImageInput, Tag("<image>")] | Annotated[ValuesInput, Tag("<values>")],
    Discriminator(
        _kind,
        custom_error_type="input_kind",
        custom_error_message="must be an object with either `image` or `values`",
    ),
]


Label = Annotated[str, Field(min_length=1, max_length=200)]


class Example(RequestBody):
    """One labelled example."""

    input: Input
    label: Label
    """The class that the input belongs to, in the caller's own words."""

    def view(self) -> views.Example:
        """The example as the use cases take it."""
        return views.Example(self.input.view(), self.label)


Support = Annotated[list[Example], Field(min_length=1)]
Query = Annotated[list[Input], Field(min_length=1)]


class SessionSettings(RequestBody):
    """What a new session is besides its examples."""

    model: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """The model to start from; the server's default model where none is given."""
    steps: Count | None = None
    """Inner gradient steps; what the model was trained for by default."""
    ttl_seconds: Count | None = None
    """Seconds until the session ends; it stays until it is deleted by default."""
    metadata: Annotated[dict[str, Any], AfterValidator(check_metadata)] | None = None
    """Anything the caller wants to find again; it is given back as it came."""


class NewSession(SessionSettings):
    """What a personal model is made of."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.NEW_SESSION]})

    support: Support
    """Labelled examples, of at least two labels. Their number may differ between labels."""
    query: Query | None = None
    """Inputs to predict at once, each on its own."""
    top: Count | None = None
    """How many of the most probable labels an answer names; all by default. Only beside `query`."""

    @model_validator(mode="after")
    def _check_top(self) -> Self:
        if self.top is not None and self.query is None:
            raise flaw("/top", "has a meaning only beside `query`")
        return self

    def view(self) -> views.NewSession:
        """The new session as the use cases take it."""
        return views.NewSession(
            support=[example.view() for example in self.support],
            model=self.model,
            query=None if self.query is None else [item.view() for item in self.query],
            steps=self.steps,
            ttl_seconds=self.ttl_seconds,
            metadata=self.metadata or {},
        )


class NewQuery(RequestBody):
    """Inputs to predict."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.NEW_QUERY]})

    query: Query
    """Each is predicted on its own."""
    top: Count | None = None
    """How many of the most probable labels an answer names; all by default."""

    def view(self) -> list[views.Input]:
        """The query as the use cases take it."""
        return [item.view() for item in self.query]


class MoreExamples(RequestBody):
    """Examples to learn as well, of labels known or new."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.MORE_EXAMPLES]})

    support: Support

    def view(self) -> list[views.Example]:
        """The examples as the use cases take them."""
        return [example.view() for example in self.support]


class NewEvaluation(RequestBody):
    """Labelled examples to measure the session by; it does not learn them."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.NEW_EVALUATION]})

    examples: Support
    """Each label must be one of the session's."""

    def view(self) -> list[views.Example]:
        """The examples as the use cases take them."""
        return [example.view() for example in self.examples]


# --- Answers -------------------------------------------------------------------------------------


class AnswerBody(BaseModel):
    """Made of the use cases' views, field by field. A number that is not finite is our error."""

    model_config = ConfigDict(
        from_attributes=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


class Prediction(AnswerBody):
    """What one input is taken for."""

    label: str
    """The most probable label."""
    probability: float
    """Its probability, in [0, 1]."""
    probabilities: dict[str, float]
    """Probability by label, over all labels of the session or the `top` most probable."""
    outlier: float | None
    """Probability that the input belongs to none of the session's labels, in [0, 1], judged as if
    half of all inputs did; null where the model was not calibrated. The other probabilities are
    those of an input that does belong to one."""


class Session(AnswerBody):
    """A stored adaptation of a model to one support set."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SESSION]})

    id: str
    object: Literal["session"] = "session"
    model: str
    model_version: int
    theta_sha256: str
    """SHA-256 of θ, the weights the adaptation started from."""
    task: Literal["classification"]
    revision: int
    """1 for a new session, and one more each time examples were added."""
    labels: list[str]
    """In the order of their first appearance."""
    shots: dict[str, int]
    """Number of support examples by label."""
    steps: int
    support_loss: list[float]
    """Mean cross-entropy on the support set, in nats: before the first step and after each."""
    created_at: datetime
    expires_at: datetime | None
    metadata: dict[str, Any]
    predictions: list[Prediction] | None
    """One for each input of the request's `query`; null where there was none."""


class SessionList(AnswerBody):
    """One page of sessions, newest first."""

    object: Literal["list"] = "list"
    data: list[Session]
    has_more: bool
    """Whether older sessions follow: ask again with `after` set to the last id of this page."""


class PredictionList(AnswerBody):
    """The answers to a query, in its order."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.PREDICTION_LIST]})

    object: Literal["list"] = "list"
    session: str
    revision: int
    """The revision that gave the answers."""
    data: list[Prediction]


class Evaluation(AnswerBody):
    """How well a session does on labelled examples that it has not learned."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EVALUATION]})

    object: Literal["evaluation"] = "evaluation"
    n: int
    """Number of examples."""
    accuracy: float
    """Share of examples whose most probable label is the right one."""
    confidence_interval_95: tuple[float, float]
    """Bounds of the accuracy."""
    confusion: dict[str, dict[str, int]]
    """Number of examples by right label, then by predicted label."""


class Limits(AnswerBody):
    """What one session or request may hold at most."""

    max_classes: int
    """Distinct labels of a session."""
    max_support: int
    """Support examples of a session, all its revisions together."""
    max_query: int
    """Inputs of one query, or examples of one evaluation."""
    max_steps: int
    """Inner steps of a session."""
    max_image_pixels: int
    """Pixels of a picture, before it is made smaller."""
    max_metadata_bytes: int
    """Metadata of a session, in bytes of JSON."""
    max_ttl_seconds: int
    """Time to live of a session, in seconds."""
    max_body_bytes: int
    """Body of one request, in bytes."""


class Model(AnswerBody):
    """The newest version of a model: what it takes, how it adapts, and what was measured."""

    object: Literal["model"] = "model"
    name: str
    version: int
    versions: list[int]
    """Every version that is served, the newest last. A session keeps the one it began with."""
    default: bool
    """Whether a session that names no model gets this one."""
    task: Literal["classification"]
    description: str
    input: InputSpec
    steps: int
    """The default of a session: inner steps that θ was trained for, at most the limit."""
    alpha: dict[str, tuple[float, ...]]
    """Inner step sizes by parameter, one number per step."""
    trained_ways: tuple[int, int]
    """Fewest and most labels of the tasks in training."""
    trained_shots: tuple[int, int]
    """Fewest and most examples of a label in training."""
    theta_sha256: str
    parameters: int
    """Number of weights."""
    created_at: str
    limits: Limits
    figures: tuple[AccuracyFigure, ...]
    """Accuracy in percent, with the protocol it was measured by."""

    @classmethod
    def of(cls, card: Card, versions: list[int], settings: Settings) -> Self:
        """What a card says, and what this server allows."""
        told = {name: getattr(card, name) for name in cls.model_fields.keys() & Card.model_fields}
        return cls(
            **told | {"steps": default_steps(card, settings)},
            versions=versions,
            default=card.name == settings.default_model,
            limits=Limits.model_validate(settings),
        )


class ModelList(AnswerBody):
    """The models of this server, by name."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(AnswerBody):
    """A probe's good news; the bad news are problems."""

    status: Literal["live", "ready"]


class ProblemIssue(AnswerBody):
    """One broken rule."""

    pointer: str
    """JSON pointer (RFC 6901) into the body, or `#/parameters/<name>` for a parameter."""
    detail: str


class Problem(AnswerBody):
    """What went wrong, as RFC 9457 has it."""

    type: str
    title: str
    status: int
    detail: str
    """What happened and what to do next."""
    code: str
    """Stable name of the kind of problem."""
    request_id: str
    """The `X-Request-ID` of this answer, for the log."""


class InvalidInputProblem(Problem):
    """A request that breaks a rule of the schema or of the model's limits."""

    errors: list[ProblemIssue]
    """At most 20 of the broken rules."""
