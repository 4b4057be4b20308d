"""A recipe that fits what a folder of pictures holds."""

from pathlib import Path

import pytest

from app.data.folder import load_folder
from app.data.pools import TaskShape
from app.errors import DataError, RecipeError
from app.registry.registry import build_learner
from app.training.new_recipe import New, new_recipe
from app.training.recipe import Recipe, load_recipe
from app.training.sources import data_folder
from tests.unit.training.pictures import make_folder


def make(tmp_path: Path, counts: list[int], **look) -> tuple[New, Recipe]:
    folder = make_folder(tmp_path / "pictures", counts, **look)
    new = new_recipe("birds", folder, tmp_path / "models")
    return new, load_recipe(new.path)


def check_fits(recipe: Recipe, tmp_path: Path) -> None:
    """All tasks that the recipe asks for can be drawn, and its network can be built."""
    data = recipe.data
    folder = data_folder(data, None, tmp_path / "models" / "birds", Path("nowhere"))
    pools = load_folder(folder, data.input, data.split, data.split_seed)
    for stage in recipe.task_stages:
        pools["train"].sample(stage.shape(), 1, (0,))
    for part, each in [("validation", recipe.validation), *(("test", f) for f in recipe.figures)]:
        shape = TaskShape((each.ways, each.ways), (each.shots, each.shots), 1)
        pools[part].sample(shape, 1, (0,))
    build_learner(data.input, recipe.network.model_dump(), recipe.head)


def test_drawings_get_a_small_grey_input_and_more_classes_by_turning(tmp_path):
    new, recipe = make(tmp_path, [12] * 30)
    data = recipe.data
    assert (recipe.name, recipe.version, recipe.head) == ("birds", 1, "shared-row")
    assert (data.channels, data.size, data.dark_on_light) == (1, (28, 28), True)
    assert data.symmetries
    assert (new.size, new.ways, new.left_out) == (28, 5, 0)
    assert recipe.task_stages[0].ways == (5, 19)  # 30 classes less five and six
    assert recipe.validation.ways == 5
    assert [(figure.ways, figure.shots) for figure in recipe.figures] == [(5, 1), (5, 5)]
    assert recipe.inner.alpha_head == [0.15, 0.02, 0.02], "the bundled model's"
    check_fits(recipe, tmp_path)


@pytest.mark.parametrize(("size", "expected"), [(20, 28), (30, 28), (70, 64), (300, 84)])
def test_photographs_get_a_size_that_is_no_larger_than_they_are(tmp_path, size, expected):
    _, recipe = make(tmp_path, [12] * 12, size=size, colour=True)
    data = recipe.data
    assert (data.channels, data.size) == (3, (expected, expected))
    assert not data.dark_on_light
    assert not data.symmetries
    check_fits(recipe, tmp_path)


@pytest.mark.parametrize(
    ("counts", "ways", "shots", "figures", "left_out"),
    [
        ([2] * 6, (2, 2), (1, 1), [(2, 1)], 0),
        ([3] * 9, (5, 5), (1, 2), [(2, 1)], 0),
        ([6] * 10, (5, 6), (1, 3), [(2, 1), (2, 5)], 0),
        ([40] * 20, (5, 13), (1, 5), [(3, 1), (3, 5)], 0),
        ([2, 2] + [20] * 28, (5, 19), (1, 5), [(5, 1), (5, 5)], 2),
    ],
)
def test_tasks_are_no_larger_than_the_folder_allows(
    tmp_path, counts, ways, shots, figures, left_out
):
    new, recipe = make(tmp_path, counts)
    assert recipe.task_stages[0].ways == ways
    assert recipe.task_stages[-1].shots == shots
    assert [(figure.ways, figure.shots) for figure in recipe.figures] == figures
    assert recipe.validation.ways == new.ways == figures[0][0]
    assert new.left_out == left_out
    check_fits(recipe, tmp_path)


def test_pictures_within_the_project_are_named_from_the_recipe_on(tmp_path):
    folder = make_folder(tmp_path / "project" / "data" / "birds", [3] * 6)
    inside = new_recipe("birds", folder, tmp_path / "project" / "models")
    outside = new_recipe("birds", folder, tmp_path / "elsewhere" / "models")
    assert load_recipe(inside.path).data.folder == "../../data/birds"
    assert load_recipe(outside.path).data.folder == str(folder)


def test_odd_names_of_folders_are_written_as_they_are(tmp_path):
    folder = make_folder(tmp_path / 'süß "b\\{x}" 100%', [3] * 6)
    new = new_recipe("birds", folder, tmp_path / "elsewhere" / "models")
    assert load_recipe(new.path).data.folder == str(folder)


def test_what_is_there_is_not_overwritten(tmp_path):
    new, _ = make(tmp_path, [3] * 6)
    new.path.write_text("mine")
    with pytest.raises(RecipeError, match=r"birds/recipe\.toml exists already"):
        new_recipe("birds", tmp_path / "pictures", tmp_path / "models")
    assert new.path.read_text() == "mine"


@pytest.mark.parametrize("name", ["", "Birds", "../birds", "-birds", "b" * 64, "birds.1"])
def test_a_name_that_no_model_can_have_is_refused(tmp_path, name):
    with pytest.raises(RecipeError, match="cannot be a model's name"):
        new_recipe(name, tmp_path, tmp_path / "models")
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([], "holds no class folders"),
        ([3] * 5, "there are 5 classes"),
        ([3] * 6 + [1], "has 1 "),
    ],
)
def test_a_folder_that_does_not_do_leaves_no_recipe(tmp_path, counts, message):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=message):
        make(tmp_path, counts)
    assert not (tmp_path / "models").exists()
