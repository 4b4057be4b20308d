"""A recipe: everything that decides what θ becomes, in one TOML file."""

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.data.pools import Augmentation, TaskShape
from app.errors import RecipeError
from app.learning.heads import FixedHead, LinearHead, SharedRowHead, build_head
from app.learning.learned_rates import RateForm
from app.registry.card import NAME_PATTERN
from app.training.data_parts import ArraysPart, DataPart, Deformation, FolderPart, Part


def _ascending(pair: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= pair[0] <= pair[1]:
        raise ValueError("must be [least, most] with 1 <= least <= most")
    return pair


def _known(head: str) -> str:
    build_head(head)
    return head


def _with_colon(name: str) -> str:
    """The name of a factory as one writes an import, package.module.factory, in its proper form."""
    module, dot, attribute = name.rpartition(".")
    return f"{module}:{attribute}" if dot and ":" not in name else name


RECIPE_FILE = "recipe.toml"
"""Of a model, in its folder."""
Positive = Annotated[float, Field(gt=0)]
Range = Annotated[tuple[int, int], AfterValidator(_ascending)]


class NetworkPart(BaseModel):
    """The network's name and its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: Annotated[str, AfterValidator(_with_colon)]
    """One of `app.learning.networks`, or "package.module:factory"."""


class InnerPart(Part):
    """The inner loop."""

    steps: int = Field(ge=1, le=50)
    """Inner steps in testing, and that a session takes unless it says otherwise."""
    alpha_head: list[Positive] = Field(min_length=1)
    """First values of α for the output rows, by step; later steps take the last."""
    alpha_network: list[Positive]
    """The same for everything else; empty, the network stays as it is (ANIL)."""
    alpha_form: RateForm = "step"
    """What α has one number for, see `app.learning.learned_rates`."""
    temperature: Positive = 1.0
    """What logits are divided by in the inner loss, see `app.learning.learner`."""

    @model_validator(mode="after")
    def _alphas_fit_the_steps(self) -> Self:
        most = self.steps if self.alpha_form == "step" else 1
        for name in ("alpha_head", "alpha_network"):
            if len(getattr(self, name)) > most:
                raise ValueError(f"{name} must have at most {most} numbers")
        return self


def _does_not_outlast_its_cosine(stage: Any) -> Any:
    if (stage.cosine_iterations or stage.iterations) < stage.iterations:
        raise ValueError("`cosine_iterations` must be at least the stage's iterations")
    return stage


class PretrainingStage(Part):
    """One stretch of pre-training: a classifier of all training classes."""

    algorithm: Literal["pretraining"]
    iterations: int = Field(ge=1)
    pictures: int = Field(ge=2)
    """Pictures in a batch."""
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(0.0, ge=0)
    cosine_iterations: int | None = Field(None, ge=1)
    """Iterations in which the learning rates fall, and the multi-step loss comes to be that of the
    last step, where the stage ends before; None: its own."""

    _cosine = model_validator(mode="after")(_does_not_outlast_its_cosine)


class Stage(Part):
    """One stretch of meta-training; the learning rate falls by a cosine."""

    iterations: int = Field(ge=1)
    algorithm: Literal[
        "maml", "first-order-maml", "anil", "multi-step-maml", "reptile", "pretraining-on-tasks"
    ]
    steps: int = Field(ge=1, le=20)
    """Inner steps in training."""
    ways: Range
    """Classes of a task; in regression the number of outputs."""
    shots: Range
    queries: int = Field(ge=1)
    tasks: int = Field(ge=1)
    """Tasks in a meta-batch."""
    tasks_at_once: int | None = Field(None, ge=1)
    """Most tasks of one batched computation, which bounds the memory; None: as is fastest."""
    learning_rate: float = Field(gt=0)
    final_learning_rate: float = Field(0.0, ge=0)
    cosine_iterations: int | None = Field(None, ge=1)
    """Iterations in which the learning rates fall, and the multi-step loss comes to be that of the
    last step, where the stage ends before; None: its own."""
    alpha_learning_rate: float = Field(0.0, ge=0)
    """Learning rate of α's parameters; it falls in the same way, to zero. With zero α stays."""
    of_class: Deformation | None = None
    """In place of that in [data], for this stage; None: the same."""
    of_picture: Deformation | None = None
    turned_together: bool = False
    """Whether a task's classes stand in one of the symmetries, which makes it harder."""

    _cosine = model_validator(mode="after")(_does_not_outlast_its_cosine)

    @model_validator(mode="after")
    def _reptile_deals_out_its_shots(self) -> Self:
        shots, most = self.shots
        if self.algorithm == "reptile" and (shots != most or shots % self.steps):
            raise ValueError("reptile's shots must be one multiple of its steps")
        return self

    @model_validator(mode="after")
    def _alpha_is_learned_by_a_gradient(self) -> Self:
        if self.alpha_learning_rate and self.algorithm in ("reptile", "pretraining-on-tasks"):
            raise ValueError(
                f"{self.algorithm} gives no gradient of α: `alpha_learning_rate` must be 0"
            )
        return self

    @property
    def second_order(self) -> bool:
        """Whether inner gradients are no constants for the meta-gradient."""
        return self.algorithm in ("maml", "multi-step-maml")

    def shape(self) -> TaskShape:
        """The tasks of a meta-batch."""
        return TaskShape(self.ways, self.shots, self.queries)


class Measure(Part):
    """Tasks to measure accuracy on: N ways, K shots."""

    ways: int = Field(ge=1)
    shots: int = Field(ge=1)
    queries: int = Field(15, ge=1)
    tasks: int = Field(ge=2)


class Validation(Measure):
    """When and on what the job validates, on classes held out of training."""

    every: int = Field(ge=1)
    """Meta-iterations between two validations, each followed by a checkpoint."""


class Recipe(Part):
    """The whole recipe."""

    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    description: str
    intended_use: str = ""
    """What the model is for, for its model card."""
    out_of_scope: str = ""
    """What it is not for."""
    seed: int = Field(ge=0)
    data: Annotated[FolderPart | ArraysPart | DataPart, Field(discriminator="distribution")]
    initial: str | None = None
    """A version to begin with, as a path from the recipe's folder: its network, and its head where
    that is of the same size. None: a fresh θ."""
    network: NetworkPart
    head: Annotated[str, AfterValidator(_known)]
    inner: InnerPart
    stages: list[Annotated[PretrainingStage | Stage, Field(discriminator="algorithm")]] = Field(
        min_length=1
    )
    gradient_clip: float = Field(10.0, gt=0)
    """Largest norm of the meta-gradient."""
    validation: Validation
    figures: list[Measure] = Field([])
    """What is measured at the end, on the test classes, for the card."""

    @model_validator(mode="after")
    def _tasks_fit_the_head(self) -> Self:
        head = build_head(self.head)
        ways = {number for stage in self.task_stages for number in stage.ways}
        ways |= {part.ways for part in (self.validation, *self.figures)}
        wanted = {FixedHead: getattr(head, "ways", 0), LinearHead: getattr(head, "outputs", 0)}
        if type(head) in wanted and ways != {wanted[type(head)]}:
            raise ValueError(f"with the head {self.head!r} all `ways` must be {wanted[type(head)]}")
        if not isinstance(head, LinearHead) and min(ways) < 2:
            raise ValueError("`ways` must begin at two classes: one has nothing to tell apart")
        if isinstance(head, LinearHead) != (self.data.distribution == "sinusoid"):
            raise ValueError('the head "linear-1" belongs to the sinusoid, and no other does')
        return self

    @model_validator(mode="after")
    def _algorithms_fit_the_rest(self) -> Self:
        algorithms = {stage.algorithm for stage in self.task_stages}
        if "pretraining-on-tasks" in algorithms and self.data.distribution != "sinusoid":
            raise ValueError(
                'the algorithm "pretraining-on-tasks" makes one function of all tasks: where a '
                'task is a set of classes there is none; use "pretraining"'
            )
        if "reptile" in algorithms and isinstance(build_head(self.head), SharedRowHead):
            raise ValueError(
                'the algorithm "reptile" moves every row of a head by itself: use one that has '
                'rows of its own, as "fixed-5"'
            )
        if "anil" in algorithms and self.inner.alpha_network:
            raise ValueError(
                'the algorithm "anil" moves the head alone, in testing too: `alpha_network` of '
                "[inner] must be empty"
            )
        return self

    @model_validator(mode="after")
    def _batch_norm_sees_no_padding(self) -> Self:
        if self.ragged and (self.network.model_extra or {}).get("norm") == "batch":
            raise ValueError(
                "batch norm would take padding into its statistics: give `shots` as one number, "
                "like [1, 1]"
            )
        return self

    @model_validator(mode="after")
    def _pretraining_stands_alone(self) -> Self:
        if self.pretrains and (self.task_stages or self.data.distribution == "sinusoid"):
            raise ValueError(
                'the algorithm "pretraining" needs classes, and a recipe of its own: begin another '
                "with its θ by `initial`"
            )
        return self

    @model_validator(mode="after")
    def _only_pictures_are_deformed(self) -> Self:
        own = [
            jitter for stage in self.task_stages for jitter in (stage.of_class, stage.of_picture)
        ]
        if any(own) and self.data.distribution in ("arrays", "sinusoid"):
            raise ValueError("a stage's of_class and of_picture deform pictures, and here are none")
        return self

    @model_validator(mode="after")
    def _only_what_is_turned_is_turned_together(self) -> Self:
        if any(stage.turned_together for stage in self.task_stages) and not self.data.symmetries:
            raise ValueError("a stage's turned_together needs `symmetries = true` in [data]")
        return self

    def augmentation(self, stage: PretrainingStage | Stage) -> Augmentation:
        """How classes and pictures are varied in one of the stages."""
        if isinstance(stage, PretrainingStage):
            return self.data.augmentation()
        own = {"of_class": stage.of_class, "of_picture": stage.of_picture}
        given = {name: jitter for name, jitter in own.items() if jitter is not None}
        varied = self.data.model_copy(update=given).augmentation()
        return replace(varied, turned_together=stage.turned_together)

    @property
    def task_stages(self) -> list[Stage]:
        """The stages that draw tasks."""
        return [stage for stage in self.stages if isinstance(stage, Stage)]

    @property
    def pretrains(self) -> bool:
        """Whether θ is made without tasks, by a classifier of all classes."""
        return any(isinstance(stage, PretrainingStage) for stage in self.stages)

    @property
    def ragged(self) -> bool:
        """Whether classes of a task may differ in their number of shots."""
        return any(least != most for stage in self.task_stages for least, most in [stage.shots])

    @property
    def second_order(self) -> bool:
        """Whether a stage takes a gradient through the network's gradient."""
        return bool(self.inner.alpha_network) and any(
            stage.second_order for stage in self.task_stages
        )

    @property
    def iterations(self) -> int:
        """Meta-iterations of all stages together."""
        return sum(stage.iterations for stage in self.stages)

    def stage_at(self, iteration: int) -> tuple[PretrainingStage | Stage, float]:
        """The stage of an iteration (from 0), and the share of its cosine that is done, in [0, 1).

        A stage without `cosine_iterations` ends with its cosine.
        """
        for stage in self.stages:
            if iteration < stage.iterations:
                return stage, iteration / (stage.cosine_iterations or stage.iterations)
            iteration -= stage.iterations
        raise ValueError("past the last stage")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, defaults included."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 of what decides θ: no comments, defaults, texts, figures or place of pictures."""
        texts = {"description": True, "intended_use": True, "out_of_scope": True, "figures": True}
        exclude = texts | {"data": {"folder", "file"}}
        meaning = self.model_dump_json(exclude_defaults=True, exclude=exclude)
        return hashlib.sha256(meaning.encode()).hexdigest()


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        RecipeError: the file is missing, no TOML or not a valid recipe; the message names the
            field.
    """
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        broken = "; ".join(
            f"{'.'.join(map(str, issue['loc'])) or 'recipe'}: {issue['msg']}"
            for issue in error.errors()
        )
        raise RecipeError(f"{path} is no valid recipe: {broken}") from error
