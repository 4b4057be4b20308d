"""Distributions by name."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from app.data import distributions, mini_imagenet, omniglot
from app.data.distributions import SPLITS, load_source
from app.data.pools import ClassPool, data_digest
from app.data.sinusoid import Sinusoids
from app.errors import DataError
from app.training.recipe import DataPart


def silent(name: str, done: int, total: int) -> None: ...


def pools(first: int = 0) -> dict[str, ClassPool]:
    images = np.full((2, 3, 1, 4, 4), first, np.uint8)
    return {part: ClassPool(images, (f"{part} a", f"{part} b")) for part in distributions.PARTS}


@pytest.mark.parametrize(
    ("distribution", "split"),
    [("omniglot", "64/16/20"), ("mini-imagenet", ""), ("sinusoid", "1200/423"), ("cifar", "all")],
)
def test_an_unknown_split_is_refused_with_those_that_are_known(tmp_path, distribution, split):
    with pytest.raises(DataError, match=f"no split '{split}' of '{distribution}'") as caught:
        load_source(distribution, split, tmp_path, silent)
    for name, known in SPLITS.items():
        for one in (name, *known):
            assert one in str(caught.value)


def test_a_recipe_can_name_every_distribution_with_every_split():
    assert set(get_args(DataPart.model_fields["distribution"].annotation)) == set(SPLITS)
    for distribution, splits in SPLITS.items():
        for split in splits:
            assert DataPart(distribution=distribution, split=split).split == split


@pytest.mark.parametrize(("split", "width"), [("function", 1), ("oracle", 3)])
def test_the_sinusoid_needs_no_data_and_serves_all_parts(tmp_path, split, width):
    source = load_source("sinusoid", split, tmp_path / "nowhere", silent)
    assert source.input.shape == (width,)
    assert dict(source.parts) == dict.fromkeys(
        ("train", "validation", "test"), Sinusoids(oracle=split == "oracle")
    )
    assert not (tmp_path / "nowhere").exists()


def test_the_two_kinds_of_sinusoid_have_digests_of_their_own(tmp_path):
    digests = [
        load_source("sinusoid", split, tmp_path, silent).digest
        for split in ("function", "oracle", "function")
    ]
    assert digests[0] == digests[2] != digests[1]
    assert all(len(digest) == 64 for digest in digests)


def test_omniglot_is_read_from_its_folder_by_its_split(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(omniglot, "load_omniglot", lambda *given: asked.append(given) or pools())
    source = load_source("omniglot", "1200/423", tmp_path, silent)
    assert asked == [(tmp_path, "1200/423", silent)]
    assert source.input == omniglot.INPUT
    assert set(source.parts) == {"train", "validation", "test"}
    assert source.digest == data_digest(pools())


def test_mini_imagenet_is_read_from_its_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        mini_imagenet, "load_mini_imagenet", lambda *given: asked.append(given) or pools()
    )
    source = load_source("mini-imagenet", "64/16/20", tmp_path, silent)
    assert asked == [(tmp_path, silent)]
    assert source.input == mini_imagenet.INPUT


def test_other_pictures_or_names_have_another_digest():
    renamed = pools()
    renamed["test"] = ClassPool(renamed["test"].images, ("test a", "test c"))
    swapped = pools()
    swapped["train"], swapped["test"] = swapped["test"], swapped["train"]
    assert len({data_digest(given) for given in (pools(), pools(1), renamed, swapped)}) == 4
    assert data_digest(pools()) == data_digest(dict(reversed(pools().items())))


def test_a_broken_file_is_named(tmp_path: Path):
    path = tmp_path / omniglot.CACHE
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=rf"{path} is broken .*delete it"):
        load_source("omniglot", "background/evaluation", tmp_path, silent)
