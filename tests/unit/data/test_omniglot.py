import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from shutil import copytree, rmtree

import numpy as np
import pytest
from PIL import Image

from app.data import omniglot
from app.data.omniglot import CACHE, DRAWERS, load_omniglot
from app.data.pools import ClassPool, data_digest
from app.errors import DataError

CHARACTERS = {
    "images_background": ["Tengwar/character01", "Greek/character02", "Greek/character01"]
    + [f"Latin/character{number:02}" for number in range(1, 4)],
    "images_evaluation": ["Angelic/character01", "Manipuri/character01", "Angelic/character02"],
}
INK = {
    name: 3 + index
    for index, name in enumerate(
        f"{part}/{name}" for part in CHARACTERS for name in sorted(CHARACTERS[part])
    )
}
"""How many rows of ink a character has, of 28; no two have as many."""
SPLIT = "background/evaluation"


def drawing(rows: int, columns: int) -> bytes:
    """A PNG as released, of one bit, black ink on white: rows x columns of 28 x 28 are ink."""
    white = np.ones((112, 112), bool)
    white[: 4 * rows, : 4 * columns] = False
    buffer = BytesIO()
    Image.fromarray(white).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def miniature_counts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loader expect the miniature, but where a test is of the real data."""
    if "real" in request.fixturenames:
        return
    monkeypatch.setattr(
        omniglot, "PARTS", {"images_background": (3, 6), "images_evaluation": (2, 3)}
    )
    monkeypatch.setattr(omniglot, "VALIDATION_CHARACTERS", {SPLIT: 2, "1200/423": 2})
    monkeypatch.setattr(omniglot, "SOURCE", "http://127.0.0.1:9/nobody-listens/")


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature, unpacked; drawer d of a character inked d + 1 columns."""
    root = tmp_path_factory.mktemp("released")
    for part, names in CHARACTERS.items():
        for number, name in enumerate(names):
            folder = root / part / name
            folder.mkdir(parents=True)
            for drawer in range(DRAWERS):
                content = drawing(INK[f"{part}/{name}"], drawer + 1)
                (folder / f"{number:04}_{drawer + 1:02}.png").write_bytes(content)
    return root


@pytest.fixture
def unpacked(released: Path, tmp_path: Path) -> Path:
    return copytree(released, tmp_path / "unpacked")


def pack(source: Path, folder: Path) -> Path:
    """The two archives, in another order than the folders', with what archives bring along."""
    folder.mkdir(exist_ok=True)
    for part in CHARACTERS:
        with zipfile.ZipFile(folder / f"{part}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted((source / part).rglob("*"), reverse=True):
                archive.write(path, path.relative_to(source))
            archive.writestr(f"__MACOSX/{part}/Greek/character01/._0001_01.png", b"no picture")
    return folder


@pytest.fixture
def packed(released: Path, tmp_path: Path) -> Path:
    return pack(released, tmp_path / "packed")


def assert_same(one: dict[str, ClassPool], other: dict[str, ClassPool]) -> None:
    assert list(one) == list(other)
    for part in one:
        assert one[part].names == other[part].names
        assert np.array_equal(one[part].images, other[part].images)


def test_every_drawing_is_ready_under_its_character_in_the_order_of_the_drawers(packed):
    pools = load_omniglot(packed, SPLIT)
    assert list(pools) == ["train", "validation", "test"]
    for part, pool in pools.items():
        released = "images_evaluation" if part == "test" else "images_background"
        assert pool.images.shape == (len(pool.names), 20, 1, 28, 28)
        assert pool.images.dtype == np.uint8
        for name, drawings in zip(pool.names, pool.images, strict=True):
            for columns, picture in enumerate(drawings, start=1):
                ink = np.zeros((1, 28, 28), bool)
                ink[:, : INK[f"{released}/{name}"], :columns] = True
                assert np.array_equal(picture > 127, ink)  # the filter softens the edges


def test_background_is_split_to_train_and_validate_and_evaluation_is_the_test(packed):
    pools = load_omniglot(packed, SPLIT)
    assert [len(pool.names) for pool in pools.values()] == [4, 2, 3]
    assert sorted(pools["train"].names + pools["validation"].names) == sorted(
        CHARACTERS["images_background"]
    )
    assert list(pools["test"].names) == sorted(CHARACTERS["images_evaluation"])


def test_folders_and_archives_give_the_same(unpacked, packed):
    assert_same(load_omniglot(unpacked, SPLIT), load_omniglot(packed, SPLIT))


def test_the_second_time_the_cache_is_all_it_needs(packed):
    first = load_omniglot(packed, SPLIT)
    for archive in packed.glob("*.zip"):
        archive.unlink()
    assert_same(load_omniglot(packed, SPLIT), first)
    assert [path.name for path in packed.iterdir()] == [CACHE]


def test_progress_counts_the_characters(packed):
    told = []
    load_omniglot(packed, SPLIT, lambda *what: told.append(what))
    assert told == [
        *(("Decoding images_background", done, 6) for done in range(1, 7)),
        *(("Decoding images_evaluation", done, 3) for done in range(1, 4)),
    ]
    told.clear()
    load_omniglot(packed, SPLIT, lambda *what: told.append(what))
    assert told == []


def test_a_split_that_does_not_exist_is_refused_with_the_choices(packed):
    with pytest.raises(DataError, match=r"'80/20': use one of background/evaluation, 1200/423"):
        load_omniglot(packed, "80/20")


def flip_in_the_middle(path: Path) -> None:
    """Damages compressed bytes of the first member, whatever they hold."""
    content = bytearray(path.read_bytes())
    content[60:80] = bytes(byte ^ 0xFF for byte in content[60:80])
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lacking(path: Path) -> None:
    np.savez_compressed(path, pictures=np.zeros(3))


@pytest.mark.parametrize("damage", [flip_in_the_middle, cut_short, empty, lacking])
def test_a_broken_cache_is_named_and_can_be_deleted(packed, damage):
    first = load_omniglot(packed, SPLIT)
    damage(packed / CACHE)
    with pytest.raises(DataError, match=f"{packed / CACHE} is broken .*delete it"):
        load_omniglot(packed, SPLIT)
    (packed / CACHE).unlink()
    assert_same(load_omniglot(packed, SPLIT), first)


@pytest.mark.parametrize("damage", [flip_in_the_middle, cut_short, empty])
def test_a_broken_archive_is_named(packed, damage):
    archive = packed / "images_evaluation.zip"
    damage(archive)
    with pytest.raises(DataError, match=f"{archive} is broken"):
        load_omniglot(packed, SPLIT)
    assert not (packed / CACHE).exists()


@pytest.mark.parametrize("content", [b"", b"GIF89a", drawing(5, 5)[:-40]])
def test_a_broken_drawing_is_named(unpacked, content):
    name = "images_evaluation/Angelic/character02"
    file = sorted((unpacked / name).iterdir())[7]
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{name}/{file.name} is no readable PNG"):
        load_omniglot(unpacked, SPLIT)
    assert not (unpacked / CACHE).exists()


def test_missing_drawings_and_characters_are_told_with_the_numbers(unpacked):
    folder = unpacked / "images_background" / "Greek" / "character01"
    next(folder.iterdir()).unlink()
    with pytest.raises(DataError, match=r"Greek/character01 .*19 drawings instead of 20"):
        load_omniglot(unpacked, SPLIT)
    rmtree(folder)
    with pytest.raises(DataError, match="images_background has 5 characters instead of 6"):
        load_omniglot(unpacked, SPLIT)


def test_a_picture_that_is_no_drawing_is_named(unpacked):
    (unpacked / "images_background" / "preview.png").write_bytes(drawing(1, 1))
    with pytest.raises(DataError, match=r"images_background/preview\.png"):
        load_omniglot(unpacked, SPLIT)


def refuse_to_write(path: Path, content: bytes) -> None:
    raise PermissionError(13, "Permission denied", str(path))


def test_a_folder_that_cannot_be_written_to_works_without_a_cache(packed, monkeypatch):
    monkeypatch.setattr(omniglot, "write_atomically", refuse_to_write)
    told = []
    first = load_omniglot(packed, SPLIT, lambda *what: told.append(what))
    assert (f"{packed} cannot be written to, so nothing is cached", 0, 0) in told
    assert not (packed / CACHE).exists()
    assert_same(load_omniglot(packed, SPLIT), first)


class Handler(BaseHTTPRequestHandler):
    """Serves the files of `server.folder`, as many bytes of each as `server.share` tells."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = self.server.folder / self.path.rpartition("/")[2]
        if not path.exists():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        if self.server.tells_length:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: int(self.server.share * len(content))])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """The archives on an address of this machine, which the loader takes for their source."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.folder, server.share, server.tells_length, server.asked = packed, 1.0, True, []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        source = f"http://127.0.0.1:{server.server_address[1]}/python/"
        monkeypatch.setattr(omniglot, "SOURCE", source)
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("tells_length", [True, False])
def test_what_is_missing_is_downloaded_once(server, packed, tmp_path, tells_length):
    server.tells_length = tells_length
    folder, told = tmp_path / "new" / "folder", []
    pools = load_omniglot(folder, SPLIT, lambda *what: told.append(what))
    assert server.asked == ["/python/images_background.zip", "/python/images_evaluation.zip"]
    for part in CHARACTERS:
        content = (packed / f"{part}.zip").read_bytes()
        assert (folder / f"{part}.zip").read_bytes() == content
        total = len(content) if tells_length else 0
        progress = [what for what in told if what[0] == f"Downloading {part}.zip"]
        assert progress[-1] == (f"Downloading {part}.zip", len(content), total)
    assert_same(pools, load_omniglot(packed, SPLIT))
    (folder / CACHE).unlink()
    load_omniglot(folder, SPLIT)
    assert len(server.asked) == 2


def test_only_the_part_that_is_missing_is_downloaded(server, unpacked):
    rmtree(unpacked / "images_evaluation")
    load_omniglot(unpacked, SPLIT)
    assert server.asked == ["/python/images_evaluation.zip"]


def assert_download_fails(folder: Path, reason: str) -> None:
    archive = folder / "images_background.zip"
    with pytest.raises(DataError) as caught:
        load_omniglot(folder, SPLIT)
    message = str(caught.value)
    for part in (str(archive), omniglot.SOURCE + archive.name, reason, f"into {folder}"):
        assert part in message
    assert not folder.exists() or not list(folder.iterdir())


def test_a_failed_download_names_the_address_and_the_file(server, tmp_path):
    (server.folder / "images_background.zip").unlink()
    assert_download_fails(tmp_path / "new", "404")


def test_no_network_is_told_in_the_same_way(tmp_path):
    assert_download_fails(tmp_path / "new", "refused")


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.share = 0.5
    assert_download_fails(tmp_path / "new", "")


def test_a_download_into_a_folder_that_cannot_be_written_to_names_the_file(
    server, tmp_path, monkeypatch
):
    monkeypatch.setattr(omniglot, "write_atomically", refuse_to_write)
    assert_download_fails(tmp_path / "new", "Permission denied")


def small_pools() -> dict[str, ClassPool]:
    images = np.arange(8, dtype=np.uint8).reshape(2, 1, 1, 2, 2)
    return {part: ClassPool(images.copy(), ("a", "b")) for part in ("train", "test")}


def test_digest_tells_pictures_names_and_parts_apart_but_not_their_order_in_memory():
    digest = data_digest(small_pools())
    assert len(digest) == 64
    assert data_digest(dict(reversed(small_pools().items()))) == digest
    strided = small_pools()
    strided["test"] = ClassPool(np.asfortranarray(strided["test"].images), ("a", "b"))
    assert data_digest(strided) == digest

    pixel = small_pools()
    pixel["test"].images[1, 0, 0, 1, 1] ^= 1
    renamed = small_pools()
    renamed["test"] = ClassPool(renamed["test"].images, ("a", "c"))
    moved = {"train": small_pools()["train"], "validation": small_pools()["test"]}
    digests = {digest, *map(data_digest, (pixel, renamed, moved))}
    assert len(digests) == 4


Splits = dict[str, dict[str, ClassPool]]


@pytest.fixture(scope="module")
def real(omniglot_folder: Path) -> tuple[Splits, Splits]:
    """Both splits of the real data, one from the archives and then both from the cache."""
    from_archives = {SPLIT: load_omniglot(omniglot_folder, SPLIT)}
    assert (omniglot_folder / CACHE).exists()
    from_cache = {split: load_omniglot(omniglot_folder, split) for split in (SPLIT, "1200/423")}
    return from_archives, from_cache


@pytest.mark.parametrize(
    ("split", "sizes"), [(SPLIT, (900, 64, 659)), ("1200/423", (1100, 100, 423))]
)
def test_real_splits_are_disjoint_and_of_the_published_sizes(real, split, sizes):
    pools = real[1][split]
    assert tuple(len(pools[part].names) for part in ("train", "validation", "test")) == sizes
    names = [name for pool in pools.values() for name in pool.names]
    assert len(set(names)) == sum(sizes) == 1623
    for pool in pools.values():
        assert pool.images.shape == (len(pool.names), 20, 1, 28, 28)
        ink = pool.images.astype(np.float32).mean((2, 3, 4)) / 255
        assert ink.min() > 0  # no drawing is blank, and none is a negative
        assert ink.max() < 0.5


def test_real_test_classes_are_exactly_the_evaluation_alphabets(real, omniglot_folder):
    with zipfile.ZipFile(omniglot_folder / "images_evaluation.zip") as archive:
        paths = [name.split("/") for name in archive.namelist() if name.endswith(".png")]
    expected = {f"{alphabet}/{character}" for _, alphabet, character, _ in paths}
    pools = real[1][SPLIT]
    assert set(pools["test"].names) == expected
    alphabets = {name.partition("/")[0] for name in expected}
    others = {name.partition("/")[0] for p in ("train", "validation") for name in pools[p].names}
    assert (len(alphabets), len(others)) == (20, 30)
    assert not alphabets & others


def test_real_digest_is_the_same_from_the_archives_and_from_the_cache(real):
    from_archives, from_cache = real
    assert data_digest(from_archives[SPLIT]) == data_digest(from_cache[SPLIT])
    assert data_digest(from_cache[SPLIT]) != data_digest(from_cache["1200/423"])
