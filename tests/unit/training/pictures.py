"""Folders of made-up pictures."""

from pathlib import Path

import numpy as np
from PIL import Image


def make_folder(root: Path, counts: list[int], *, size: int = 40, colour: bool = False) -> Path:
    """Class folders of so many pictures: strokes on paper, or coarse patterns of colours."""
    rng = np.random.default_rng(0)
    for number, count in enumerate(counts):
        folder = root / f"class-{number:02}"
        folder.mkdir(parents=True)
        corners = rng.integers(4, size - 4, (3, 2))
        pattern = rng.integers(0, 256, (4, 4, 3))
        for picture in range(count):
            if colour:
                noisy = (pattern + rng.integers(-40, 40, pattern.shape)).clip(0, 255)
                image = Image.fromarray(noisy.astype(np.uint8)).resize((size, size))
            else:
                pixels = np.full((size, size), 255, np.uint8)
                for x, y in corners + rng.integers(-1, 2, corners.shape):
                    pixels[y - 2 : y + 2, x - 2 : x + 2] = 0
                    pixels[y, min(x, size // 2) : max(x, size // 2)] = 0
                image = Image.fromarray(pixels)
            image.save(folder / f"{picture}.png")
    return root
