import numpy as np
import pytest

from app.registry.card import InputSpec
from app.services.inputs import decode_inputs, exact_values
from app.services.issues import Issues
from app.services.views import ImageInput, ValuesInput
from tests.fakes import picture

VALUES = InputSpec(kind="values", shape=(2, 2))
IMAGE = InputSpec(kind="image", shape=(1, 4, 4), dark_on_light=True)


@pytest.mark.parametrize(
    ("values", "shape"),
    [([[1, 2.5], [-3, 4]], (2, 2)), ([0.1], (1,)), (7, ()), ([[[0]], [[1]]], (2, 1, 1))],
)
def test_values_of_the_exact_shape_become_float32(values, shape):
    got = exact_values(values, shape)
    assert got.dtype == np.float32
    assert got.tolist() == np.array(values, np.float32).tolist()


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3, 4],
        [[1, 2], [3]],
        [[1, 2], [3, 4], [5, 6]],
        [[1, 2], [3, [4]]],
        [[[1, 2], [3, 4]]],
        [],
        5,
        "12",
        ["12", "34"],
        {"0": [1, 2], "1": [3, 4]},
        None,
    ],
)
def test_values_of_another_shape_are_refused_and_the_shape_is_named(values):
    with pytest.raises(ValueError, match=r"nested lists of shape \[2, 2\]"):
        exact_values(values, (2, 2))


@pytest.mark.parametrize("value", ["1", None, True, False, [1], {}])
def test_what_is_no_number_is_refused(value):
    with pytest.raises(ValueError, match="only numbers"):
        exact_values([[1, 2], [3, value]], (2, 2))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), float("-inf"), 1e39, -1e300, 10**400, -(10**39)]
)
def test_what_32_bits_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"only finite numbers, at most 3.4e38"):
        exact_values([[1, 2], [3, value]], (2, 2))


def test_the_largest_numbers_of_32_bits_are_kept():
    largest = float(np.finfo(np.float32).max)
    assert exact_values([largest, -largest, 10**38], (3,)).tolist()[:2] == [largest, -largest]


def test_a_model_of_pictures_takes_what_its_network_sees_too():
    issues = Issues()
    pixels = np.full((4, 4), 55, np.uint8)
    seen = np.full((1, 4, 4), 200 / 255).tolist()
    got = decode_inputs(issues, [picture(pixels), ValuesInput(seen)], "/query/{}", IMAGE, 9, 100)
    issues.raise_any()
    assert got.is_picture.tolist() == [True, False]
    first, second = got.floats()
    assert np.array_equal(first, second)


def test_a_model_of_values_takes_no_pictures():
    assert found([picture(np.zeros((2, 2), np.uint8))], VALUES) == [
        ("/query/0/image", "the model takes no pictures but values of shape [2, 2]")
    ]


def test_every_broken_input_is_named_where_it_stands():
    inputs = [
        picture(np.zeros((4, 4), np.uint8)),
        ImageInput(b"hello"),
        ValuesInput([1]),
        picture(np.zeros((10, 11), np.uint8)),
    ]
    assert [pointer for pointer, _ in found(inputs, IMAGE)] == [
        "/query/1/image",
        "/query/2/values",
        "/query/3/image",
    ]


def test_the_search_ends_after_twenty_issues():
    class Untouchable(ValuesInput):
        @property
        def values(self):
            raise AssertionError("looked at")

    broken = [ImageInput(b"")] * 20
    untouchable = object.__new__(Untouchable)
    assert len(found([*broken, untouchable], IMAGE, most=100)) == 20


def test_of_too_many_inputs_only_the_allowed_number_is_looked_at():
    assert len(found([ImageInput(b"")] * 10, IMAGE, most=3)) == 3


def found(inputs, spec, most=9) -> list[tuple[str, str]]:
    issues = Issues()
    decode_inputs(issues, inputs, "/query/{}", spec, most, 100)
    return [(issue.pointer, issue.detail) for issue in issues._found]
