import json

import pytest
from pydantic import ValidationError

from app.registry import AccuracyFigure, Card, InputSpec
from app.registry.card import ErrorFigure
from tests.fakes import make_card


def test_a_card_survives_json():
    card = make_card("omniglot", 3)
    assert Card.model_validate_json(card.model_dump_json()) == card


@pytest.mark.parametrize("name", ["a", "omniglot", "5-way_model", "a" * 63])
def test_names_of_small_letters_digits_and_dashes_are_taken(name):
    assert make_card(name).name == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "_a", "a/b", "..", "a.b", "a b", "é", "a\n", "a" * 64]
)
def test_names_that_are_no_folder_are_refused(name):
    with pytest.raises(ValidationError, match="name"):
        make_card(name)


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"steps": 0}, {"task": "ranking"}, {"unknown": 1}]
)
def test_fields_out_of_range_or_unknown_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        make_card("omniglot", **change)


def test_a_card_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        make_card("omniglot").steps = 7


ERROR = ErrorFigure(
    split="function",
    protocol="inductive",
    shots=5,
    queries=100,
    tasks=4000,
    seed=2,
    mse=0.5,
    confidence_interval_95=(0.4, 0.6),
    mse_by_step=(3.0, 1.0, 0.5),
)


def test_figures_of_accuracy_and_of_error_survive_json_as_what_they_are():
    accuracy = make_card("omniglot").figures[0]
    card = make_card("omniglot", figures=(accuracy, ERROR), task="regression")
    read = Card.model_validate_json(card.model_dump_json())
    assert read == card
    assert [type(figure) for figure in read.figures] == [AccuracyFigure, ErrorFigure]


def test_a_figure_that_is_half_accuracy_and_half_error_is_refused():
    content = json.loads(make_card("omniglot", figures=(ERROR,)).model_dump_json())
    content["figures"][0]["accuracy"] = 90.0
    with pytest.raises(ValidationError, match="figures"):
        Card.model_validate(content)


def test_a_card_from_before_memory_was_measured_still_reads():
    content = json.loads(make_card("omniglot").model_dump_json())
    del content["peak_memory_bytes"]
    assert Card.model_validate(content).peak_memory_bytes is None


@pytest.mark.parametrize(
    "statistics", [{"mean": (0, 0)}, {"scale": (1, 1)}, {"mean": (0, 0), "scale": (1,)}]
)
def test_an_inputs_statistics_are_one_mean_and_one_scale_for_each_place(statistics):
    assert InputSpec(kind="values", shape=(2, 5), mean=(0, 1), scale=(1, 2)).mean == (0, 1)
    with pytest.raises(ValidationError, match="as many numbers as the first axis is long"):
        InputSpec(kind="values", shape=(2, 5), **statistics)
