import errno
import os
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image

from app.data.mini_imagenet import INPUT, load_mini_imagenet
from app.data.pools import ClassPool, TaskShape, data_digest
from app.errors import DataError

LISTS = {"train.csv": ["n03", "n01", "n02"], "val.csv": ["n05"], "test.csv": ["n04", "n06"]}
PARTS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
FILES = ["00000002.jpg", "00000010.jpg", "00000001.jpg"]
CACHES = [f"mini-imagenet-84x84-{part}.{end}" for part in sorted(PARTS) for end in ("json", "npy")]


def colour(name: str) -> tuple[int, int, int]:
    """One for each picture: red tells the class, green the number in it."""
    return 40 * int(name[2]), 20 * int(name[3:11]), 100


def picture(name: str, size: tuple[int, int] = (84, 84)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, colour(name)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_list(folder: Path, name: str, labels: list[str]) -> None:
    rows = [f"{label}{file},{label}\n" for label in labels for file in FILES]
    (folder / name).write_text("".join(["filename,label\n", *rows]))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("released")
    (root / "images").mkdir()
    for name, labels in LISTS.items():
        write_list(root, name, labels)
        for label in labels:
            for file in FILES:
                (root / "images" / (label + file)).write_bytes(picture(label + file))
    return root


@pytest.fixture
def folder(released: Path, tmp_path: Path) -> Path:
    return copytree(released, tmp_path / "mini")


@pytest.fixture
def cached(folder: Path) -> Path:
    load_mini_imagenet(folder)
    return folder


def assert_right(pools: dict[str, ClassPool]) -> None:
    """The pools hold the miniature, by the colours of its pictures."""
    assert list(pools) == ["train", "validation", "test"]
    for part, pool in pools.items():
        labels = sorted(LISTS[PARTS[part]])
        assert pool.names == tuple(labels)
        assert pool.images.shape == (len(labels), len(FILES), *INPUT.shape)
        assert pool.images.dtype == np.uint8
        for label, images in zip(labels, pool.images, strict=True):
            for file, image in zip(sorted(FILES), images, strict=True):
                wanted = np.array(colour(label + file))[:, None, None]
                assert np.abs(image.astype(int) - wanted).max() <= 3  # JPEG rounds


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(DataError) as caught:
        load_mini_imagenet(folder)
    for part in parts:
        assert part in str(caught.value)


def caches(folder: Path) -> list[str]:
    """The files of the caches and of attempts at them."""
    return sorted(path.name for path in folder.iterdir() if "84x84" in path.name)


def test_every_picture_is_under_its_class_in_the_order_of_labels_and_file_names(folder):
    assert_right(load_mini_imagenet(folder))
    assert caches(folder) == CACHES


def test_labels_are_sorted_by_themselves_whatever_the_files_are_called(folder):
    rows = ["filename,label", "n0100000001.jpg,wren", "n0300000001.jpg,ant"]
    (folder / "train.csv").write_text("\n".join(rows))
    pool = load_mini_imagenet(folder)["train"]
    assert pool.names == ("ant", "wren")
    assert np.abs(pool.images[:, 0, 0, 0, 0].astype(int) - [120, 40]).max() <= 3


def test_pictures_may_lie_in_any_folder_below_and_behind_links(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for number, path in enumerate(sorted((folder / "images").iterdir())):
        target = elsewhere if number % 2 else folder / "a" / path.name[:3]
        target.mkdir(parents=True, exist_ok=True)
        path.rename(target / path.name)
    (folder / "linked").symlink_to(elsewhere)
    (folder / "a" / "back").symlink_to(folder)
    (folder / "a" / "again").symlink_to(folder)
    assert_right(load_mini_imagenet(folder))


def test_of_several_pictures_with_one_name_the_first_folder_counts(folder):
    for place in ("z", "y", "aside"):
        (folder / place).mkdir()
        (folder / place / "n0100000001.jpg").write_bytes(b"no picture")
    (folder / "a").mkdir()
    (folder / "a" / "n0100000001.jpg").write_bytes(picture("n0100000001.jpg"))
    assert_right(load_mini_imagenet(folder))


def test_pictures_of_another_size_or_format_are_made_to_fit(folder):
    (folder / "images" / "n0100000001.jpg").write_bytes(picture("n0100000001.jpg", (500, 333)))
    image = Image.open(BytesIO(picture("n0600000002.jpg")))
    image.save(folder / "images" / "n0600000002.jpg", "PNG")
    assert_right(load_mini_imagenet(folder))


def test_images_are_mapped_not_read_and_cannot_be_written_to(folder):
    for pool in (load_mini_imagenet(folder)["train"], load_mini_imagenet(folder)["train"]):
        assert isinstance(pool.images, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            pool.images[0] = 0


def test_tasks_and_the_digest_are_drawn_from_the_map(folder):
    pools = load_mini_imagenet(folder)
    in_memory = {part: ClassPool(np.array(p.images), p.names) for part, p in pools.items()}
    assert data_digest(pools) == data_digest(in_memory)
    shape = TaskShape(ways=(2, 2), shots=(1, 1), queries=2)
    one, other = (p["train"].sample(shape, 3, [1]) for p in (pools, in_memory))
    assert np.array_equal(one.query.inputs, other.query.inputs)


def test_the_second_time_caches_and_lists_are_all_it_needs(cached, tmp_path):
    target = tmp_path / "moved"
    target.mkdir()
    for name in (*CACHES, *LISTS):
        (cached / name).rename(target / name)
    assert_right(load_mini_imagenet(target))
    assert sorted(path.name for path in target.iterdir()) == sorted((*CACHES, *LISTS))


def test_only_the_cache_that_is_missing_is_made(cached):
    (cached / "mini-imagenet-84x84-validation.npy").unlink()
    for path in (cached / "images").iterdir():
        if not path.name.startswith("n05"):
            path.unlink()
    told = []
    assert_right(load_mini_imagenet(cached, lambda *what: told.append(what)))
    assert told == [("Decoding validation", 1, 1)]


def test_progress_counts_the_classes(folder):
    told = []
    load_mini_imagenet(folder, lambda *what: told.append(what))
    assert told == [
        *(("Decoding train", done, 3) for done in range(1, 4)),
        ("Decoding validation", 1, 1),
        *(("Decoding test", done, 2) for done in range(1, 3)),
    ]
    told.clear()
    load_mini_imagenet(folder, lambda *what: told.append(what))
    assert told == []


@pytest.mark.parametrize("name", LISTS)
def test_a_missing_list_is_named(folder, name):
    (folder / name).unlink()
    assert_refused(folder, f"{folder / name} is missing", f"into {folder}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "first line"),
        (b"n0500000001.jpg,n05\n", "first line"),
        (b"filename,label\n", "no pictures"),
        (b"filename,label\na.jpg,n05\nb.jpg\n", "line 3"),
        (b"filename,label\na.jpg,n05,1\n", "line 2"),
        (b"filename,label\na.jpg,\n", "line 2"),
        (b'filename,label\n"a.jpg,n05\n', "end of data"),
        (b"filename,label\na.jpg,n05\na.jpg,n05\n", "line 3 lists a.jpg again"),
        (b"filename,label\n\xff.jpg,n05\n", "utf-8"),
    ],
)
def test_a_broken_list_is_named_with_the_reason(folder, content, reason):
    (folder / "val.csv").write_bytes(content)
    assert_refused(folder, f"{folder / 'val.csv'} is broken", reason)


def test_classes_of_unequal_size_are_told_with_the_numbers(folder):
    with (folder / "test.csv").open("a") as file:
        file.write("n0600000003.jpg,n06\n")
    assert_refused(folder, str(folder / "test.csv"), "3 pictures of n04 and 4 of n06")


def test_a_class_in_two_parts_is_told_with_both_lists(folder):
    write_list(folder, "test.csv", ["n04", "n02"])
    assert_refused(folder, str(folder / "train.csv"), str(folder / "test.csv"), "class n02")


def test_missing_pictures_are_counted_before_anything_is_decoded(folder):
    for name in ("n0400000002.jpg", "n0600000001.jpg"):
        (folder / "images" / name).unlink()
    assert_refused(
        folder,
        f"2 of the 6 pictures in {folder / 'test.csv'}",
        "the first is n0400000002.jpg",
        f"below {folder}",
    )
    assert caches(folder) == []


@pytest.mark.parametrize("content", [b"", b"GIF89a", picture("n0200000010.jpg")[:-300]])
def test_a_broken_picture_is_named_and_leaves_no_cache(folder, content):
    path = folder / "images" / "n0200000010.jpg"
    path.write_bytes(content)
    assert_refused(folder, f"{path} is no readable JPEG or PNG")
    assert caches(folder) == []
    path.write_bytes(picture(path.name))
    assert_right(load_mini_imagenet(folder))


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_decode_that_is_interrupted_leaves_nothing_of_its_part(folder, stop):
    def interrupt(name: str, done: int, total: int) -> None:
        if (name, done) == ("Decoding test", 1):
            raise stop

    with pytest.raises(stop):
        load_mini_imagenet(folder, interrupt)
    assert caches(folder) == [name for name in CACHES if "test" not in name]
    assert_right(load_mini_imagenet(folder))


def test_whatever_a_killed_decode_left_is_never_taken_for_a_cache(folder, tmp_path, monkeypatch):
    left = []

    def die() -> None:
        left.append(copytree(folder, tmp_path / f"left-{len(left)}"))

    def dying(step: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (die(), step(*arguments), die())

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(Path, "replace", dying(Path.replace))
        load_mini_imagenet(folder, lambda *_: die())
    assert any(set(caches(path)) - set(CACHES) for path in left)  # else this would test nothing
    for path in left:
        for leftover in path.glob(".*.part"):
            leftover.write_bytes(bytes(1_000_000))  # longer than a whole one
        assert_right(load_mini_imagenet(path))
        assert not list(path.glob(".*.part"))


def test_jobs_that_start_together_decode_once(folder):
    told, pools = [], {}
    together = threading.Barrier(4)

    def job(number: int) -> None:
        together.wait()
        pools[number] = load_mini_imagenet(folder, lambda *what: told.append(what))

    threads = [threading.Thread(target=job, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 6
    assert len(pools) == 4
    for each in pools.values():
        assert_right(each)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_file_and_leaves_nothing(folder):
    (folder / ".mini-imagenet-84x84-train.npy.part").symlink_to("/dev/full")
    cache = folder / "mini-imagenet-84x84-train.npy"
    assert_refused(folder, f"{cache} cannot be written", os.strerror(errno.ENOSPC), "make room")
    assert caches(folder) == []
    assert_right(load_mini_imagenet(folder))


def forbid_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every disk read-only: permissions do not bind root, whom tests may run as."""
    as_ever = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        if not mode.startswith("r"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return as_ever(path, mode, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


def test_a_folder_that_cannot_be_written_to_is_refused_unless_it_has_the_caches(
    folder, monkeypatch
):
    with monkeypatch.context() as patch:
        forbid_writing(patch)
        cache = folder / "mini-imagenet-84x84-train.npy"
        assert_refused(folder, f"{cache} cannot be written", "allow writing into")
    assert_right(load_mini_imagenet(folder))
    forbid_writing(monkeypatch)
    assert_right(load_mini_imagenet(folder))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def save(change: Callable[[np.ndarray], object]) -> Callable[[Path], None]:
    """Damage that is a proper .npy file, of something else."""
    return lambda path: np.save(path, change(np.load(path)), allow_pickle=True)


def archive(path: Path) -> None:
    content = np.load(path)
    with path.open("wb") as file:
        np.savez(file, images=content)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        lengthen,
        empty,
        zeros,
        archive,
        save(lambda images: images[:-1]),
        save(lambda images: images.astype(np.int8)),
        save(np.asfortranarray),
        save(lambda _: np.array([{}])),
    ],
)
def test_a_broken_cache_is_named_and_can_be_deleted(cached, damage):
    cache = cached / "mini-imagenet-84x84-train.npy"
    damage(cache)
    assert_refused(cached, f"{cache} is broken or does not fit", "delete it")
    cache.unlink()
    assert_right(load_mini_imagenet(cached))


def test_a_header_is_refused_wherever_it_is_damaged(cached):
    cache = cached / "mini-imagenet-84x84-validation.npy"
    whole = cache.read_bytes()
    for position in range(128):
        cache.write_bytes(whole[:position] + b"\xb7" + whole[position + 1 :])
        with pytest.raises(DataError, match="delete it"):
            load_mini_imagenet(cached)


@pytest.mark.parametrize("damage", [cut_short, empty, zeros, Path.unlink])
def test_a_cache_whose_contents_are_not_told_is_refused(cached, damage):
    cache = cached / "mini-imagenet-84x84-test.npy"
    damage(cache.with_suffix(".json"))
    assert_refused(cached, str(cache), "delete it")


@pytest.mark.parametrize(("old", "new"), [(",n03\n", ",n09\n"), ("n0300000001", "n0300000003")])
def test_a_cache_of_another_list_is_refused(cached, old, new):
    path = cached / "train.csv"
    path.write_text(path.read_text().replace(old, new))
    cache = cached / "mini-imagenet-84x84-train.npy"
    assert_refused(cached, str(cache), "another list than train.csv", "delete it")


def test_a_shorter_list_is_decoded_anew_once_the_cache_is_deleted(cached):
    write_list(cached, "train.csv", ["n01", "n02"])
    (cached / "mini-imagenet-84x84-train.npy").unlink()
    assert load_mini_imagenet(cached)["train"].names == ("n01", "n02")
