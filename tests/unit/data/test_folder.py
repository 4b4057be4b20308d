import errno
import os
import threading
from io import BytesIO
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from PIL import Image

from app.data import folder as folder_module
from app.data.folder import find_classes, load_folder
from app.data.images import decode_image
from app.data.pools import RaggedPool, TaskShape, data_digest
from app.errors import DataError
from app.registry.card import InputSpec

COLOUR = InputSpec(kind="image", shape=(3, 16, 24))
INK = InputSpec(kind="image", shape=(1, 16, 16), dark_on_light=True)
COUNTS = {"ant": 5, "bee": 2, "cat": 4, "dog": 3, "elk": 6, "fox": 2, "gnu": 3}
SPLIT = "64/16/20"


def encoded(grey: int, kind: str = "PNG", size: tuple[int, int] = (24, 16)) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, (grey, grey, 255 - grey)).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def grey_of(name: str, number: int) -> int:
    return 30 * sorted(COUNTS).index(name) + 4 * number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven classes; the first channel of a picture tells which it is."""
    root = tmp_path / "pictures"
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(encoded(grey_of(name, number)))
    return root


def load(folder: Path, spec: InputSpec = COLOUR, split: str = SPLIT, seed: int = 0, **more):
    return load_folder(folder, spec, split, seed, **more)


def assert_refused(folder: Path, *parts: str, **changes) -> None:
    with pytest.raises(DataError) as caught:
        load(folder, **changes)
    for part in parts:
        assert part in str(caught.value)


def assert_right(pools: dict[str, RaggedPool], counts: dict[str, int] = COUNTS) -> None:
    """The pools hold the pictures of the folder, by their colours."""
    assert sorted(name for pool in pools.values() for name in pool.names) == sorted(counts)
    for pool in pools.values():
        assert pool.counts().tolist() == [counts[name] for name in pool.names]
        for row, name in enumerate(pool.names):
            numbers = np.arange(counts[name])
            pictures = pool.take(np.full(len(numbers), row), numbers)
            assert pictures.dtype == np.uint8
            expected = [grey_of(name, number) for number in numbers]
            assert pictures[:, 0, 3, 3].tolist() == expected


def decoded(monkeypatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names, read = [], folder_module.read_picture

    def noted(path: Path, spec: InputSpec):
        names.append(path.name)
        return read(path, spec)

    monkeypatch.setattr(folder_module, "read_picture", noted)
    return names


def test_every_picture_is_in_its_class_and_every_class_in_one_part(folder):
    pools = load(folder)
    assert list(pools) == ["train", "validation", "test"]
    assert [len(pool.names) for pool in pools.values()] == [3, 2, 2]
    assert_right(pools)
    for pool in pools.values():
        assert list(pool.names) == sorted(pool.names)
        assert pool.input_shape == COLOUR.shape


def test_the_seed_and_the_shares_decide_which_class_is_where(folder):
    parts = {load(folder, seed=seed)["test"].names for seed in range(12)}
    assert len(parts) > 3
    assert [len(pool.names) for pool in load(folder, split="20/20/60").values()] == [2, 2, 3]


def test_a_list_beside_the_class_folders_decides_too(folder):
    parts = ["train"] * 3 + ["validation", "test"] * 2
    rows = [f"{name},{part}\n" for name, part in zip(sorted(COUNTS), parts, strict=True)]
    (folder / "mine.csv").write_text("".join(["class,part\n", *rows]))
    pools = load(folder, split="mine.csv")
    assert {part: pool.names for part, pool in pools.items()} == {
        "train": ("ant", "bee", "cat"),
        "validation": ("dog", "fox"),
        "test": ("elk", "gnu"),
    }
    assert_right(pools)
    assert_refused(folder, str(folder / "yours.csv"), split="yours.csv")


def test_pictures_are_what_the_service_would_make_of_them(folder):
    drawing = Image.new("L", (30, 50), 255)
    drawing.paste(0, (5, 5, 20, 30))
    buffer = BytesIO()
    drawing.save(buffer, "PNG")
    for path in folder.glob("*/*.png"):
        path.write_bytes(buffer.getvalue())
    expected = decode_image(buffer.getvalue(), INK, 1_000_000)
    for pool in load(folder, INK).values():
        assert (pool.images == expected).all()
        assert pool.images[0, 0, 0, 0] == 0, "the ground of ink is 0"


def test_png_jpeg_and_webp_of_any_size_are_read_whatever_the_case_of_their_names(folder):
    for name, kind in (("0.PNG", "PNG"), ("1.jpg", "JPEG"), ("2.JPeG", "JPEG"), ("3.webp", "WEBP")):
        number = int(name[0])
        (folder / "ant" / f"{number}.png").unlink()
        (folder / "ant" / name).write_bytes(
            encoded(grey_of("ant", number), kind, (300 + number, 200))
        )
    pool = next(pool for pool in load(folder).values() if "ant" in pool.names)
    row = pool.names.index("ant")
    greys = pool.take(np.full(5, row), np.arange(5))[:, 0, 8, 12].astype(int)
    assert np.abs(greys - [grey_of("ant", number) for number in range(5)]).max() <= 3


def test_what_is_no_picture_and_what_is_hidden_does_not_count(folder):
    for path in ("ant/notes.txt", "ant/.0.png", "ant/Thumbs.db", "README.md", ".git/config"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"something else")
    (folder / "__MACOSX" / "ant").mkdir(parents=True)
    assert_right(load(folder))


def test_class_folders_may_be_links(folder, tmp_path):
    (folder / "bee").rename(tmp_path / "elsewhere")
    (folder / "bee").symlink_to(tmp_path / "elsewhere")
    assert_right(load(folder))


@pytest.mark.parametrize("what", ["missing", "a file", "empty", "pictures alone"])
def test_a_folder_without_class_folders_is_named(tmp_path, what):
    root = tmp_path / "root"
    if what == "a file":
        root.write_bytes(encoded(0))
        assert_refused(root, f"{root} cannot be read")
    elif what == "missing":
        assert_refused(root, f"{root} cannot be read", "No such file")
    else:
        root.mkdir()
        if what == "pictures alone":
            (root / "0.png").write_bytes(encoded(0))
        assert_refused(root, f"{root} holds no class folders", "one folder for each class")


def test_classes_of_fewer_than_two_pictures_are_told_with_the_first(folder):
    (folder / "bee" / "1.png").unlink()
    (folder / "hen").mkdir()
    (folder / "hen" / "0.bmp").write_bytes(b"BM")
    assert_refused(folder, f"{folder / 'bee'} has 1 pictures, as do 1 other", "PNG, JPEG or WebP")


def test_a_folder_within_a_class_is_refused(folder):
    (folder / "cat" / "black").mkdir()
    assert_refused(folder, f"{folder / 'cat' / 'black'} is a folder within a class")


def test_what_is_no_file_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "cat" / "pipe.png")
    assert_refused(folder, f"{folder / 'cat' / 'pipe.png'} is no regular file")


def test_too_few_classes_to_split_are_told_with_the_folder(folder):
    for name in ("ant", "bee"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()
    assert_refused(folder, f"{folder}: there are 5 classes, and at least 6 are needed")


def test_a_class_whose_name_is_no_text_is_refused(folder):
    os.rename(folder / "bee", os.fsencode(folder) + b"/b\xff")  # noqa: PTH104 - bytes
    assert_refused(folder, "is no UTF-8: rename it")


@pytest.mark.parametrize("content", [b"", b"GIF89a", encoded(7)[:-30], encoded(7, "JPEG")[:-200]])
def test_a_broken_picture_is_named_and_leaves_no_cache(folder, content):
    path = folder / "dog" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(content)
    assert_refused(folder, f"{path}: the ")
    assert list(folder.glob(".*npy*")) == []
    path.write_bytes(whole)
    assert_right(load(folder))


def test_all_broken_pictures_are_named_at_once_up_to_ten(folder):
    files = [path for pictures in find_classes(folder).values() for path in pictures]
    broken, whole = files[:12], encoded(7)
    for path in broken:
        path.write_bytes(b"GIF89a")
    with pytest.raises(DataError) as caught:
        load(folder)
    reason = "the picture is not a PNG, JPEG or WebP file"
    assert str(caught.value).splitlines() == [
        *(f"{path}: {reason}" for path in broken[:10]),
        "and 2 more",
    ]
    for path in broken[1:]:
        path.write_bytes(whole)
    with pytest.raises(DataError) as caught:
        load(folder)
    assert str(caught.value) == f"{broken[0]}: {reason}"


def test_images_are_mapped_not_read_and_cannot_be_written_to(folder):
    for pool in (load(folder)["train"], load(folder)["train"]):
        assert isinstance(pool.images, np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            pool.images[0] = 0


def test_pictures_are_decoded_once_whatever_the_split(folder, monkeypatch):
    names, told = decoded(monkeypatch), []
    load(folder, progress=lambda *what: told.append(what))
    assert len(names) == sum(COUNTS.values())
    assert told[-1] == ("Decoding pictures", len(names), len(names))
    names.clear()
    for changes in ({}, {"seed": 3}, {"split": "20/20/60"}):
        assert_right(load(folder, **changes))
    assert names == []


def test_each_size_and_kind_of_input_has_a_cache_of_its_own(folder, monkeypatch):
    load(folder)
    load(folder, INK)
    load(folder, INK.model_copy(update={"dark_on_light": False}))
    names = decoded(monkeypatch)
    assert_right(load(folder))
    assert load(folder, INK)["test"].input_shape == INK.shape
    assert names == []
    assert len(list(folder.glob(".*.npy"))) == 3


def add(folder: Path) -> None:
    (folder / "bee" / "2.png").write_bytes(encoded(grey_of("bee", 2)))


def remove(folder: Path) -> None:
    (folder / "ant" / "4.png").unlink()


def change(folder: Path) -> None:
    path = folder / "fox" / "0.png"
    before = path.stat()
    path.write_bytes(encoded(grey_of("fox", 0)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def rename(folder: Path) -> None:
    (folder / "elk" / "5.png").rename(folder / "elk" / "9.png")


@pytest.mark.parametrize(
    ("do", "difference"),
    [(add, {"bee": 3}), (remove, {"ant": 4}), (change, {}), (rename, {})],
)
def test_pictures_are_decoded_again_when_the_files_have_changed(
    folder, monkeypatch, do, difference
):
    old = load(folder)["train"]
    kept = np.array(old.images)
    do(folder)
    names = decoded(monkeypatch)
    counts = COUNTS | difference
    assert_right(load(folder), counts)
    assert len(names) == sum(counts.values())
    assert (old.images == kept).all(), "who still uses the old cache keeps it"
    names.clear()
    assert_right(load(folder), counts)
    assert names == []


def test_a_decode_that_is_killed_leaves_no_cache_of_older_pictures(folder, tmp_path, monkeypatch):
    path = folder / "fox" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(encoded(grey_of("fox", 1)))
    load(folder)
    path.write_bytes(whole)
    left = []

    def dying(step):
        def die(*arguments, **options):
            left.append(copytree(folder, tmp_path / f"left-{len(left)}"))
            return step(*arguments, **options)

        return die

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync))
        for step in ("replace", "unlink"):
            patch.setattr(Path, step, dying(getattr(Path, step)))
        load(folder)
    assert len(left) > 4
    for each in [*left, folder]:
        assert_right(load(each))


def test_a_broken_cache_is_made_again(folder):
    load(folder)
    [cache] = folder.glob(".*.npy")
    for damage in (b"", cache.read_bytes()[:-1], bytes(cache.stat().st_size)):
        cache.write_bytes(damage)
        assert_right(load(folder))
    cache.with_suffix(".json").unlink()
    assert_right(load(folder))


def test_the_digest_is_of_the_pictures_and_not_of_their_files(folder, tmp_path):
    digest = data_digest(load(folder))
    for path in folder.glob("*/*.png"):
        os.utime(path)
    moved = folder.rename(tmp_path / "moved")
    assert data_digest(load(moved)) == digest
    (moved / "ant" / "0.png").write_bytes(encoded(9))
    assert data_digest(load(moved)) != digest


def test_jobs_that_start_together_decode_once(folder, monkeypatch):
    names, together, pools = decoded(monkeypatch), threading.Barrier(3), []

    def job() -> None:
        together.wait()
        pools.append(load(folder))

    threads = [threading.Thread(target=job) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == sum(COUNTS.values())
    assert len(pools) == 3
    for each in pools:
        assert_right(each)


def test_a_folder_that_cannot_be_written_to_is_named(folder, monkeypatch):
    as_ever = Path.open

    def refuse(path: Path, mode: str = "r", *arguments: object, **options: object) -> object:
        if not mode.startswith("r"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return as_ever(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)  # permissions do not bind root
        assert_refused(folder, "cannot be written", f"allow writing into {folder}")
    assert_right(load(folder))


def test_tasks_are_drawn_of_the_classes_with_the_pictures(folder):
    pool = load(folder, split="60/20/20")["train"]
    assert pool.most_ways(2) == len(pool.names)
    task = pool.sample(TaskShape((2, 2), (1, 1), 1), 4, [0])
    assert task.support.inputs.shape == (4, 2, *COLOUR.shape)


def test_classes_are_found_in_the_order_of_their_names(folder):
    classes = find_classes(folder)
    assert list(classes) == sorted(COUNTS)
    assert [path.name for path in classes["elk"]] == [f"{number}.png" for number in range(6)]
