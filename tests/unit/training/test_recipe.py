import tomllib
from pathlib import Path

import pytest

from app.errors import RecipeError
from app.training.recipe import Recipe, load_recipe
from tests.unit.training.helpers import recipe, text

BUNDLED = sorted((Path(__file__).parents[3] / "models").glob("*/recipe.toml"))


def load(folder: Path, content: str):
    path = folder / "recipe.toml"
    path.write_text(content)
    return load_recipe(path)


def test_a_recipe_is_read_whole(tmp_path):
    loaded = load(tmp_path, text())
    assert loaded == recipe()
    assert loaded.iterations == 7
    assert loaded.stages[0].ways == (3, 5)
    assert loaded.network.model_dump() == {"name": "conv", "filters": 4, "blocks": 3, "groups": 2}
    jitter = loaded.data.augmentation()
    assert (jitter.symmetries, jitter.of_class.degrees, jitter.of_picture.shift) == (True, 10, 0.05)
    assert loaded.stages[1].shape().queries == 3


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.parent.name)
def test_the_recipes_of_this_repository_are_valid(path):
    assert load_recipe(path).name == path.parent.name


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.toml cannot be read: No such file"):
        load_recipe(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("content", ["name =\nseed = 1", "\n[data\n", "a = = 1\n"])
def test_what_is_no_toml_is_said_so_with_the_line(tmp_path, content):
    with pytest.raises(RecipeError, match=r"recipe\.toml is no TOML: .*line [12]"):
        load(tmp_path, content)


def test_what_is_no_utf8_is_said_so(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"name = '\xff'")
    with pytest.raises(RecipeError, match=r"recipe\.toml is no TOML"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("seed = 3", "sead = 3"), r"seed: Field required; sead: Extra inputs"),
        (("groups = 2", 'groups = 2\n[other]\na = 1\n[network.x]\nb = "c"'), "other: Extra inputs"),
        (("iterations = 3", "iteration = 3"), r"stages\.1\.iterations: Field required"),
        (("iterations = 3", "iterations = 0"), r"stages\.1\.iterations: .* greater than or equal"),
        (("[0.1, 0.05]", "[0.1]"), "inner: .*alpha_head must have 2 numbers"),
        (("[0.01, 0.005]", "[0.01, 0.005, 0.1]"), "inner: .*alpha_network must have 2 numbers"),
        (("[0.01, 0.005]", "[0.01, 0.0]"), r"inner\.alpha_network\.1: .* greater than 0"),
        (("steps = 1\n", "steps = 3\n"), r"no stage may take more than the 2 steps of \[inner\]"),
        (("ways = [3, 5]", "ways = [1, 5]"), r"stages\.0\.ways: .*begin at two classes"),
        (("ways = [3, 5]", "ways = [5, 3]"), r"stages\.0\.ways: .*\[least, most\]"),
        (("shots = [1, 2]", "shots = [0, 2]"), r"stages\.1\.shots: .*1 <= least"),
        (('algorithm = "maml"', 'algorithm = "anil"'), r"stages\.0\.algorithm: .*'maml'"),
        (('"omniglot"', '"imagenet"'), r"data\.distribution: .*'omniglot'"),
        (('"background/evaluation"', '"mine"'), r"data\.split: .*'1200/423'"),
        (("degrees = 10.0", "degrees = 200.0"), r"data\.of_class\.degrees: .*180"),
        (("every = 2", "every = 0"), r"validation\.every: "),
        (("tasks = 5", "tasks = 1"), r"figures\.1\.tasks: "),
        (('name = "tiny"', 'name = "../tiny"'), r"name: .*pattern"),
        (("version = 1", "version = 0"), "version: "),
        (("gradient_clip = 10.0", "gradient_clip = 0"), "gradient_clip: "),
        (('"shared-row"', '"shared"'), r"head: .*no head 'shared': use \"shared-row\""),
        (('"shared-row"', '"fixed-5"'), "with the head 'fixed-5' all `ways` must be 5"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value[:30],
)
def test_an_invalid_recipe_names_the_field(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, text(change))
    assert str(tmp_path / "recipe.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fixed_head_goes_with_tasks_of_its_number_of_classes():
    fixed = recipe(
        ('"shared-row"', '"fixed-4"'),
        ("ways = [3, 5]", "ways = [4, 4]"),
        ("ways = [2, 4]", "ways = [4, 4]"),
        ("ways = 3", "ways = 4"),
    )
    assert fixed.head == "fixed-4"


def test_the_stage_of_every_iteration_and_how_much_of_it_is_done():
    tiny = recipe()
    first, second = tiny.stages
    found = [tiny.stage_at(iteration) for iteration in range(7)]
    assert [stage for stage, _ in found] == [first] * 4 + [second] * 3
    assert [done for _, done in found] == [0, 1 / 4, 2 / 4, 3 / 4, 0, 1 / 3, 2 / 3]
    with pytest.raises(ValueError, match="past the last stage"):
        tiny.stage_at(7)


def test_the_digest_ignores_comments_order_and_defaults_written_out():
    lines = text().strip().split("\n\n", 1)
    top = "\n".join(reversed(lines[0].split("\n")))
    commented = f"# A comment.\n{top}\n\n{lines[1]}\n# Another.\n"
    written_out = text(
        ("of_class = { degrees = 10.0 }", "of_class = { degrees = 10.0, shear = 0 }")
    )
    for content in (commented, written_out):
        assert content != text()
        assert Recipe.model_validate(tomllib.loads(content)).digest() == recipe().digest()


@pytest.mark.parametrize(
    "change",
    [
        ("seed = 3", "seed = 4"),
        ("filters = 4", "filters = 8"),
        ("tasks = 5", "tasks = 6"),
        ("degrees = 10.0", "degrees = 10.5"),
        ("[0.1, 0.05]", "[0.05, 0.1]"),
    ],
    ids=lambda change: change[1],
)
def test_the_digest_tells_recipes_apart(change):
    assert recipe(change).digest() != recipe().digest()
