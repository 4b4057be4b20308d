from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.data import survey as survey_module
from app.data.survey import Survey, survey
from app.errors import DataError

Make = Callable[[np.random.Generator], Image.Image]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def drawing(rng: np.random.Generator, ground: int = 255, ink: int = 0) -> Image.Image:
    """Strokes on a ground."""
    pixels = np.full((90, 105), ground, np.uint8)
    top, left = rng.integers(10, 60, 2)
    pixels[top : top + 4, 10:80] = ink
    pixels[10:80, left : left + 4] = ink
    return Image.fromarray(pixels)


def photograph(rng: np.random.Generator) -> Image.Image:
    coarse = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((300, 200))


def write(root: Path, make: Make, kind: str = "PNG", classes: int = 6, pictures: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for name in map(str, range(classes)):
        (root / name).mkdir(parents=True)
        for number in range(pictures):
            (root / name / f"{number}.{kind.lower()}").write_bytes(encoded(make(rng), kind))
    return root


def look(root: Path, make: Make, kind: str = "PNG") -> Survey:
    return survey(write(root, make, kind))


def test_classes_and_their_pictures_are_counted(tmp_path):
    found = look(tmp_path, drawing)
    assert found.counts == {str(number): 3 for number in range(6)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_drawings_are_grey_and_dark_on_light_however_they_are_stored(tmp_path, kind, mode):
    found = look(tmp_path, lambda rng: drawing(rng).convert(mode), kind)
    assert (found.side, found.grey, found.dark_on_light) == (105, True, True)


def test_strokes_on_a_ground_that_is_transparent_are_dark_on_light(tmp_path):
    def on_glass(rng: np.random.Generator) -> Image.Image:
        ink = drawing(rng)
        ink.putalpha(ink.point(lambda value: 255 - value))
        return ink

    found = look(tmp_path, on_glass)
    assert (found.grey, found.dark_on_light) == (True, True)


def test_light_on_dark_is_not(tmp_path):
    found = look(tmp_path, lambda rng: drawing(rng, ground=0, ink=255))
    assert (found.grey, found.dark_on_light) == (True, False)


def test_photographs_have_colours(tmp_path):
    found = look(tmp_path, photograph, "JPEG")
    assert (found.side, found.grey, found.dark_on_light) == (300, False, False)


def test_grey_photographs_are_grey_and_no_drawings(tmp_path):
    found = look(tmp_path, lambda rng: photograph(rng).convert("L"), "JPEG")
    assert (found.grey, found.dark_on_light) == (True, False)


def test_a_coloured_thing_on_white_is_not_ink(tmp_path):
    def product(rng: np.random.Generator) -> Image.Image:
        image = Image.new("RGB", (120, 120), "white")
        image.paste(photograph(rng).resize((60, 60)), (30, 30))
        return image

    found = look(tmp_path, product)
    assert (found.grey, found.dark_on_light) == (False, False)


def test_the_side_is_the_median(tmp_path):
    sizes = iter([(10, 20)] * 5 + [(60, 50)] * 8 + [(4000, 30)] * 5)
    found = look(tmp_path, lambda _: Image.new("L", next(sizes), 255))
    assert found.side == 60


def test_of_many_pictures_some_of_every_class_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(survey_module, "LOOKED_AT", 12)
    seen, as_ever = [], survey_module._look

    def noted(path: Path):
        seen.append(path.parent.name)
        return as_ever(path)

    monkeypatch.setattr(survey_module, "_look", noted)
    found = survey(write(tmp_path, drawing, pictures=10))
    assert len(seen) == 12
    assert set(seen) == set(found.counts)


def test_a_large_class_does_not_speak_for_the_others(tmp_path):
    root = write(tmp_path, photograph, pictures=3)
    for number in range(400):
        Image.new("L", (30, 30), 255).save(root / "0" / f"{number:03}.png")
    found = survey(root)
    assert (found.grey, found.dark_on_light) == (False, False)


def test_a_broken_picture_is_named(tmp_path):
    root = write(tmp_path, drawing)
    (root / "3" / "1.png").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"3/1\.png: the picture is not a PNG"):
        survey(root)
