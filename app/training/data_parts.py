"""The table [data] of a recipe: where tasks come from, and how they are varied in meta-training."""

import re
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.data.arrays import BY_ARRAY
from app.data.augment import Jitter, Outside
from app.data.distributions import SPLITS
from app.data.pools import Augmentation
from app.data.split import shares
from app.registry.card import InputSpec

Side = Annotated[int, Field(ge=8, le=1024)]


class Part(BaseModel):
    """A table of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Deformation(Part):
    """How far random deformations go; see `app.data.augment.Jitter` for the units."""

    degrees: float = Field(0.0, ge=0, le=180)
    scale: float = Field(0.0, ge=0, le=1)
    shear: float = Field(0.0, ge=0, le=1)
    shift: float = Field(0.0, ge=0, le=0.5)
    elastic: float = Field(0.0, ge=0, le=0.5)
    stroke: float = Field(0.0, ge=0, le=1)

    def jitter(self) -> Jitter:
        """The same for the data floor."""
        return Jitter(**self.model_dump())


class _Tasks(Part):
    """Where tasks come from, and how they are varied in meta-training."""

    distribution: str
    split: str
    symmetries: bool = False
    """Whether turned and mirrored classes count as new classes."""
    of_class: Deformation = Deformation()
    of_picture: Deformation = Deformation()

    def augmentation(self) -> Augmentation:
        """The same for the data floor."""
        return Augmentation(self.symmetries, self.of_class.jitter(), self.of_picture.jitter())


class DataPart(_Tasks):
    """A distribution of tasks that is known by its name."""

    distribution: Literal["omniglot", "mini-imagenet", "sinusoid"]
    split: str
    """One of the distribution's splits, see `app.data.distributions`."""

    @model_validator(mode="after")
    def _split_is_known(self) -> Self:
        known = SPLITS[self.distribution]
        if self.split not in known:
            raise ValueError(f"split must be one of {', '.join(known)}")
        return self


class FolderPart(_Tasks):
    """One's own pictures, see `app.data.folder`."""

    distribution: Literal["folder"]
    folder: str | None = None
    """Where the class folders lie, from the recipe's folder on; `--data` goes before it."""
    split: str = "64/16/20"
    """Percentages of the classes for training, validation and testing, or a CSV file in the folder
    with the lines `class,part`."""
    split_seed: int = Field(0, ge=0)
    channels: Literal[1, 3]
    size: tuple[Side, Side]
    """Height and width that pictures are made to fit."""
    dark_on_light: bool = False
    """Whether pictures are ink on paper: they are inverted, and white is let in around them."""

    @model_validator(mode="after")
    def _split_is_known(self) -> Self:
        if shares(self.split) is None and not re.match(r"^[^/\\]+\.csv$", self.split):
            raise ValueError(
                'split must be three percentages that add up to 100, as "64/16/20", or the name of '
                "a .csv file in the folder"
            )
        return self

    @model_validator(mode="after")
    def _only_squares_have_all_symmetries(self) -> Self:
        if self.symmetries and self.size[0] != self.size[1]:
            raise ValueError("symmetries need a height and a width that are the same")
        return self

    @property
    def input(self) -> InputSpec:
        """What the pictures are made into."""
        shape = (self.channels, *self.size)
        return InputSpec(kind="image", shape=shape, dark_on_light=self.dark_on_light)

    def augmentation(self) -> Augmentation:
        """The same for the data floor."""
        outside: Outside = "zeros" if self.dark_on_light else "reflection"
        return replace(super().augmentation(), outside=outside)


class ArraysPart(_Tasks):
    """One's own arrays, see `app.data.arrays`."""

    distribution: Literal["arrays"]
    file: str | None = None
    """The .npz file, from the recipe's folder on; `--data` goes before it."""
    split: str = "64/16/20"
    """Percentages of the classes for training, validation and testing, or "part" where the file has
    an array of this name."""
    split_seed: int = Field(0, ge=0)
    standardise: bool = False
    """Whether inputs are given mean 0 and standard deviation 1, for each place of the first axis,
    by the statistics of the training classes, which the model then keeps."""

    @model_validator(mode="after")
    def _split_is_known(self) -> Self:
        if shares(self.split) is None and self.split != BY_ARRAY:
            raise ValueError(
                'split must be three percentages that add up to 100, as "64/16/20", or '
                f'"{BY_ARRAY}" for the array of this name'
            )
        return self

    @model_validator(mode="after")
    def _is_not_varied(self) -> Self:
        if self.augmentation() != Augmentation(False, Jitter(), Jitter()):
            raise ValueError(
                "symmetries, of_class and of_picture vary pictures, and arrays are taken as they "
                "are: write what is varied into the file"
            )
        return self
