"""The model card: every figure of the card in its text, and the plots that it shows."""

import builtins
import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from app import training
from app.errors import RecipeError
from app.registry import Registry
from app.registry.card import AccuracyFigure, Calibration, Card, ErrorFigure
from app.registry.registry import build_learner
from app.training import card_plots
from app.training.confidence import Confidence
from app.training.model_card import _is_beside, markdown, write_model_card
from tests.fakes import make_card
from tests.unit.training.helpers import Recorder, make_pool, make_pools, recipe, write_recipe

FIGURE = AccuracyFigure(
    split="background/evaluation",
    protocol="inductive",
    ways=5,
    shots=1,
    queries=15,
    tasks=1000,
    seed=2,
    accuracy=97.97,
    confidence_interval_95=(97.75, 98.19),
    accuracy_by_step=(20.0, 96.5, 97.97),
    nearest_class_mean=97.11,
    calibration_error=0.0123,
    outlier_auroc=0.9456,
)
ERROR = ErrorFigure(
    split="function",
    protocol="inductive",
    shots=5,
    queries=15,
    tasks=600,
    seed=2,
    mse=0.3282,
    confidence_interval_95=(0.30, 0.36),
    mse_by_step=(4.1, 0.567, 0.3282),
)
CALIBRATION = Calibration(temperature=(0, 0, 0), outlier=(0,) * 6)


def card_of(**changes) -> Card:
    return make_card("shapes", version=3, **changes)


def test_the_text_has_every_figure_with_its_interval_and_its_steps():
    text = markdown(card_of(figures=(FIGURE,), calibration=CALIBRATION), [], True)
    row = (
        "| 5-way 1-shot | 1,000 | **97.97** ± 0.22 | 20.00, 96.50, 97.97 | 97.11 | 0.012 | 0.946 |"
    )
    assert row in text
    assert "split background/evaluation, inductive: each query on its own" in text
    assert "innerloop evaluate models/shapes/3 --ways 5 --shots 1 --queries 15 --tasks 1000" in text


def test_a_figure_that_was_not_calibrated_leaves_its_cells_empty():
    figure = FIGURE.model_copy(update={"calibration_error": None, "outlier_auroc": None})
    text = markdown(card_of(figures=(figure,)), [], True)
    assert "| 97.11 |  |  |" in text
    assert "not calibrated" in text


def test_what_it_is_for_and_not_for_is_what_the_recipe_said():
    text = markdown(
        card_of(intended_use="Forms of a hospital.", out_of_scope="Signatures."), [], True
    )
    assert "## What it is for\n\nForms of a hospital.\n" in text
    assert "- Signatures.\n" in text
    assert "What it is for\n" not in markdown(card_of(), [], True)


def test_regression_is_told_by_its_error():
    text = markdown(card_of(task="regression", figures=(ERROR,)), [], True)
    assert "| 5 examples | 600 | 0.3282 | 4.100, 0.567, 0.328 |" in text
    assert "accuracy" not in text
    assert "outlier" not in text


def test_only_plots_that_were_drawn_are_shown():
    assert "plots/" not in markdown(card_of(figures=(FIGURE,)), [], True)
    text = markdown(card_of(figures=(FIGURE,)), ["steps", "reliability", "tasks"], True)
    assert [name in text for name in ("steps.png", "reliability.png", "tasks.png")] == [True] * 3


def test_a_versions_card_is_written_beside_its_recipe_with_plots_that_open(whole_run, tmp_path):
    model = whole_run / "models" / "tiny"
    file = write_model_card(model, data_root=None, default_root=tmp_path, reporter=Recorder())
    assert file == model.resolve() / "README.md"
    text = file.read_text(encoding="utf-8")
    [figure, *_] = Registry(whole_run / "models").card("tiny", 1).figures
    assert f"**{figure.accuracy:.2f}**" in text
    for name in ("steps", "reliability", "tasks"):
        assert f"plots/{name}.png" in text
        with Image.open(model / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 50


def test_shown_tasks_are_two_without_a_wrong_answer_and_two_with_one(whole_run):
    model = Registry(whole_run / "models").load("tiny", 1)
    shown = card_plots.choose_tasks(model, make_pools()["test"], 2)
    right = [bool((one.answers == one.task.query.labels).all()) for one in shown]
    assert right == sorted(right, reverse=True)
    assert right.count(False) == 2
    for one in shown:
        assert bool((one.probabilities >= 1 / card_plots.WAYS - 1e-6).all())


def test_points_of_the_reliability_diagram_are_the_means_of_the_bins(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(card_plots, "_save", lambda figure, path: drawn.append(figure))
    top = torch.tensor([0.91, 0.92, 0.31, 0.32, 0.33])
    right = torch.tensor([True, False, True, True, False])
    told = Confidence(top, right, torch.empty(0), torch.empty(0))
    card_plots.draw_reliability({"5-way": told}, tmp_path / "none.png")
    line = drawn[0].axes[0].lines[1]
    assert line.get_xdata() == pytest.approx([0.32, 0.915])
    assert line.get_ydata() == pytest.approx([2 / 3, 1 / 2])


def test_without_the_plotting_library_it_says_how_to_get_it(whole_run, monkeypatch):
    load = builtins.__import__

    def without(name, *arguments):
        if name.startswith("matplotlib"):
            raise ImportError("no", name="matplotlib")
        return load(name, *arguments)

    monkeypatch.delitem(sys.modules, "app.training.card_plots")
    monkeypatch.delattr(training, "card_plots")

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=r"matplotlib is not installed: pip install.*plots"):
        write_model_card(
            whole_run / "models" / "tiny",
            data_root=None,
            default_root=Path(),
            reporter=Recorder(),
        )


@pytest.mark.parametrize(("pictures", "queries"), [(2, 1), (3, 2), (8, 3)])
def test_shown_tasks_are_as_large_as_the_pool_has_them(whole_run, pictures, queries):
    model = Registry(whole_run / "models").load("tiny", 1)
    shown = card_plots.choose_tasks(model, make_pool(4, 3, pictures), 2)
    assert shown
    for one in shown:
        assert len(one.task.support.labels) == 4
        assert len(one.task.query.labels) == 4 * queries


def test_of_too_few_classes_or_pictures_no_task_is_shown(whole_run):
    model = Registry(whole_run / "models").load("tiny", 1)
    assert card_plots.choose_tasks(model, make_pool(1, 3), 2) == []
    assert card_plots.choose_tasks(model, make_pool(4, 3, pictures=1), 2) == []


def test_a_head_of_fixed_width_is_shown_on_its_own_number_of_classes(whole_run):
    model = Registry(whole_run / "models").load("tiny", 1)
    for ways, expected in ((4, {4}), (20, set())):
        learner = build_learner(model.card.input, model.card.network, f"fixed-{ways}")
        fixed = dataclasses.replace(model, learner=learner, theta=learner.initial(1))
        shown = card_plots.choose_tasks(fixed, make_pool(30, 3), 2)
        assert {len(one.task.support.labels) for one in shown} == expected


def test_only_a_recipe_that_lies_beside_is_said_to_make_the_version_again():
    there, gone = (markdown(card_of(), [], beside) for beside in (True, False))
    assert "innerloop train models/shapes/recipe.toml" in there
    assert "innerloop train" not in gone
    assert "By the recipe in its card" in gone


def test_a_recipe_that_was_changed_is_not_the_versions(whole_run, tmp_path):
    assert not _is_beside(recipe(), tmp_path)
    path = write_recipe(tmp_path)
    assert _is_beside(recipe(), path.parent)
    path.write_text(path.read_text().replace("seed = 3", "seed = 4"))
    assert not _is_beside(recipe(), path.parent)
