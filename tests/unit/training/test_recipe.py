import tomllib
from hashlib import sha256
from pathlib import Path

import pytest

from app.data.augment import Jitter
from app.errors import RecipeError
from app.training.recipe import Recipe, load_recipe
from tests.unit.training.helpers import PRETRAINING, SINUSOID, recipe, text, with_stage

META_SGD = ("[0.01, 0.005]", '[0.01]\nalpha_form = "parameter"')
REPTILES_SHOTS = r"stages\.0\.reptile: .*reptile's shots must be one multiple of its steps"
NO_FUNCTION = 'recipe: .*"pretraining-on-tasks" makes one function of all tasks.*use "pretraining"'
NO_GRADIENT = (
    r"stages\.0\.reptile: .*reptile gives no gradient of α: `alpha_learning_rate` must be 0"
)
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
        (
            ("iterations = 3", "iteration = 3"),
            r"stages\.1\.first-order-maml\.iterations: Field required",
        ),
        (
            ("iterations = 3", "iterations = 0"),
            r"stages\.1\.first-order-maml\.iterations: .* greater than or equal",
        ),
        (("[0.1, 0.05]", "[0.1, 0.05, 0.1]"), "inner: .*alpha_head must have at most 2 numbers"),
        (("[0.1, 0.05]", "[]"), r"inner\.alpha_head: .*at least 1 item"),
        (("[0.01, 0.005]", "[0.1, 0.1, 0.1]"), "inner: .*alpha_network must have at most 2 numb"),
        (("[0.1, 0.05]", "[0.1, -0.1]"), r"inner\.alpha_head\.1: .* greater than 0"),
        (META_SGD, "inner: .*alpha_head must have at most 1 number"),
        (("steps = 2\na", 'steps = 2\nalpha_form = "layer"\na'), r"inner\.alpha_form: .*'step'"),
        (("[0.01, 0.005]", "[0.01, 0.0]"), r"inner\.alpha_network\.1: .* greater than 0"),
        (("steps = 1\n", "steps = 0\n"), r"stages\.0\.maml\.steps: "),
        (("ways = [3, 5]", "ways = [1, 5]"), "recipe: .*`ways` must begin at two classes"),
        (
            ("[validation]\nways = 3", "[validation]\nways = 1"),
            "recipe: .*`ways` must begin at two",
        ),
        (("[[figures]]\nways = 4", "[[figures]]\nways = 1"), "recipe: .*`ways` must begin at two"),
        (("ways = [3, 5]", "ways = [5, 3]"), r"stages\.0\.maml\.ways: .*\[least, most\]"),
        (("shots = [1, 2]", "shots = [0, 2]"), r"stages\.1\.first-order-maml\.shots: .*1 <= least"),
        (('algorithm = "maml"', 'algorithm = "mamba"'), r"stages\.0: .*'mamba' .*'maml'"),
        (("tasks = 2\n", "tasks = 2\ntasks_at_once = 0\n"), r"stages\.0\.maml\.tasks_at_once: "),
        (('"omniglot"', '"imagenet"'), "data: .*'imagenet' .*'omniglot'"),
        (
            ('"background/evaluation"', '"mine"'),
            r"data\.omniglot: .*split must be one of .*1200/423",
        ),
        (
            ('"background/evaluation"', '"64/16/20"'),
            r"data\.omniglot: .*split must be one of .*1200/423",
        ),
        (("degrees = 10.0", "degrees = 200.0"), r"data\.omniglot\.of_class\.degrees: .*180"),
        (("every = 2", "every = 0"), r"validation\.every: "),
        (("tasks = 5", "tasks = 1"), r"figures\.1\.tasks: "),
        (('name = "tiny"', 'name = "../tiny"'), r"name: .*pattern"),
        (("version = 1", "version = 0"), "version: "),
        (("gradient_clip = 10.0", "gradient_clip = 0"), "gradient_clip: "),
        (('"shared-row"', '"shared"'), r"head: .*no head 'shared': use \"shared-row\""),
        (('"shared-row"', '"fixed-1"'), "head: .*no head 'fixed-1'"),
        (('"shared-row"', '"fixed-5"'), "with the head 'fixed-5' all `ways` must be 5"),
        (('"shared-row"', '"linear-2"'), "with the head 'linear-2' all `ways` must be 2"),
        (('"maml"', '"anil"'), "recipe: .*`alpha_network` of \\[inner\\] must be empty"),
        (("seed = 3", "seed = 3\ninitial = 1"), "initial: .*string"),
    ],
    ids=lambda value: None if isinstance(value, tuple) else value[:30],
)
def test_an_invalid_recipe_names_the_field(tmp_path, change, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, text(change))
    assert str(tmp_path / "recipe.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


REPTILE = """
iterations = 3
algorithm = "reptile"
steps = 2
ways = [3, 3]
shots = [4, 4]
queries = 2
tasks = 2
learning_rate = 0.01
"""
MAML = REPTILE.replace("reptile", "maml")
OF_CLASSES = with_stage(REPTILE).replace("shared-row", "fixed-3").replace("ways = 4", "ways = 3")


def test_reptile_goes_with_a_head_of_its_own_rows_and_shots_for_all_its_steps():
    assert recipe(base=OF_CLASSES).stages[0].shots == (4, 4)


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (OF_CLASSES, ("shots = [4, 4]", "shots = [3, 3]"), REPTILES_SHOTS),
        (OF_CLASSES, ("shots = [4, 4]", "shots = [2, 4]"), REPTILES_SHOTS),
        (OF_CLASSES, ("steps = 2\nways", "steps = 3\nways"), REPTILES_SHOTS),
        (OF_CLASSES, ("fixed-3", "shared-row"), 'recipe: .*"reptile" moves every row of a head'),
        (OF_CLASSES, ("tasks = 2\n", "tasks = 2\nalpha_learning_rate = 0.1\n"), NO_GRADIENT),
        (
            SINUSOID,
            ('"maml"\n', '"pretraining-on-tasks"\nalpha_learning_rate = 0.1\n'),
            NO_GRADIENT.replace("reptile", "pretraining-on-tasks"),
        ),
        (OF_CLASSES, ('"reptile"', '"pretraining-on-tasks"'), NO_FUNCTION),
        (SINUSOID, ("linear-1", "shared-row"), "`ways` must begin at two classes"),
        (SINUSOID, ("linear-1", "linear-2"), "all `ways` must be 2"),
        (SINUSOID, ("ways = 1\n", "ways = 2\n"), "with the head 'linear-1' all `ways` must be 1"),
        (
            SINUSOID,
            ('"function"', '"cosine"'),
            r"data\.sinusoid: .*one of function, oracle",
        ),
        (
            OF_CLASSES.replace("fixed-3", "linear-3"),
            ("seed", "seed"),
            'the head "linear-1" belongs to the sinusoid, and no other does',
        ),
        (
            SINUSOID.replace("linear-1", "fixed-2").replace("ways = 1", "ways = 2"),
            ("[1, 1]", "[2, 2]"),
            'the head "linear-1" belongs to the sinusoid, and no other does',
        ),
        (
            with_stage(PRETRAINING),
            ("pictures = 6", "pictures = 1"),
            r"stages\.0\.pretraining\.pictures: .* greater than or equal to 2",
        ),
        (
            with_stage(PRETRAINING),
            ("pictures = 6", ""),
            r"stages\.0\.pretraining\.pictures: Field required",
        ),
        (
            with_stage(PRETRAINING),
            ("[validation]", f"[[stages]]\n{MAML}\n[validation]"),
            r"recipe: .*needs classes, and a recipe of its own.*`initial`",
        ),
        (
            with_stage(PRETRAINING, SINUSOID),
            ("seed", "seed"),
            r"recipe: .*needs classes, and a recipe of its own.*`initial`",
        ),
    ],
)
def test_what_does_not_go_together_is_said_so(tmp_path, base, change, message):
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, text(change, base=base))


def test_pretraining_draws_no_tasks():
    tiny = recipe(base=with_stage(PRETRAINING))
    assert tiny.pretrains
    assert tiny.task_stages == []
    assert tiny.iterations == 3
    assert not recipe().pretrains


def test_anil_is_an_empty_alpha_of_the_network():
    tiny = recipe(('"maml"', '"anil"'), ("[0.01, 0.005]", "[]"))
    assert tiny.inner.alpha_network == []


def test_a_stage_may_take_more_steps_than_there_are_values_of_alpha():
    assert recipe(("steps = 1\n", "steps = 3\n")).stages[0].steps == 3


def test_meta_sgd_has_one_first_value():
    assert recipe(META_SGD, ("[0.1, 0.05]", "[0.1]")).inner.alpha_form == "parameter"


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


def test_a_stage_may_end_before_its_cosine():
    change = "learning_rate = 0.005\n"
    cut = recipe((change, change + "cosine_iterations = 12\n"))
    assert [cut.stage_at(iteration)[1] for iteration in (4, 6)] == [0, 2 / 12]
    assert cut.digest() != recipe().digest()
    with pytest.raises(ValueError, match="`cosine_iterations` must be at least the stage's"):
        recipe((change, change + "cosine_iterations = 2\n"))


def test_a_stage_may_deform_in_its_own_way():
    change = "learning_rate = 0.005\n"
    own = recipe((change, change + "of_class = { elastic = 0.05 }\n"))
    first, second = (own.augmentation(stage) for stage in own.stages)
    assert first == own.data.augmentation()
    assert second.of_class == Jitter(elastic=0.05)
    assert (second.of_picture, second.symmetries) == (first.of_picture, first.symmetries)
    assert own.digest() != recipe().digest()


def test_a_stage_may_turn_the_classes_of_a_task_together():
    change = "learning_rate = 0.005\n"
    own = recipe((change, change + "turned_together = true\n"))
    assert [own.augmentation(stage).turned_together for stage in own.stages] == [False, True]
    assert own.digest() != recipe().digest()
    with pytest.raises(ValueError, match="needs `symmetries = true` in \\[data\\]"):
        recipe((change, change + "turned_together = true\n"), ("symmetries = true\n", ""))


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
        ("queries = 3\ntasks = 2", "queries = 4\ntasks = 2"),
        ("degrees = 10.0", "degrees = 10.5"),
        ("[0.1, 0.05]", "[0.05, 0.1]"),
        ("seed = 3", 'seed = 3\ninitial = "../other/1"'),
        ("queries = 3\ntasks = 2", "queries = 3\ntasks = 2\ntasks_at_once = 1"),
    ],
    ids=lambda change: change[1],
)
def test_the_digest_tells_recipes_apart(change):
    assert recipe(change).digest() != recipe().digest()


@pytest.mark.parametrize(
    "change",
    [
        ("tasks = 5", "tasks = 6"),
        ("seed = 3", 'seed = 3\nintended_use = "Forms."\nout_of_scope = "Photographs."'),
        ('description = "Made-up characters."', 'description = "Others."'),
        ("filters = 4", "filters = 4  # as many as before"),
    ],
    ids=["figures", "texts", "description", "comment"],
)
def test_what_does_not_decide_theta_does_not_change_the_digest(change):
    assert recipe(change).digest() == recipe().digest()


def test_what_the_digest_is_made_of_stays_as_it_was_for_recipes_that_were_always_possible():
    """Else no run that began with an older Innerloop could go on."""
    tiny = recipe(), recipe(base=SINUSOID)
    written = [part.model_dump_json(exclude_defaults=True) for part in tiny]
    assert [sha256(content.encode()).hexdigest() for content in written] == [
        "b3c4c81c70f5d3a24863e526c7d532c61af9f30506121945aea4e7417c6ab7d6",
        "d47de7334d9099a07108d70d2824f7e612574290c1cb0aa623190ce43a082507",
    ]


def test_batch_norm_with_shots_that_may_be_padded_is_refused():
    with pytest.raises(ValueError, match=r"padding.*`shots`"):
        recipe(("groups = 2", 'norm = "batch"'))


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("package.module:factory", "package.module:factory"),
        ("package.module.factory", "package.module:factory"),
        ("package.module:Class.method", "package.module:Class.method"),
        ("mlp", "mlp"),
    ],
)
def test_a_networks_factory_may_be_written_as_an_import(written, name):
    tiny = recipe(('"conv"\nfilters = 4\nblocks = 3\ngroups = 2', f'"{written}"'))
    assert tiny.network.name == name


def test_only_an_inner_loop_of_the_network_that_is_differentiated_is_of_second_order():
    assert recipe().second_order
    assert not recipe(('"maml"', '"first-order-maml"')).second_order
    assert not recipe(("[0.01, 0.005]", "[]")).second_order
