from pathlib import Path

import numpy as np
import pytest

from app.data.arrays import find_arrays, load_arrays, read_arrays
from app.data.pools import TaskShape, data_digest
from app.errors import DataError

SIZES = {"a": 3, "b": 5, "c": 4, "d": 3, "e": 6, "f": 3}
PARTS = {"a": "train", "b": "test", "c": "validation", "d": "test", "e": "train", "f": "validation"}
SHAPE = (2, 7)


def contents(**changes) -> dict[str, np.ndarray]:
    """Six classes of unequal size in mixed order; an input's first number is its row."""
    labels = np.random.default_rng(1).permutation(
        [name for name, n in SIZES.items() for _ in range(n)]
    )
    inputs = np.random.default_rng(2).normal(size=(len(labels), *SHAPE))
    inputs[:, 0, 0] = np.arange(len(labels))
    return {"inputs": inputs, "labels": labels, **changes}


def write(path: Path, **changes) -> Path:
    held = {name: value for name, value in contents(**changes).items() if value is not None}
    np.savez(path, **held)
    return path


def with_parts(**changes) -> dict[str, np.ndarray]:
    return {"part": np.array([(PARTS | changes)[label] for label in contents()["labels"]])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made-up.npz"


def load(path: Path, split: str = "64/16/20", seed: int = 0, standardise: bool = False):
    return load_arrays(path, split, seed, standardise=standardise)


def test_the_file_is_found_by_its_name_or_as_the_only_one_in_its_folder(path):
    write(path)
    (path.parent / "notes.txt").write_text("no array")
    assert find_arrays(path) == find_arrays(path.parent) == path


def test_no_file_or_several_are_refused(path, tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path} is no .npz file, and no folder with one"):
        load(tmp_path)
    with pytest.raises(DataError, match=r"nowhere is no \.npz file"):
        load(tmp_path / "nowhere")
    write(path)
    write(tmp_path / "other.npz")
    with pytest.raises(DataError, match=r"several .*\(made-up.npz, other.npz\): name one with --d"):
        load(tmp_path)


def test_every_example_is_in_the_pool_of_its_class_as_it_is_in_the_file(path):
    write(path)
    held = contents()
    spec, pools = load(path)
    assert (spec.kind, spec.shape, spec.mean, spec.scale) == ("values", SHAPE, None, None)
    seen = {}
    for pool in pools.values():
        for place, (name, count) in enumerate(zip(pool.names, pool.counts(), strict=True)):
            seen[name] = pool.take(np.full(count, place), np.arange(count))
    assert {name: len(found) for name, found in seen.items()} == SIZES
    for name, found in seen.items():
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, held["inputs"][held["labels"] == name].astype("f4"))


def test_tasks_hold_the_numbers_of_the_file_unchanged(path):
    write(path, **with_parts())
    held = contents()
    _, pools = load(path, "part")
    task = pools["test"].sample(TaskShape((2, 2), (1, 1), 2), 3, [0])
    assert task.support.inputs.shape == (3, 2, *SHAPE)
    for support, query in zip(task.support.inputs, task.query.inputs, strict=True):
        classes = []
        for one in (*support, *query):
            row = int(one[0, 0])
            np.testing.assert_array_equal(one, held["inputs"][row].astype("f4"))
            classes.append(held["labels"][row])
        assert sorted(classes[:2]) == ["b", "d"]
        assert [classes.count(name) for name in "bd"] == [3, 3]


def test_classes_are_dealt_out_by_percentages_and_a_seed(path):
    write(path)
    first, same, other = (load(path, "50/25/25", seed)[1] for seed in (0, 0, 1))
    names = [{part: pool.names for part, pool in pools.items()} for pools in (first, same, other)]
    assert names[0] == names[1] != names[2]
    assert sorted(name for its in names[0].values() for name in its) == list(SIZES)
    assert data_digest(first) == data_digest(same) != data_digest(other)


def test_classes_are_dealt_out_as_the_array_of_parts_says(path):
    write(path, **with_parts())
    pools = load(path, "part")[1]
    assert {part: pool.names for part, pool in pools.items()} == {
        "train": ("a", "e"),
        "validation": ("c", "f"),
        "test": ("b", "d"),
    }


@pytest.mark.parametrize("kind", ["i4", "u1", "S", "U"])
def test_labels_may_be_strings_or_whole_numbers(path, kind):
    numbers = np.array(["abcdef".index(label) + 8 for label in contents()["labels"]])
    write(path, labels=numbers.astype(kind))
    names = {name for pool in load(path)[1].values() for name in pool.names}
    assert names == {"8", "9", "10", "11", "12", "13"}


@pytest.mark.parametrize("kind", ["f2", "f8", "i8", "u1", "?"])
def test_inputs_may_be_real_numbers_of_any_kind(path, kind):
    write(path, inputs=contents()["inputs"].astype(kind))
    read = read_arrays(path).inputs
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, contents()["inputs"].astype(kind).astype("f4"))


@pytest.mark.parametrize("shape", [(1,), (617,), (22, 57), (3, 4, 5, 2)])
def test_inputs_may_have_any_shape(path, shape):
    write(path, inputs=np.ones((24, *shape)))
    spec, pools = load(path)
    assert spec.shape == shape
    task = pools["train"].sample(TaskShape((2, 2), (1, 1), 1), 2, [0])
    assert task.query.inputs.shape == (2, 2, *shape)


def test_the_statistics_are_those_of_the_training_classes_by_first_axis(path):
    write(path, **with_parts())
    held = contents()
    training = held["inputs"][np.isin(held["labels"], ["a", "e"])].astype("f4").astype("f8")
    spec, pools = load(path, "part", standardise=True)
    np.testing.assert_allclose(spec.mean, [training[:, c].mean() for c in (0, 1)], rtol=1e-12)
    np.testing.assert_allclose(spec.scale, [training[:, c].std() for c in (0, 1)], rtol=1e-12)
    assert data_digest(pools) == data_digest(load(path, "part")[1]), "the pools hold what was given"


def test_what_never_varies_is_not_divided(path):
    inputs = contents()["inputs"]
    inputs[:, 1] = 4.0
    write(path, inputs=inputs)
    spec, _ = load(path, standardise=True)
    assert (spec.mean[1], spec.scale[1]) == (4.0, 1.0)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_a_number_that_is_not_finite_is_named_by_file_and_row(path, number):
    inputs = contents()["inputs"]
    inputs[[9, 5], 1, 3] = number
    write(path, inputs=inputs)
    with pytest.raises(DataError, match=f"{path}: 2 rows of `inputs` .* the first is row 5: leave"):
        load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": None}, r"has no array `inputs`, but labels"),
        ({"labels": None, "y": np.zeros(24)}, r"has no array `labels`, but inputs, y"),
        ({"inputs": np.ones(24)}, r"have the shape \(24,\), .*\(1000, 1\)"),
        ({"inputs": np.ones((24, 0))}, r"have the shape \(24, 0\)"),
        ({"inputs": np.ones((24, 2), complex)}, "are complex128, where real numbers"),
        ({"inputs": np.full((24, 2), "1.0")}, "are <U3, where real numbers"),
        (
            {"labels": np.zeros(23, int)},
            r"`labels` have the shape \(23,\), where \(24,\) is needed",
        ),
        ({"labels": np.zeros((24, 2), int)}, r"`labels` have the shape \(24, 2\)"),
        ({"labels": np.zeros(24)}, "`labels` are float64, where strings or whole numbers"),
        ({"labels": np.full(24, "ä".encode())}, "`labels` are bytes beyond ASCII"),
        ({"labels": np.array([None] * 24)}, "Object arrays .*: save labels as strings, and inputs"),
        ({"labels": np.arange(24) % 5}, "there are 5 classes, and at least 6"),
        ({"part": np.array(["train"] * 24)}, 'has an array `part`: set split = "part"'),
    ],
)
def test_what_is_no_such_file_is_refused_by_its_path(path, changes, message):
    write(path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "has no array `part` to split it by"),
        (with_parts(c="dev"), r"`part` row \d+ is 'dev', which is none of train, validation, test"),
        (with_parts(b="train"), "`part` has 1 classes for test: at least two"),
        ({"part": np.zeros((24, 1), int)}, r"`part` have the shape \(24, 1\)"),
    ],
)
def test_parts_that_split_nothing_are_refused(path, changes, message):
    write(path, **changes)
    with pytest.raises(DataError, match=message) as caught:
        load(path, "part")
    assert str(caught.value).startswith(str(path))


def test_a_class_in_two_parts_is_refused_by_its_row(path):
    parts = with_parts()["part"]
    row = int(np.flatnonzero(contents()["labels"] == "e")[-1])
    parts[row] = "test"
    write(path, part=parts)
    with pytest.raises(DataError, match=f"row {row} puts the class 'e' into test, and an earlier"):
        load(path, "part")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_named(path, content):
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{path} is broken .*: write it again by numpy.savez"):
        load(path)


def test_a_single_array_is_refused(path):
    with path.open("wb") as file:
        np.save(file, np.ones((3, 2)))
    with pytest.raises(DataError, match="holds a single array without a name"):
        load(path)


def test_a_file_that_was_cut_off_is_named(path):
    write(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=f"{path} is broken"):
        load(path)
