"""Where a recipe's data lie."""

from pathlib import Path

import pytest

from app.errors import RecipeError
from app.training.data_parts import DataPart, FolderPart
from app.training.sources import data_folder

RECIPE, DATA = Path("models/birds"), Path("data")
OMNIGLOT = DataPart(distribution="omniglot", split="1200/423")


def pictures(folder: str | None) -> FolderPart:
    return FolderPart(distribution="folder", folder=folder, channels=3, size=(32, 32))


def test_what_is_given_goes_before_everything():
    for data in (OMNIGLOT, pictures("a"), pictures(None)):
        assert data_folder(data, Path("given"), RECIPE, DATA) == Path("given")


def test_known_distributions_lie_below_the_data_folder():
    assert data_folder(OMNIGLOT, None, RECIPE, DATA) == Path("data/omniglot")


def test_pictures_lie_where_the_recipe_says_from_its_own_folder_on():
    assert data_folder(pictures("pictures"), None, RECIPE, DATA) == Path("models/birds/pictures")
    assert data_folder(pictures("/birds"), None, RECIPE, DATA) == Path("/birds")


def test_a_recipe_that_does_not_say_where_needs_the_option():
    with pytest.raises(RecipeError, match=r"set `folder` in \[data\], or give --data"):
        data_folder(pictures(None), None, RECIPE, DATA)
