"""The table [data] of a recipe of one's own pictures."""

from pathlib import Path

import pytest

from app.data.pools import Augmentation
from app.errors import RecipeError
from app.registry.card import InputSpec
from app.training.recipe import Recipe, load_recipe
from tests.unit.training.helpers import text

OMNIGLOT = 'distribution = "omniglot"\nsplit = "background/evaluation"'
FOLDER = 'distribution = "folder"\nchannels = 3\nsize = [32, 48]'


def load(folder: Path, part: str, *changes: tuple[str, str]) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text((OMNIGLOT, part), ("symmetries = true\n", ""), *changes))
    return load_recipe(path)


def test_a_folder_of_pictures_needs_little(tmp_path):
    data = load(tmp_path, FOLDER).data
    assert data.input == InputSpec(kind="image", shape=(3, 32, 48), dark_on_light=False)
    assert (data.folder, data.split, data.split_seed) == (None, "64/16/20", 0)


def test_all_of_it_can_be_said(tmp_path):
    more = '\nfolder = "../birds"\nsplit = "mine.csv"\nsplit_seed = 3\ndark_on_light = true'
    data = load(tmp_path, FOLDER.replace("channels = 3", "channels = 1") + more).data
    assert data.input == InputSpec(kind="image", shape=(1, 32, 48), dark_on_light=True)
    assert (data.folder, data.split, data.split_seed) == ("../birds", "mine.csv", 3)


@pytest.mark.parametrize(("dark_on_light", "outside"), [(True, "zeros"), (False, "reflection")])
def test_what_moves_into_a_picture_is_paper_or_its_mirror_image(tmp_path, dark_on_light, outside):
    part = f"{FOLDER}\ndark_on_light = {str(dark_on_light).lower()}"
    augmentation = load(tmp_path, part).data.augmentation()
    assert augmentation.outside == outside
    assert augmentation.of_class.degrees == 10
    path = tmp_path / "recipe.toml"
    path.write_text(text())
    assert load_recipe(path).data.augmentation().outside == Augmentation.outside == "zeros"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("channels = 3\n", ""), r"data\.folder\.channels: Field required"),
        (("channels = 3", "channels = 4"), r"data\.folder\.channels: .*1 or 3"),
        (("size = [32, 48]", "size = 32"), r"data\.folder\.size: "),
        (("[32, 48]", "[4, 48]"), r"data\.folder\.size\.0: .*greater than or equal to 8"),
        (("[32, 48]", "[32, 4000]"), r"data\.folder\.size\.1: .*less than or equal to 1024"),
        (("channels", 'split = "50/50"\nchannels'), "data.folder: .*split must be three percent"),
        (("channels", 'split = "../a.csv"\nchannels'), "split must be .* name of a .csv file"),
        (("channels", "split_seed = -1\nchannels"), r"data\.folder\.split_seed: "),
        (("channels", "symmetries = true\nchannels"), "symmetries need a height and a width"),
        (("channels", 'colour = "red"\nchannels'), r"data\.folder\.colour: Extra inputs"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value[:40],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, FOLDER, change)


def test_the_digest_is_of_how_pictures_are_made_and_not_of_where_they_lie(tmp_path):
    def digest(*lines: str) -> str:
        return load(tmp_path, "\n".join([FOLDER, *lines])).digest()

    here = digest()
    assert digest('folder = "../birds"') == here
    others = [digest("split_seed = 1"), digest("dark_on_light = true"), digest('split = "a.csv"')]
    assert len({here, *others}) == 4
