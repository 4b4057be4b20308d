"""Turns the pen strokes of Omniglot into one file of time series, for a recipe of arrays.

    python -m examples.strokes.prepare data/strokes

Omniglot (Lake, Salakhutdinov & Tenenbaum 2015, https://github.com/brendenlake/omniglot, MIT
licence) was drawn online: beside the pictures its authors release every drawing as the pen's
positions, "x,y,milliseconds" line by line. This reads their two small sets, 8 alphabets of 242
characters drawn by 20 people each, and downloads them where the folder does not hold them.

A drawing becomes (3, 64): x, y, and whether the pen is down, at 64 points that divide its whole
path, the ways in the air included, into equal lengths. The alphabets are divided among the parts,
so that a test is of an alphabet that training has not seen. In training a character that is turned
by a multiple of 90 degrees, or mirrored, counts as another one, which makes eight of each.
"""

import io
import sys
import zipfile
from hashlib import sha256
from pathlib import Path, PurePosixPath
from urllib.request import urlopen

import numpy as np
from numpy.typing import NDArray

SOURCE = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
ARCHIVES = {
    "strokes_background_small1.zip": (
        "8cb3960fb6cf4ccf5f064ad83169f828c36c36782a0f6e7faacb7ecfae4468a2"
    ),
    "strokes_background_small2.zip": (
        "345bf2141efbea062833dbb2828abbc23d9e07825e46f2afdd4daecddfed6e78"
    ),
}
"""SHA-256 of each archive."""
PARTS = {"Early_Aramaic": "validation", "Tagalog": "validation", "Japanese_(katakana)": "test"}
"""The alphabets that are not for training."""
POINTS = 64
MIDDLE = ((52.5,), (-52.5,))
"""Of the square that was drawn in."""
TURNS = [((1, 0), (0, 1)), ((0, -1), (1, 0)), ((-1, 0), (0, -1)), ((0, 1), (-1, 0))]
SYMMETRIES = np.array([np.array(turn) * ((side,), (1,)) for side in (1, -1) for turn in TURNS])
"""The eight matrices that leave a square where it is; the first changes nothing."""

Floats = NDArray[np.float32]


def resample(text: str) -> Floats:
    """A drawing as it is released, as (3, POINTS): x, y, and 1 where the pen is down."""
    x, y, down, pen = [], [], [], 0.0
    for line in text.split():
        if "," not in line:  # START, or BREAK where the pen is lifted
            pen = 0.0
            continue
        across, upwards, _ = map(float, line.split(","))
        x.append(across)
        y.append(upwards)
        down.append(pen)  # of the way to this point
        pen = 1.0
    points = np.array([x, y])
    lengths = np.linalg.norm(np.diff(points), axis=0)
    way = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0, way[-1], POINTS)
    last = np.searchsorted(way, at).clip(1, len(way) - 1)  # the point that ends each way
    return np.stack([*(np.interp(at, way, part) for part in points), np.array(down)[last]]).astype(
        np.float32
    )


def drawings(archive: bytes) -> dict[str, Floats]:
    """The drawings of an archive, by "alphabet/character/drawing"."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for name in sorted(opened.namelist()):
            path = PurePosixPath(name)
            if path.suffix == ".txt" and path.parts[0] != "__MACOSX":
                found["/".join(path.parts[1:])] = resample(opened.read(name).decode())
    return found


def turned(drawing: Floats, symmetry: int) -> Floats:
    """A drawing under one of the `SYMMETRIES`."""
    points = SYMMETRIES[symmetry] @ (drawing[:2] - MIDDLE) + MIDDLE
    return np.concatenate([points, drawing[2:]]).astype(np.float32)


def fetch(folder: Path, name: str) -> bytes:
    """An archive from the folder, or else from its authors, checked by its digest."""
    path = folder / name
    if not path.exists():
        with urlopen(SOURCE + name, timeout=60) as response:  # noqa: S310
            path.write_bytes(response.read())
    content = path.read_bytes()
    if sha256(content).hexdigest() != ARCHIVES[name]:
        raise SystemExit(f"{path} is not the file that was released: delete it")
    return content


def main(folder: Path) -> None:
    """Writes `strokes.npz` into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Floats] = {}
    for name in ARCHIVES:  # they share two alphabets
        found |= drawings(fetch(folder, name))
    inputs, labels, parts = [], [], []
    for name, drawing in found.items():
        alphabet, character, _ = name.split("/")
        part = PARTS.get(alphabet, "train")
        for symmetry in range(len(SYMMETRIES) if part == "train" else 1):
            inputs.append(turned(drawing, symmetry))
            labels.append(f"{alphabet}/{character}" + (f" turned {symmetry}" if symmetry else ""))
            parts.append(part)
    path = folder / "strokes.npz"
    np.savez_compressed(path, inputs=np.stack(inputs), labels=labels, part=parts)
    print(f"Wrote {path}: {len(labels)} drawings of {len(set(labels))} characters")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
