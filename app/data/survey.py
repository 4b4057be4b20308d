"""What a folder of pictures is like, found out by looking at some of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from app.data.folder import MOST_PIXELS, find_classes
from app.data.images import decode_image, open_image
from app.errors import DataError
from app.registry.card import InputSpec

LOOKED_AT = 100
"""Most pictures that are decoded."""
LOOK = InputSpec(kind="image", shape=(3, 64, 64))
COLOURLESS = 6.0
"""Mean distance of the channels of a grey picture; JPEG and scanners leave a little colour."""
PAPER = 200
"""Least brightness of the ground of ink on paper."""
NEARLY_ALL, MOST = 0.95, 0.8


@dataclass(frozen=True)
class Survey:
    """What a folder holds."""

    counts: dict[str, int]
    """Pictures of each class."""
    side: int
    """Median over pictures of the longer side, in pixels."""
    grey: bool
    """Whether hardly any picture has colours."""
    dark_on_light: bool
    """Whether most are grey and dark on light, as ink on paper is."""


def survey(folder: Path) -> Survey:
    """Counts the pictures of a folder of class folders and looks at some, of all classes alike.

    Raises:
        DataError: as `app.data.folder.find_classes`, or a picture is broken; the message names it.
    """
    classes = find_classes(folder)
    each = -(-LOOKED_AT // len(classes))
    some = [path for pictures in classes.values() for path in _evenly(pictures, each)]
    looks = [_look(path) for path in _evenly(some, LOOKED_AT)]
    sides, greys, inks = zip(*looks, strict=True)
    grey = bool(np.mean(greys) >= NEARLY_ALL)
    return Survey(
        counts={name: len(pictures) for name, pictures in classes.items()},
        side=int(np.median(sides)),
        grey=grey,
        dark_on_light=grey and bool(np.mean(inks) >= MOST),
    )


def _evenly(files: Sequence[Path], most: int) -> list[Path]:
    """At most so many of the files, evenly spaced."""
    rows = np.linspace(0, len(files) - 1, min(most, len(files))).astype(int)
    return [files[row] for row in rows]


def _look(path: Path) -> tuple[int, bool, bool]:
    """The longer side of a picture, whether it has no colours, and whether it is mostly paper."""
    try:
        content = path.read_bytes()
        side = max(open_image(content).size)
        pixels = decode_image(content, LOOK, MOST_PIXELS).astype(int)  # (3, H, W)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    colour = (pixels.max(0) - pixels.min(0)).mean()
    return side, bool(colour < COLOURLESS), bool(np.median(pixels) >= PAPER)
