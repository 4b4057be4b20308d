"""What a caller sent becomes arrays, or issues with pointers into the request's body."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.data.images import decode_image, prepare_pixels
from app.engine.requests import Floats
from app.registry import InputSpec
from app.services.issues import Issues
from app.services.support import Inputs
from app.services.views import ArrayInput, ImageInput, Input, ValuesInput

MEMBER = {ImageInput: "/image", ValuesInput: "/values", ArrayInput: ""}
"""What a pointer to an input ends with, by its kind; a row of a tensor has no members."""
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def decode_inputs(
    issues: Issues,
    inputs: Sequence[Input],
    pointer: str,
    spec: InputSpec,
    most: int,
    max_image_pixels: int,
) -> Inputs:
    """Decode inputs, and note those that the model cannot take.

    Args:
        issues: where to note them; decoding ends where it is full.
        inputs: the inputs; of too many only the first `most` are looked at.
        pointer: where an input stands in the request's body, "{}" for its number.
        spec: what the model takes.
        most: the limit of their number.
        max_image_pixels: the limit of a picture's size.

    Returns:
        The inputs without those that were noted: of use only where there are no issues.
    """
    items: list[NDArray[np.uint8] | Floats] = []
    for i, item in enumerate(islice(inputs, most)):
        if issues.full:
            break
        try:
            items.append(_decode(item, spec, max_image_pixels))
        except ValueError as error:
            issues.add(f"{pointer.format(i)}{MEMBER[type(item)]}", str(error))
    return Inputs.of(items, spec.shape)


def _decode(item: Input, spec: InputSpec, max_image_pixels: int) -> NDArray[np.uint8] | Floats:
    if isinstance(item, ValuesInput):
        return exact_values(item.values, spec.shape)
    if isinstance(item, ArrayInput) and item.array.dtype == np.float32:
        return _exact_floats(item.array, spec.shape)
    if spec.kind != "image":
        raise ValueError(f"the model takes no pictures but values of shape {list(spec.shape)}")
    if isinstance(item, ImageInput):
        return decode_image(item.data, spec, max_image_pixels)
    _check_shape(item.array, spec.shape)
    return prepare_pixels(item.array, spec)


def _exact_floats(array: NDArray[Any], shape: tuple[int, ...]) -> Floats:
    _check_shape(array, shape)
    if not np.isfinite(array).all():
        raise ValueError("must hold only finite numbers")
    return array


def _check_shape(array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"has shape {list(array.shape)}, the model takes {list(shape)}")


def exact_values(values: Any, shape: tuple[int, ...]) -> Floats:
    """Nested lists of numbers as a float32 array of exactly `shape`.

    Raises:
        ValueError: the shape is another one, or something is no finite number of 32 bits.
    """
    numbers: list[int | float] = []
    _flatten(values, shape, shape, numbers)
    # As Python numbers, because an int may be too large for any float; NaN compares false.
    if not all(abs(number) <= LARGEST_FLOAT32 for number in numbers):
        raise ValueError("must hold only finite numbers, at most 3.4e38 in magnitude")
    return np.array(numbers, np.float32).reshape(shape)


def _flatten(
    values: Any, rest: tuple[int, ...], shape: tuple[int, ...], numbers: list[int | float]
) -> None:
    if rest:
        if not isinstance(values, list) or len(values) != rest[0]:
            raise ValueError(f"must be nested lists of shape {list(shape)}")
        for item in values:
            _flatten(item, rest[1:], shape, numbers)
    elif type(values) in (int, float):  # to isinstance a bool is an int, too
        numbers.append(values)
    else:
        raise ValueError(f"must hold only numbers, in nested lists of shape {list(shape)}")
