from hashlib import sha256

import numpy as np
import pytest
import safetensors.numpy

from app.errors import InnerloopError
from app.services.support import (
    Examples,
    Inputs,
    chain_digest,
    decode,
    encode,
    grow,
    index_labels,
    support_set,
)

SHAPE = (1, 3, 2)
RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (2, *SHAPE), dtype=np.uint8)
VALUES = RANDOM.normal(size=(3, *SHAPE)).astype(np.float32)


def mixed() -> Inputs:
    return Inputs.of([VALUES[0], PICTURES[0], VALUES[1], VALUES[2], PICTURES[1]], SHAPE)


def test_floats_keep_the_order_and_divide_only_pictures():
    expected = [VALUES[0], PICTURES[0] / 255, VALUES[1], VALUES[2], PICTURES[1] / 255]
    got = mixed().floats()
    assert got.dtype == np.float32
    assert np.array_equal(got, np.array(expected, np.float32))


@pytest.mark.parametrize("items", [[], [PICTURES[0]], [VALUES[0], VALUES[1]]])
def test_a_kind_of_input_may_be_absent(items):
    examples = Examples(Inputs.of(items, SHAPE), np.arange(len(items)))
    assert decode(encode(examples)).inputs.floats().shape == (len(items), *SHAPE)


def test_what_is_stored_comes_back_bit_by_bit():
    tiny = np.nextafter(np.float32(0), np.float32(1))
    extreme = np.array([tiny, -0.0, np.finfo(np.float32).max, 0.1, 1 / 3, -1], np.float32)
    inputs = Inputs.of([PICTURES[0], extreme.reshape(SHAPE)], SHAPE)
    got = decode(encode(Examples(inputs, np.array([7, 300]))))
    assert got.inputs.pictures.tobytes() == PICTURES[0].tobytes()
    assert got.inputs.values.tobytes() == extreme.tobytes()
    assert got.inputs.is_picture.tolist() == [True, False]
    assert (got.labels.tolist(), got.labels.dtype) == ([7, 300], np.int64)


def test_five_characters_of_28_by_28_take_little_more_than_their_pixels():
    inputs = Inputs.of(list(np.zeros((5, 1, 28, 28), np.uint8)), (1, 28, 28))
    assert len(encode(Examples(inputs, np.arange(5)))) < 5 * 784 + 512


def test_a_blob_of_another_format_is_refused():
    blob = safetensors.numpy.save({"pictures": PICTURES}, metadata={"innerloop.support": "2"})
    with pytest.raises(InnerloopError, match=r"format '2'.* reads '1'"):
        decode(blob)


def test_the_digest_chains_each_blob_to_those_before():
    first = sha256(b"one").hexdigest()
    second = sha256(first.encode() + b"two").hexdigest()
    assert chain_digest([b"one", b"two"]) == second
    assert chain_digest([b"two"], first) == second
    assert chain_digest([b"onetwo"]) != second


def test_labels_are_numbered_by_first_appearance_behind_the_known_ones():
    labels, numbers = index_labels(["b", "a"], ["c", "a", "\0", "c", "😀"])
    assert labels == ["b", "a", "c", "\0", "😀"]
    assert numbers.tolist() == [2, 1, 3, 2, 4]


def test_growth_by_revisions_is_the_growth_at_once():
    inputs = mixed()
    labels = ["b", "a", "b", "c", "a"]
    at_once = grow([], [], "", inputs, labels)
    first = grow([], [], "", Inputs.of([VALUES[0], PICTURES[0]], SHAPE), labels[:2])
    parts = [decode(first.blob)]
    rest = Inputs.of([VALUES[1], VALUES[2], PICTURES[1]], SHAPE)
    second = grow(first.labels, parts, first.sha256, rest, labels[2:])

    assert second.labels == at_once.labels == ["b", "a", "c"]
    assert second.shots == at_once.shots == {"b": 2, "a": 2, "c": 1}
    assert np.array_equal(second.support.inputs, at_once.support.inputs)
    assert np.array_equal(second.support.labels, at_once.support.labels)
    assert second.support.ways == at_once.support.ways == 3
    assert second.sha256 == chain_digest([first.blob, second.blob])


def test_a_stored_support_set_is_what_the_engine_first_got():
    growth = grow([], [], "", mixed(), ["b", "a", "b", "c", "a"])
    got = support_set([decode(growth.blob)], 3)
    assert np.array_equal(got.inputs, growth.support.inputs)
    assert np.array_equal(got.labels, growth.support.labels)
    assert got.ways == 3
