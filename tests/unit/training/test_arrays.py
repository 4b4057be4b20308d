"""Runs on arrays, by networks of somebody's own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from app.data.augment import Jitter
from app.data.pools import Augmentation, TaskShape
from app.errors import DataError, RecipeError
from app.learning.inner_loop import adapt
from app.registry import LoadedModel, Registry
from app.training import job, measure
from app.training.data_parts import ArraysPart
from app.training.measure import measure_model
from app.training.recipe import Measure, Recipe
from app.training.sources import data_folder, load_data
from tests.unit.training.helpers import PRETRAINING, Recorder, recipe, with_stage

OWN = "tests.unit.learning.own_networks:"
TEXT = f"""
name = "tiny"
version = 1
description = "Made-up series."
seed = 3
head = "shared-row"

[data]
distribution = "arrays"
file = "series.npz"
split = "50/25/25"
standardise = true

[network]
name = "{OWN}Good"
filters = 2

[inner]
steps = 2
alpha_head = [0.1, 0.05]
alpha_network = [0.01, 0.005]

[[stages]]
iterations = 5
algorithm = "maml"
steps = 2
ways = [2, 4]
shots = [1, 3]
queries = 2
tasks = 2
learning_rate = 0.01
alpha_learning_rate = 0.01

[validation]
ways = 3
shots = 1
queries = 3
tasks = 4
every = 2

[[figures]]
ways = 3
shots = 2
queries = 3
tasks = 6
"""


@pytest.fixture(autouse=True)
def made_up_pools(monkeypatch) -> None:
    """The data here are read from their file."""
    for module in (job, measure):
        monkeypatch.setattr(module, "load_data", load_data)


def write_series(folder: Path, shape: tuple[int, ...] = (8, 16), offset: float = 40.0) -> Path:
    """Noisy copies of one random series for each of 16 classes of 6 to 9 examples, far from 0."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(16), 6 + np.arange(16) % 4)
    series = rng.normal(size=(16, *shape))
    inputs = offset + 5 * (series[labels] + 0.7 * rng.normal(size=(len(labels), *shape)))
    path = folder / "series.npz"
    np.savez(path, inputs=inputs, labels=labels)
    return path


def run(recipe: Recipe, folder: Path, reporter: Recorder | None = None) -> LoadedModel:
    """Trains by a recipe on the file in a folder."""
    job.train(
        recipe,
        data_dir=folder / "series.npz",
        run_dir=folder / "run" / str(recipe.version),
        models_dir=folder / "models",
        device=torch.device("cpu"),
        reporter=reporter or Recorder(),
    )
    return Registry(folder / "models").load("tiny", recipe.version)


def measured(folder: Path, data: Path | None):
    return measure_model(
        folder / "models" / "tiny",
        Measure(ways=3, shots=2, queries=3, tasks=6),
        pool="test",
        steps=0,
        seed=2,
        data_root=data,
        default_root=folder,
        device=torch.device("cpu"),
        reporter=Recorder(),
    )


def test_a_network_of_ones_own_is_trained_on_arrays_and_comes_back_from_the_registry(tmp_path):
    write_series(tmp_path)
    recorder = Recorder()
    model = run(recipe(base=TEXT), tmp_path, recorder)
    assert recorder.iterations == [1, 2, 3, 4, 5]
    card = model.card
    assert card.network == {"name": OWN + "Good", "filters": 2, "widths": [3, 5]}
    assert (card.input.kind, card.input.shape) == ("values", (8, 16))
    assert all(39 < mean < 41 for mean in card.input.mean)
    assert all(5 < scale < 7 for scale in card.input.scale)
    fresh = model.learner.initial(3)
    assert all(not torch.equal(fresh[name], value) for name, value in model.theta.items())
    assert measured(tmp_path, tmp_path / "series.npz") == card.figures[0]


def test_the_figure_is_that_of_a_plain_loop_over_the_files_own_numbers(tmp_path):
    path = write_series(tmp_path)
    model = run(recipe(base=TEXT), tmp_path)
    pools = load_data(recipe(base=TEXT).data, path, lambda *_: None).parts
    tasks = pools["test"].sample(TaskShape((3, 3), (2, 2), 3), 6, [2, 0])
    assert 20 < tasks.query.inputs.mean() < 60, "nothing is standardised before the network"
    right = []
    for index in range(6):
        support, query = (
            type(part)(*(tensor[index] for tensor in part)) for part in (tasks.support, tasks.query)
        )
        phi = adapt(model.learner, model.theta, support, tasks.classes[index], model.alpha, 2).phi
        guesses = [model.learner.logits(phi, one[None]).argmax() for one in query.inputs]
        right.append((torch.stack(guesses) == query.labels).double().mean().item())
    assert model.card.figures[0].accuracy == pytest.approx(100 * np.mean(right), abs=0.005)


def test_a_run_learns_to_tell_new_classes_apart(tmp_path):
    write_series(tmp_path)
    longer = recipe(("iterations = 5", "iterations = 40"), ("every = 2", "every = 40"), base=TEXT)
    figure = run(longer, tmp_path).card.figures[0]
    assert figure.accuracy_by_step[0] == pytest.approx(100 / 3, abs=1)
    assert figure.accuracy > 60


def test_the_same_recipe_gives_the_same_theta_to_the_bit(tmp_path):
    shas = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_series(tmp_path / name)
        torch.manual_seed(len(shas))
        shas.append(run(recipe(base=TEXT), tmp_path / name).card.theta_sha256)
    assert shas[0] == shas[1]


def test_arrays_can_be_trained_on_without_tasks_and_a_house_network_takes_them_too(tmp_path):
    write_series(tmp_path)
    mlp = ('name = "' + OWN + 'Good"\nfilters = 2', 'name = "mlp"\nhidden = [8]')
    tiny = recipe(mlp, base=with_stage(PRETRAINING, TEXT))
    model = run(tiny, tmp_path)
    assert model.card.network == {"name": "mlp", "hidden": [8]}
    again = recipe(mlp, ("version = 1", 'version = 2\ninitial = "1"'), base=TEXT)
    assert run(again, tmp_path).card.recipe["initial"] == "1"


def test_a_version_of_a_network_of_ones_own_can_be_begun_with(tmp_path):
    write_series(tmp_path)
    first = run(recipe(base=TEXT), tmp_path)
    # Written as an import, and with a default spelled out, it is the same network.
    changes = ("version = 1", 'version = 2\ninitial = "1"'), (":Good", '.Good"\nwidths = [3, 5]#')
    again = recipe(*changes, ("iterations = 5", "iterations = 1"), base=TEXT)
    second = run(again, tmp_path)
    moved = [(second.theta[n] - v).abs().max().item() for n, v in first.theta.items()]
    assert 0 < max(moved) <= 0.0101, "one step of Adam from the first one's θ"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([(":Good", ":missing")], r"\[network\] cannot be built: network .* has no 'missing'"),
        ([(":Good", ":dropout"), ("filters = 2", "")], "2: dropout draws at random"),
        ([("filters = 2", "depth = 2")], r"the call with \(8, 16\) and {'depth': 2} failed"),
        ([("standardise = true", "split_seed = 1"), ("ways = 3", "ways = 9")], "validation cl"),
    ],
)
def test_a_recipe_that_cannot_be_trained_by_is_refused_before_any_work(tmp_path, changes, message):
    write_series(tmp_path)
    with pytest.raises(RecipeError, match=message):
        run(recipe(*changes, base=TEXT), tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_what_cannot_be_differentiated_twice_is_refused_where_it_would_be(tmp_path):
    write_series(tmp_path)
    attention = [(":Good", ":once_differentiable"), ("filters = 2", "")]
    with pytest.raises(RecipeError, match=r"cannot be differentiated twice .*first-order-maml"):
        run(recipe(*attention, base=TEXT), tmp_path)
    first_order = recipe(*attention, ('"maml"', '"first-order-maml"'), base=TEXT)
    assert run(first_order, tmp_path).card.network == {"name": OWN + "once_differentiable"}


def test_statistics_over_the_batch_and_shots_that_are_padded_do_not_go_together(tmp_path):
    write_series(tmp_path, shape=(1, 8, 16))
    paper = [(":Good", ":transductive"), ("filters = 2", "")]
    with pytest.raises(RecipeError, match=r"would take padding into them: give `shots` as one"):
        run(recipe(*paper, base=TEXT), tmp_path)
    model = run(recipe(*paper, ("shots = [1, 3]", "shots = [2, 2]"), base=TEXT), tmp_path)
    assert model.card.figures[0].protocol == "transductive"


def test_inputs_of_another_shape_are_refused_in_measuring(tmp_path):
    write_series(tmp_path)
    run(recipe(base=TEXT), tmp_path)
    (tmp_path / "other").mkdir()
    other = write_series(tmp_path / "other", shape=(8, 15))
    with pytest.raises(RecipeError, match=r"shape \[8, 15\], and those of .* \[8, 16\]"):
        measured(tmp_path, other)


def test_the_file_is_looked_for_from_the_recipes_folder_on(tmp_path):
    write_series(tmp_path / "..")
    data = recipe(("series.npz", "../../data/x.npz"), base=TEXT).data
    assert data_folder(data, None, tmp_path, Path("data")) == tmp_path / "../../data/x.npz"
    assert data_folder(data, Path("mine.npz"), tmp_path, Path("data")) == Path("mine.npz")
    nowhere = recipe(('file = "series.npz"\n', ""), base=TEXT).data
    with pytest.raises(RecipeError, match=r"where its arrays are: set `file` in \[data\]"):
        data_folder(nowhere, None, tmp_path, Path("data"))


def test_where_the_file_lies_does_not_count():
    assert recipe(("series", "other/series"), base=TEXT).digest() == recipe(base=TEXT).digest()
    for change in (("standardise = true", ""), ("50/25/25", "60/20/20"), ("filters = 2", "")):
        assert recipe(change, base=TEXT).digest() != recipe(base=TEXT).digest()


def test_a_broken_row_ends_a_run_before_it_begins(tmp_path):
    path = write_series(tmp_path)
    held = dict(np.load(path))
    held["inputs"][11, 3, 3] = np.nan
    np.savez(path, **held)
    with pytest.raises(DataError, match=f"{path}: 1 rows of `inputs` .* the first is row 11"):
        run(recipe(base=TEXT), tmp_path)


@pytest.mark.parametrize("change", ["symmetries = true", "of_class = { degrees = 5.0 }"])
def test_arrays_are_not_varied(change):
    with pytest.raises(ValueError, match="vary pictures, and arrays are taken as they are"):
        recipe(("standardise = true", change), base=TEXT)
    with pytest.raises(ValueError, match="deform pictures, and here are none"):
        recipe(("iterations = ", "of_picture = { elastic = 0.1 }\niterations = "), base=TEXT)
    still = Augmentation(False, Jitter(), Jitter())
    assert recipe(base=TEXT).data.augmentation() == still


@pytest.mark.parametrize("split", ["64/16/21", "parts", "list.csv", ""])
def test_a_split_of_arrays_is_by_percentages_or_by_part(split):
    assert ArraysPart(distribution="arrays", split="part").split == "part"
    with pytest.raises(ValueError, match='as "64/16/20", or "part" for the array'):
        ArraysPart(distribution="arrays", split=split)


def test_a_card_is_json_with_finite_statistics(tmp_path):
    write_series(tmp_path)
    run(recipe(base=TEXT), tmp_path)
    content = (tmp_path / "models" / "tiny" / "1" / "card.json").read_text()
    assert np.isfinite(json.loads(content)["input"]["scale"]).all()
