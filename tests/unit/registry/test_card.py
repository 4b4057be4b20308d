import pytest
from pydantic import ValidationError

from app.registry import Card
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
    "change", [{"version": 0}, {"steps": 0}, {"task": "regression"}, {"unknown": 1}]
)
def test_fields_out_of_range_or_unknown_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        make_card("omniglot", **change)


def test_a_card_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        make_card("omniglot").steps = 7
