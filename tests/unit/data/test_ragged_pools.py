"""Tasks of classes that differ in their number of pictures."""

import numpy as np
import pytest
import torch
from torch import Tensor

from app.data.pools import ClassPool, RaggedPool, TaskShape, data_digest
from app.errors import DataError
from tests.unit.data.helpers import VARIED, random_images, shots_of

SIZES = (9, 3, 20, 2, 6, 9)


@pytest.fixture
def uneven() -> RaggedPool:
    """Classes of as many pictures as SIZES says; grey 40 c + n is picture n of class c.

    They lie in another order than their names do, with pictures of nobody in between.
    """
    sizes = np.array(SIZES)
    starts = np.array([60, 50, 30, 5, 10, 80])
    images = np.full((100, 1, 2, 2), 255, np.uint8)
    for number, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        greys = 40 * number + np.arange(size, dtype=np.uint8)
        images[start : start + size] = greys[:, None, None, None]
    return RaggedPool(images, tuple("abcdef"), starts, sizes)


def found_in(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Class and number of pictures of the uneven pool."""
    greys = (inputs * 255).round().long()[..., 0, 0, 0]
    return greys // 40, greys % 40


def test_a_class_takes_part_where_it_has_the_pictures_for_a_batch(uneven):
    seen: dict[int, set[int]] = {}
    for seed in range(200):
        task = uneven.sample(TaskShape((2, 3), (1, 4), 2), 3, [seed])
        most = int(shots_of(task).max())
        classes, numbers = found_in(torch.cat([task.support.inputs, task.query.inputs], 1))
        assert (numbers < torch.tensor(SIZES)[classes]).all(), "a picture of another class"
        for index in range(3):
            pairs = list(zip(classes[index].tolist(), numbers[index].tolist(), strict=True))
            assert len(set(pairs)) == len(pairs), "a picture twice in a task"
        seen.setdefault(most, set()).update(classes.flatten().tolist())
    able = {most: {c for c, size in enumerate(SIZES) if size >= most + 2} for most in (1, 2, 3, 4)}
    assert seen == able


def test_every_class_that_can_and_each_of_its_pictures_take_part_evenly(uneven):
    task = uneven.sample(TaskShape((2, 2), (1, 1), 2), 6000, [1])
    classes, numbers = found_in(task.query.inputs)
    tally = torch.bincount(classes.flatten(), minlength=6)
    assert tally[3] == 0
    expected = classes.numel() / 5
    assert (tally[[0, 1, 2, 4, 5]] - expected).abs().max() < 5 * (2 * expected) ** 0.5
    for number, size in enumerate(SIZES):
        of_class = torch.bincount(numbers[classes == number], minlength=size)
        assert len(of_class) == size
        mean = of_class.sum() / size
        assert (of_class - mean).abs().max() <= 6 * mean**0.5


def test_pictures_to_pretrain_on_come_from_all_classes_alike(uneven):
    drawn = uneven.sample_pictures(6000, [1])
    classes, numbers = found_in(drawn.inputs)
    assert torch.equal(classes, drawn.labels)
    assert (numbers < torch.tensor(SIZES)[classes]).all()
    assert (torch.bincount(classes) - 1000).abs().max() < 5 * 1000**0.5


def test_too_few_classes_with_the_pictures_are_told_with_the_numbers(uneven):
    with pytest.raises(DataError, match=r"4 classes with 5 \+ 2 .*of 2 to 20, 3 of which"):
        uneven.sample(TaskShape((2, 4), (1, 5), 2), 2, [0])


def test_queries_are_as_many_as_every_class_has_beside_its_shots(uneven):
    assert [uneven.most_queries(shots) for shots in (1, 2, 3, 9, 30)] == [1, 1, 3, 11, -10]
    assert [uneven.most_ways(pictures) for pictures in (2, 3, 10, 21)] == [6, 5, 1, 0]
    assert uneven.input_shape == (1, 2, 2)


def test_parts_of_a_batch_of_uneven_classes_are_the_whole(uneven):
    shape = TaskShape((2, 4), (1, 3), 2)
    whole = uneven.sample(shape, 5, [3], VARIED)
    parts = [uneven.sample(shape, 5, [3], VARIED, slice(*ends)) for ends in ((0, 2), (2, 5))]
    together = torch.cat([part.query.inputs for part in parts])
    assert torch.equal(together, whole.query.inputs)


def test_an_uneven_pool_turned_in_every_way_has_the_turned_pictures_of_each_class():
    images = random_images(5, 1, 3, 3)
    pool = RaggedPool(images, ("a", "b"), np.array([3, 0]), np.array([2, 3]))
    even = [
        ClassPool(images[None, start : start + size], ("x",)) for start, size in ((3, 2), (0, 3))
    ]
    turned = pool.symmetric()
    assert turned.counts().tolist() == [2, 3] * 8
    assert turned.names[:4] == ("a 0", "b 0", "a 1", "b 1")
    for row in range(16):
        expected = even[row % 2].symmetric().images[row // 2]
        numbers = np.arange(len(expected))
        assert (turned.take(np.full(len(numbers), row), numbers) == expected).all()


def test_the_digest_tells_how_pictures_are_divided_among_classes(uneven):
    images = random_images(10, 1, 2, 2)

    def pool(*sizes: int, names: str = "ab") -> RaggedPool:
        counts = np.array(sizes)
        return RaggedPool(images, tuple(names), counts.cumsum() - counts, counts)

    pools = [pool(4, 6), pool(5, 5), pool(4, 6, names="ac"), pool(4, 5)]
    assert len({data_digest({"train": each}) for each in pools}) == 4
    moved = RaggedPool(
        np.concatenate([images[4:], images[:4]]), ("a", "b"), np.array([6, 0]), np.array([4, 6])
    )
    assert data_digest({"train": moved}) == data_digest({"train": pools[0]})
