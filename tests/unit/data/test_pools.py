from collections import Counter
from hashlib import sha256
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from app.data.augment import Jitter
from app.data.pools import Augmentation, ClassPool, Pool, RaggedPool, TaskShape
from app.errors import DataError
from app.learning.tasks import Examples, Task
from tests.unit.data.helpers import VARIED, random_images, shots_of

CLASSES, PICTURES = 12, 10
STILL = Jitter()


@pytest.fixture
def pool() -> ClassPool:
    """Each picture is of one grey, which tells its class and its number."""
    greys = np.arange(CLASSES * PICTURES, dtype=np.uint8).reshape(CLASSES, PICTURES, 1, 1, 1)
    images = np.broadcast_to(greys, (CLASSES, PICTURES, 1, 2, 2)).copy()
    return ClassPool(images, tuple(f"class {number}" for number in range(CLASSES)))


def identities(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Class and number of each picture, (B, M) each."""
    greys = (inputs * 255).round().long()
    assert bool((greys == greys[..., :1, :1, :1]).all())
    return greys[..., 0, 0, 0] // PICTURES, greys[..., 0, 0, 0] % PICTURES


def assert_equal(one: Task, other: Task) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_same_seed_draws_the_same_tasks(pool):
    shape = TaskShape((2, 5), (1, 5), 2)
    augmentation = Augmentation(True, Jitter(20, 0.1, 0.1, 0.1), Jitter(10, 0.1, 0.1, 0.1))
    for seed in ([3], [3, 7]):
        first = pool.sample(shape, 4, seed, augmentation)
        np.random.default_rng(0).random()
        torch.rand(3)
        assert_equal(pool.sample(shape, 4, seed, augmentation), first)


def test_other_seeds_draw_other_tasks(pool):
    shape = TaskShape((5, 5), (2, 2), 2)
    drawn = [pool.sample(shape, 4, seed).support.inputs for seed in ([3], [4], [3, 1], [4, 1])]
    for index, one in enumerate(drawn):
        assert not any(torch.equal(one, other) for other in drawn[:index])


def test_tasks_of_a_batch_differ(pool):
    classes, _ = identities(pool.sample(TaskShape((5, 5), (1, 1), 1), 8, [0]).support.inputs)
    assert len({tuple(row) for row in classes.tolist()}) == 8


def test_shapes_and_types(pool):
    task = pool.sample(TaskShape((3, 3), (2, 2), 4), 6, [0])
    assert task.support.inputs.shape == (6, 3 * 2, 1, 2, 2)
    assert task.query.inputs.shape == (6, 3 * 4, 1, 2, 2)
    for part, each in ((task.support, 2), (task.query, 4)):
        assert part.inputs.dtype == torch.float32
        assert part.labels.tolist() == [sorted([*range(3)] * each)] * 6
        assert part.labels.dtype == torch.int64
        assert bool(part.mask.all())
    assert task.classes.tolist() == [[True] * 3] * 6


def test_a_label_is_one_class_and_classes_of_a_task_are_distinct(pool):
    for seed in range(10):
        task = pool.sample(TaskShape((2, CLASSES), (1, 4), 3), 8, [seed])
        ways = task.classes.shape[1]
        of_support, _ = identities(task.support.inputs)
        of_query, _ = identities(task.query.inputs)
        for index in range(8):
            by_label: dict[int, set[int]] = {}
            for part, found in ((task.support, of_support), (task.query, of_query)):
                for label, number in zip(
                    part.labels[index].tolist(), found[index].tolist(), strict=True
                ):
                    by_label.setdefault(label, set()).add(number)
            assert sorted(by_label) == list(range(ways))
            assert all(len(numbers) == 1 for numbers in by_label.values())
            assert len(set.union(*by_label.values())) == ways


def test_no_picture_is_drawn_twice_in_a_task(pool):
    for seed in range(10):
        task = pool.sample(TaskShape((4, 4), (1, 6), 4), 8, [seed])
        drawn = torch.cat([task.support.inputs, task.query.inputs], 1)
        classes, numbers = identities(drawn)
        for index in range(8):
            pairs = list(zip(classes[index].tolist(), numbers[index].tolist(), strict=True))
            assert len(set(pairs)) == len(pairs)


def test_every_class_and_every_picture_takes_part_evenly(pool):
    task = pool.sample(TaskShape((3, 3), (2, 2), 1), 2000, [1])
    classes, numbers = identities(task.support.inputs)
    # 1,000 expected of each class, 1,200 of each number; five standard deviations of slack.
    for found, count in ((classes, CLASSES), (numbers, PICTURES)):
        tally = torch.bincount(found.flatten(), minlength=count)
        expected = found.numel() / count
        assert len(tally) == count
        assert (tally - expected).abs().max() < 5 * (2 * expected) ** 0.5


def test_shots_and_ways_stay_within_their_ranges_and_reach_their_ends(pool):
    ways, shots, ragged = Counter(), Counter(), 0
    for seed in range(60):
        task = pool.sample(TaskShape((2, 5), (2, 5), 1), 3, [seed])
        counts = shots_of(task)
        ways[task.classes.shape[1]] += 1
        shots.update(counts.flatten().tolist())
        ragged += int((counts.max(1).values > counts.min(1).values).sum())
        # What is padded for one class is a picture of another.
        assert (counts.max(1).values * counts.shape[1] == task.support.mask.shape[1]).all()
    assert set(ways) == {2, 3, 4, 5}
    assert set(shots) == {2, 3, 4, 5}
    assert ragged > 60


def test_one_number_of_shots_leaves_no_padding(pool):
    task = pool.sample(TaskShape((4, 4), (3, 3), 2), 5, [0])
    assert bool((shots_of(task) == 3).all())
    assert bool(task.support.mask.all())


@pytest.mark.parametrize(
    ("shape", "numbers"),
    [
        (TaskShape((2, 13), (1, 1), 1), ("13 classes", "1 + 1", "12 classes of 10")),
        (TaskShape((2, 5), (1, 7), 4), ("5 classes", "7 + 4", "12 classes of 10")),
    ],
)
def test_a_pool_that_is_too_small_is_told_with_the_numbers(pool, shape, numbers):
    with pytest.raises(DataError) as caught:
        pool.sample(shape, 2, [0])
    for number in numbers:
        assert number in str(caught.value)


def test_the_whole_pool_can_be_one_task(pool):
    task = pool.sample(TaskShape((12, 12), (6, 6), 4), 1, [0])
    classes, _ = identities(task.support.inputs)
    assert sorted(set(classes[0].tolist())) == list(range(12))


def squares() -> list[np.ndarray]:
    """The eight symmetries of a picture that has none, by the definition of each."""
    picture = np.arange(9).reshape(3, 3)
    turned = []
    for mirrored, quarters in product((False, True), range(4)):
        image = picture.T if mirrored else picture
        for _ in range(quarters):
            image = np.array([[image[x, 2 - y] for x in range(3)] for y in range(3)])
        turned.append(image)
    return turned


def test_symmetries_make_all_eight_of_a_class_and_the_same_for_all_its_pictures():
    images = np.broadcast_to(np.arange(9, dtype=np.uint8).reshape(3, 3), (4, 6, 1, 3, 3))
    pool = ClassPool(images, ("a", "b", "c", "d"))
    augmentation = Augmentation(True, STILL, STILL)
    task = pool.sample(TaskShape((4, 4), (2, 2), 3), 100, [0], augmentation)
    by_class = torch.cat(
        [task.support.inputs.unflatten(1, (4, 2)), task.query.inputs.unflatten(1, (4, 3))], 2
    )
    found = Counter()
    for pictures in (by_class * 255).round().int().flatten(0, 1).numpy():
        assert (pictures == pictures[:1]).all()
        found[pictures[0].tobytes()] += 1
    expected = [square.astype(np.int32).tobytes() for square in squares()]
    assert len(set(expected)) == 8
    assert set(found) == set(expected)
    assert min(found.values()) > 25  # of 50 expected


def test_without_augmentation_pictures_are_the_bytes_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 4, 4), dtype=np.uint8)
    task = ClassPool(images, ("a", "b")).sample(TaskShape((2, 2), (2, 2), 1), 5, [0])
    known = {(image.astype(np.float32) / 255).tobytes() for row in images for image in row}
    drawn = torch.cat([task.support.inputs, task.query.inputs], 1).flatten(0, 1).numpy()
    assert {image.tobytes() for image in drawn} == known


def test_augmentation_without_symmetries_and_of_zero_width_changes_nothing():
    images = np.random.default_rng(0).integers(0, 256, (6, 6, 1, 5, 5), dtype=np.uint8)
    pool, shape = ClassPool(images, tuple("abcdef")), TaskShape((2, 5), (1, 4), 2)
    plain = pool.sample(shape, 4, [5])
    augmented = pool.sample(shape, 4, [5], Augmentation(False, STILL, STILL))
    torch.testing.assert_close(augmented, plain, rtol=0, atol=1e-5)


def test_both_jitters_reach_the_pictures():
    blot = np.zeros((2, 4, 1, 9, 9), np.uint8)
    blot[..., 3:5, 2:7] = 255
    shape = TaskShape((2, 2), (2, 2), 2)
    moving = Jitter(degrees=40, shift=0.1)

    def drawn(of_class: Jitter, of_picture: Jitter) -> Tensor:
        augmentation = Augmentation(False, of_class, of_picture)
        task = ClassPool(blot, ("a", "b")).sample(shape, 3, [0], augmentation)
        return task.support.inputs.unflatten(1, (2, 2))  # (B, N, K, C, H, W)

    by_class, by_picture = drawn(moving, STILL), drawn(STILL, moving)
    assert torch.equal(by_class[:, :, 0], by_class[:, :, 1])
    assert (by_class[:, 0] - by_class[:, 1]).abs().amax((1, 2, 3, 4)).min() > 0.1
    assert (by_picture[:, :, 0] - by_picture[:, :, 1]).abs().amax((2, 3, 4)).min() > 0.1


@pytest.mark.parametrize("augmentation", [None, VARIED], ids=["plain", "varied"])
def test_parts_of_a_batch_put_together_are_the_whole_to_the_bit(augmentation):
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 1, 7, 7), dtype=np.uint8)
    pool, shape = ClassPool(images, tuple("abcdef")), TaskShape((2, 5), (1, 5), 3)
    for seed in range(5):
        whole = pool.sample(shape, 7, [seed], augmentation)
        ends = ((0, 3), (3, 4), (4, 7))
        parts = [pool.sample(shape, 7, [seed], augmentation, slice(*end)) for end in ends]
        assert [len(part.classes) for part in parts] == [3, 1, 3]
        assert torch.equal(torch.cat([part.classes for part in parts]), whole.classes)
        for name in ("support", "query"):
            for field, expected in zip(Examples._fields, getattr(whole, name), strict=True):
                together = torch.cat([getattr(getattr(part, name), field) for part in parts])
                assert torch.equal(together, expected), (name, field)


@pytest.mark.parametrize("augmentation", [None, VARIED], ids=["plain", "varied"])
def test_parts_of_a_batch_of_pictures_are_the_whole_to_the_bit(augmentation):
    images = np.random.default_rng(0).integers(0, 256, (6, 9, 1, 7, 7), dtype=np.uint8)
    pool = ClassPool(images, tuple("abcdef"))
    whole = pool.sample_pictures(11, [3], augmentation)
    parts = [pool.sample_pictures(11, [3], augmentation, slice(*e)) for e in ((0, 5), (5, 11))]
    for field, expected in zip(Examples._fields, whole, strict=True):
        together = torch.cat([getattr(part, field) for part in parts])
        assert torch.equal(together, expected), field


def test_pictures_are_drawn_evenly_from_all_classes_and_labelled_by_theirs(pool):
    drawn = pool.sample_pictures(6000, [1])
    assert drawn.inputs.shape == (6000, 1, 2, 2)
    assert drawn.inputs.dtype == torch.float32
    assert drawn.labels.dtype == torch.int64
    assert bool(drawn.mask.all())
    classes, numbers = (found[0] for found in identities(drawn.inputs[None]))
    assert torch.equal(classes, drawn.labels)
    for found, count in ((classes, CLASSES), (numbers, PICTURES)):
        tally = torch.bincount(found, minlength=count)
        assert ((tally - 6000 / count).abs() < 5 * (6000 / count) ** 0.5).all()


def test_the_same_seed_draws_the_same_pictures_and_another_others(pool):
    first = pool.sample_pictures(20, [3, 1], VARIED)
    torch.testing.assert_close(pool.sample_pictures(20, [3, 1], VARIED), first, rtol=0, atol=0)
    assert not torch.equal(pool.sample_pictures(20, [3, 2], VARIED).labels, first.labels)


def test_a_turned_or_mirrored_class_is_a_class_of_its_own_and_its_label_tells_which():
    """Label 8 c + s: of class c, turned s mod 4 quarters, and mirrored afterwards from s = 4 on."""
    base = np.arange(4 * 9, dtype=np.uint8).reshape(4, 1, 1, 3, 3)  # no two symmetries alike
    pool = ClassPool(np.repeat(base, 3, axis=1), tuple("abcd"))
    augmentation = Augmentation(True, STILL, STILL)
    assert pool.augmented_classes(augmentation) == 4 * 8
    assert pool.augmented_classes(Augmentation(False, STILL, STILL)) == 4
    drawn = pool.sample_pictures(600, [2], augmentation)
    looks: dict[int, set[bytes]] = {}
    pictures = (drawn.inputs * 255).round().to(torch.uint8).numpy()[:, 0]
    for picture, label in zip(pictures, drawn.labels.tolist(), strict=True):
        number, symmetry = divmod(label, 8)
        assert set(picture.flat) == set(base[number].flat)
        turned = base[number, 0, 0]
        for _ in range(symmetry % 4):
            turned = np.array([[turned[x, 2 - y] for x in range(3)] for y in range(3)])
        expected = turned[:, ::-1] if symmetry >= 4 else turned
        assert (picture == expected).all(), label
        looks.setdefault(label, set()).add(picture.tobytes())
    assert sorted(looks) == list(range(32))
    assert len(set.union(*looks.values())) == 32


DRAWN = {
    None: (
        "12d941ccd0aa7ca290490ee359865e54052e38a1e423a5f5827a9bdf36c3aed8",
        "3a922c5a28334726998be5fada453ba4a27db79ccd200de7ef7b6f91d29a6293",
        "5c3a0d73ce11bfe9a68383522a160d5f6250dafe8f1b5593172b2cdc6b5688d9",
    ),
    Augmentation(True, STILL, STILL): (
        "ceea0281a918ce002fb3914e50b56c0b7468c5ee87d32d3447716527881ae36e",
        "009ab71e5db8d5edd91642852abdf0b5058ba378142b28bef414f94dc2774022",
        "b47cc0531847c1f9fa2c3a7a197d3936ff093810cbc86c4eb462dbe439717112",
    ),
}
"""SHA-256 of what some seeds draw. With other tasks no figure and no θ could be made again."""


def test_classes_that_are_turned_together_stand_in_one_symmetry_of_all_eight():
    images = np.broadcast_to(np.arange(9, dtype=np.uint8).reshape(3, 3), (4, 6, 1, 3, 3))
    pool = ClassPool(images, ("a", "b", "c", "d"))
    augmentation = Augmentation(True, STILL, STILL, turned_together=True)
    task = pool.sample(TaskShape((4, 4), (1, 1), 1), 200, [0], augmentation)
    pictures = torch.cat([task.support.inputs, task.query.inputs], 1)
    assert (pictures == pictures[:, :1]).all()
    found = Counter(picture.tobytes() for picture in (pictures[:, 0] * 255).round().int().numpy())
    assert set(found) == {square.astype(np.int32).tobytes() for square in squares()}


def digest(*tensors: Tensor) -> str:
    return sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()


def as_ragged(pool: ClassPool) -> RaggedPool:
    """The same classes of equally many pictures, as if they could differ."""
    classes, each = pool.images.shape[:2]
    sizes = np.full(classes, each)
    images = pool.images.reshape(-1, *pool.images.shape[2:])
    return RaggedPool(images, pool.names, sizes.cumsum() - sizes, sizes)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("augmentation", DRAWN, ids=["plain", "turned"])
def test_a_seed_draws_what_it_has_always_drawn(augmentation, ragged):
    pool: Pool = ClassPool(random_images(30, 12, 1, 4, 4, seed=5), tuple(map(str, range(30))))
    if ragged:
        pool = as_ragged(pool)
    tasks = [
        pool.sample(TaskShape((5, 20), (1, 5), 3), 4, (3, 0, 17), augmentation),
        pool.sample(TaskShape((5, 5), (1, 1), 7), 6, (2,), augmentation),
    ]
    found = [digest(*task.support, *task.query, task.classes) for task in tasks]
    found.append(digest(*pool.sample_pictures(50, (3, 0, 2), augmentation)))
    assert tuple(found) == DRAWN[augmentation]


def test_deformed_pictures_are_those_that_a_seed_has_always_given():
    pool = ClassPool(random_images(30, 12, 1, 4, 4, seed=5), tuple(map(str, range(30))))
    task = pool.sample(TaskShape((5, 20), (1, 5), 3), 4, (3, 0, 17), VARIED)
    expected = torch.tensor(
        [
            [0.1195, 0.3192, 0.2031, 0.1008],
            [0.4652, 0.9075, 0.5367, 0.6782],
            [0.1033, 0.4522, 0.5853, 0.3836],
            [0.0384, 0.3010, 0.2800, 0.4293],
        ]
    )
    torch.testing.assert_close(task.support.inputs[3, 7, 0], expected, rtol=0, atol=1e-4)


def test_what_moves_into_a_photograph_is_its_own_mirror_image():
    images = np.full((2, 4, 1, 9, 9), 200, np.uint8)
    shape = TaskShape((2, 2), (2, 2), 2)
    moving = Jitter(degrees=40, shift=0.2)

    def darkest(**outside) -> float:
        augmentation = Augmentation(False, STILL, moving, **outside)
        task = ClassPool(images, ("a", "b")).sample(shape, 3, [0], augmentation)
        return float(task.support.inputs.min())

    assert darkest() == 0
    assert darkest(outside="reflection") == pytest.approx(200 / 255, abs=1e-5)
