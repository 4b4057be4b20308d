import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from app.data.split import PARTS, shares, split_by_list, split_by_shares
from app.errors import DataError

NAMES = tuple(f"class {number:03}" for number in range(100))


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("64/16/20", (64, 16, 20)),
        ("98/1/1", (98, 1, 1)),
        ("64/16/21", None),
        ("64/36", None),
        ("100/0/0", None),
        ("64/16/20 ", None),
        ("6.4/16/20", None),
        ("classes.csv", None),
        ("", None),
    ],
)
def test_shares_are_three_percentages_that_add_up(split, expected):
    assert shares(split) == expected


def test_every_class_is_in_one_part_and_parts_are_as_large_as_asked():
    split = split_by_shares(NAMES, (64, 16, 20), seed=0)
    assert list(split) == list(PARTS)
    assert [len(names) for names in split.values()] == [64, 16, 20]
    assert sorted(name for names in split.values() for name in names) == list(NAMES)
    assert all(list(names) == sorted(names) for names in split.values())


def test_the_seed_decides_and_the_order_of_the_names_does_not():
    one = split_by_shares(NAMES, (64, 16, 20), seed=0)
    assert split_by_shares(tuple(reversed(NAMES)), (64, 16, 20), seed=0) == one
    others = [split_by_shares(NAMES, (64, 16, 20), seed)["test"] for seed in range(1, 6)]
    assert len({one["test"], *others}) == 6


def test_classes_go_to_each_part_evenly_over_the_seeds():
    tally = Counter(
        name for seed in range(500) for name in split_by_shares(NAMES, (64, 16, 20), seed)["test"]
    )
    assert all(60 <= tally[name] <= 145 for name in NAMES)  # 100 expected, five deviations


def test_one_class_more_moves_hardly_any_other():
    before = split_by_shares(NAMES, (64, 16, 20), seed=0)
    after = split_by_shares((*NAMES, "a new one"), (64, 16, 20), seed=0)
    moved = [name for part in PARTS for name in before[part] if name not in after[part]]
    assert len(moved) <= 2


@pytest.mark.parametrize(
    ("classes", "of", "expected"),
    [
        (6, (64, 16, 20), [2, 2, 2]),
        (7, (90, 5, 5), [3, 2, 2]),
        (8, (10, 10, 80), [2, 2, 4]),
        (20, (64, 16, 20), [13, 3, 4]),
    ],
)
def test_every_part_of_few_classes_has_at_least_two(classes, of, expected):
    split = split_by_shares(NAMES[:classes], of, seed=0)
    assert [len(names) for names in split.values()] == expected


def test_too_few_classes_are_told_with_the_numbers():
    with pytest.raises(DataError, match="there are 5 classes, and at least 6 are needed"):
        split_by_shares(NAMES[:5], (64, 16, 20), seed=0)


LISTED = {
    "a": "train",
    "b": "test",
    "c": "validation",
    "d, e": "train",
    "f": "test",
    "g": "validation",
}


def write(folder: Path, rows: dict[str, str], start: str = "class,part\n") -> Path:
    path = folder / "classes.csv"
    lines = [f'"{name}",{part}\n' for name, part in rows.items()]
    path.write_text("".join([start, *lines]), encoding="utf-8")
    return path


@pytest.mark.parametrize("start", ["class,part\n", "\ufeffclass,part\r\n"])
def test_a_list_says_the_part_of_each_class(tmp_path, start):
    split = split_by_list(tuple(LISTED), write(tmp_path, LISTED, start))
    assert split == {"train": ("a", "d, e"), "validation": ("c", "g"), "test": ("b", "f")}


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"classes\.csv cannot be used .*No such file"):
        split_by_list(("a",), tmp_path / "classes.csv")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "first line is not class,part"),
        (b"class;part\na;train\n", "first line is not class,part but 'class;part'"),
        (b"class,part\na,exam\n", "line 2 is not a class and .* validation, test: 'a,exam'"),
        (b"class,part\na\n", "line 2 is not a class"),
        (b"class,part\na,train\na,test\n", "line 3 lists a again"),
        (b"class,part\n\xff,train\n", "save it as UTF-8"),
    ],
)
def test_a_broken_list_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "classes.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        split_by_list(("a",), path)
    assert str(path) in str(caught.value)


def test_a_list_must_name_every_class_that_there_is_and_no_other(tmp_path):
    path = write(tmp_path, LISTED)
    with pytest.raises(DataError, match="lists no part of x and 1 more: it must list every class"):
        split_by_list((*LISTED, "y", "x"), path)
    with pytest.raises(DataError, match="lists what has no folder, g: it must list every class"):
        split_by_list(tuple(LISTED)[:-1], path)


def test_a_list_needs_two_classes_of_each_part(tmp_path):
    path = write(tmp_path, LISTED | {"g": "train"})
    with pytest.raises(DataError, match="fewer than 2 classes for validation"):
        split_by_list(tuple(LISTED), path)


def test_spaces_and_the_form_of_an_umlaut_make_no_other_class(tmp_path):
    path = tmp_path / "classes.csv"
    names = [unicodedata.normalize("NFC", f"ä{number}") for number in range(6)]
    parts = [part for part in ("train", "validation", "test") for _ in range(2)]
    rows = [
        f"{unicodedata.normalize('NFD', name)} , {part}\n"
        for name, part in zip(names, parts, strict=True)
    ]
    path.write_text("".join(["class,part\n", *rows]), encoding="utf-8")
    split = split_by_list(names, path)
    assert split == {
        part: tuple(names[at : at + 2]) for at, part in zip((0, 2, 4), split, strict=True)
    }
