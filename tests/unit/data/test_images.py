import re
import struct
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from app.data.images import decode_image, prepare_image, to_float
from app.registry.card import InputSpec

PIXELS = 1_000_000
LIGHT_ON_DARK = InputSpec(kind="image", shape=(1, 28, 28))
DARK_ON_LIGHT = InputSpec(kind="image", shape=(1, 28, 28), dark_on_light=True)
COLOUR = InputSpec(kind="image", shape=(3, 28, 28))


def file_of(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *chunks) -> bytes:
    """A PNG file written by hand, for what Pillow cannot write. `rows` has no filter bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    length = len(rows) // height if rows else 0
    filtered = b"".join(b"\0" + rows[i : i + length] for i in range(0, len(rows), length or 1))
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + b"".join(chunk(*extra) for extra in chunks)
        + chunk(b"IDAT", zlib.compress(filtered))
        + chunk(b"IEND", b"")
    )


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without sharp edges, which JPEG keeps well, (H, W, 3)."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([255 * y, 255 * x, 255 * (1 - x * y)], axis=-1).astype(np.uint8)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Rec. 601 luma, (..., 3) to (...)."""
    return np.asarray(rgb, float) @ [0.299, 0.587, 0.114]


def over_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    opacity = np.asarray(alpha, float)[..., None] / 255
    return np.asarray(colour, float) * opacity + 255 * (1 - opacity)


def triangle_filter(size: int, target: int) -> np.ndarray:
    """The antialiased bilinear filter as a matrix (target, size)."""
    scale = size / target
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1)
    weights = np.clip(1 - distances, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = picture.shape
    return triangle_filter(rows, height) @ picture @ triangle_filter(columns, width).T


def assert_close(got: np.ndarray, expected: np.ndarray, tolerance: float = 1.0) -> None:
    assert got.dtype == np.uint8
    assert got.shape == expected.shape
    assert np.abs(got.astype(float) - expected).max() <= tolerance


RGB = noise(28, 28, 3)
GREY = noise(28, 28)
ALPHA = noise(28, 28, seed=1)
BITS = noise(28, 28) > 127
GREY_16 = np.random.default_rng(0).integers(0, 65_536, (28, 28), dtype=np.uint16)
RGB_16 = np.random.default_rng(0).integers(0, 65_536, (28, 28, 3), dtype=np.uint16)
PALETTE = noise(256, 3, seed=2)
PALETTE_ALPHA = noise(256, seed=3)


def palette_image() -> Image.Image:
    image = Image.new("P", (28, 28))
    image.putdata(GREY.ravel().tolist())
    image.putpalette(PALETTE.ravel().tolist())
    return image


def grey_three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(grey, float)[..., None], 3, axis=-1)


# Each file with the opaque colours (28, 28, 3) that a viewer shows for it.
FILES = {
    "1 bit": (file_of(Image.fromarray(BITS)), grey_three(255 * BITS)),
    "2 bits": (
        png(28, 28, 2, 0, np.tile(np.uint8(0b00_01_10_11), 28 * 7).tobytes()),
        grey_three(np.tile([0, 85, 170, 255], (28, 7))),
    ),
    "grey": (file_of(Image.fromarray(GREY)), grey_three(GREY)),
    "grey with a transparent level": (
        file_of(Image.fromarray(GREY), transparency=int(GREY[3, 4])),
        grey_three(np.where(GREY[3, 4] == GREY, 255, GREY)),
    ),
    "grey with alpha": (
        file_of(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(ALPHA)))),
        over_white(grey_three(GREY), ALPHA),
    ),
    "grey of 16 bits": (file_of(Image.fromarray(GREY_16)), grey_three(GREY_16 / 257)),
    "grey of 16 bits with a transparent level": (
        png(
            28,
            28,
            16,
            0,
            GREY_16.astype(">u2").tobytes(),
            (b"tRNS", struct.pack(">H", GREY_16[3, 4])),
        ),
        grey_three(np.where(GREY_16[3, 4] == GREY_16, 255, GREY_16 / 257)),
    ),
    "palette": (file_of(palette_image()), PALETTE[GREY].astype(float)),
    "palette with alpha": (
        file_of(palette_image(), transparency=PALETTE_ALPHA.tobytes()),
        over_white(PALETTE[GREY], PALETTE_ALPHA[GREY]),
    ),
    "palette with a transparent colour": (
        file_of(palette_image(), transparency=int(GREY[3, 4])),
        over_white(PALETTE[GREY], 255 * (GREY[3, 4] != GREY)),
    ),
    "colour": (file_of(Image.fromarray(RGB)), RGB.astype(float)),
    "colour with a transparent colour": (
        file_of(Image.fromarray(RGB), transparency=tuple(RGB[3, 4].tolist())),
        over_white(RGB, 255 * (RGB[3, 4] != RGB).any(axis=-1)),
    ),
    "colour with alpha": (
        file_of(Image.fromarray(np.dstack((RGB, ALPHA)))),
        over_white(RGB, ALPHA),
    ),
    "colour of 16 bits": (png(28, 28, 16, 2, RGB_16.astype(">u2").tobytes()), RGB_16 / 257),
    "grey of 16 bits with alpha": (
        png(28, 28, 16, 4, RGB_16[..., :2].astype(">u2").tobytes()),
        over_white(grey_three(RGB_16[..., 0] / 257), RGB_16[..., 1] / 257),
    ),
    "WebP": (file_of(Image.fromarray(RGB), "WEBP", lossless=True), RGB.astype(float)),
    "WebP with alpha": (
        file_of(Image.fromarray(np.dstack((RGB, ALPHA))), "WEBP", lossless=True, exact=True),
        over_white(RGB, ALPHA),
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_picture_of_any_kind_becomes_its_colours_over_white(name):
    data, expected = FILES[name]
    assert_close(decode_image(data, COLOUR, PIXELS), expected.transpose(2, 0, 1), 2)


@pytest.mark.parametrize("name", FILES)
def test_one_channel_is_the_luminance_of_what_is_seen(name):
    data, expected = FILES[name]
    assert_close(decode_image(data, LIGHT_ON_DARK, PIXELS), luminance(expected)[None], 2)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_pictures_come_near(kind):
    picture = smooth(28, 28)
    data = file_of(Image.fromarray(picture), kind, quality=95)
    assert_close(decode_image(data, LIGHT_ON_DARK, PIXELS), luminance(picture)[None], 6)


def test_a_jpeg_in_grey_is_decoded():
    picture = smooth(28, 28)[..., 0]
    data = file_of(Image.fromarray(picture), "JPEG", quality=95)
    assert_close(decode_image(data, COLOUR, PIXELS), np.repeat(picture[None], 3, axis=0), 4)


def test_a_jpeg_in_cmyk_is_decoded_by_ink_on_white():
    cmyk = np.dstack((smooth(28, 28) // 2, smooth(28, 28)[..., 0] // 3))
    data = file_of(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95)
    ink = cmyk.astype(float) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    assert_close(decode_image(data, COLOUR, PIXELS), expected.transpose(2, 0, 1), 8)


def test_ink_is_white_for_a_model_that_reads_dark_on_light():
    data = file_of(Image.fromarray(GREY))
    assert np.array_equal(decode_image(data, DARK_ON_LIGHT, PIXELS), 255 - GREY[None])


@pytest.mark.parametrize("size", [(105, 105), (29, 29), (28, 28), (20, 20), (7, 7), (1, 1)])
def test_resizing_is_bilinear_and_antialiased(size):
    picture = noise(*size)
    got = decode_image(file_of(Image.fromarray(picture)), LIGHT_ON_DARK, PIXELS)
    assert_close(got, resized(picture, 28, 28)[None])


def test_ink_thinner_than_a_target_pixel_is_not_lost():
    picture = np.full((280, 280), 255, np.uint8)
    picture[:, 100] = 0
    got = decode_image(file_of(Image.fromarray(picture)), DARK_ON_LIGHT, PIXELS)
    assert got.sum(axis=-1).min() >= 20  # a tenth of 255, less rounding


@pytest.mark.parametrize(
    ("width", "height", "content"),
    [
        (56, 28, np.s_[7:21, :]),
        (28, 56, np.s_[:, 7:21]),
        (90, 60, np.s_[4:23, :]),  # 18.67 rows: 19
        (9, 27, np.s_[:, 9:18]),
    ],
)
def test_a_picture_that_is_not_square_keeps_its_aspect_in_the_middle_of_white(
    width, height, content
):
    picture = noise(height, width)
    expected = np.full((28, 28), 255.0)
    expected[content] = resized(picture, *expected[content].shape)
    got = decode_image(file_of(Image.fromarray(picture)), DARK_ON_LIGHT, PIXELS)
    assert_close(got, 255 - expected[None])


def test_the_ground_of_a_colour_picture_is_its_borders_median():
    picture = noise(20, 40, 3)
    picture[:, :, 1] //= 4
    border = np.concatenate((picture[0], picture[-1], picture[1:-1, 0], picture[1:-1, -1]))
    got = decode_image(file_of(Image.fromarray(picture)), COLOUR, PIXELS)
    ground = np.median(border.astype(float), axis=0)
    assert np.abs(got[:, 0, 0] - ground).max() <= 3  # corners may count once or twice
    assert (got[:, :7] == got[:, :1, :1]).all()
    assert (got[:, 21:] == got[:, :1, :1]).all()
    assert_close(got[0, 7:21], resized(picture[..., 0], 14, 28))


def test_a_target_that_is_not_square_is_filled_without_stretching():
    spec = InputSpec(kind="image", shape=(1, 20, 30))
    picture = noise(40, 60)
    got = decode_image(file_of(Image.fromarray(picture)), spec, PIXELS)
    assert_close(got, resized(picture, 20, 30)[None])


@pytest.mark.parametrize("size", [(1, 1_000_000), (1_000_000, 1)])
def test_a_line_of_a_million_pixels_costs_no_more_than_its_pixels(size):
    data = png(*size, 8, 0, bytes(1_000_000))
    start = time.thread_time()
    got = decode_image(data, DARK_ON_LIGHT, PIXELS)
    assert time.thread_time() - start < 1
    assert (got == 255).sum() == 28


UPRIGHT = noise(28, 28, seed=4)
STORED = {  # EXIF 2.32, tag 0x0112: where row 0 and column 0 of the stored picture belong
    1: UPRIGHT,  # top, left
    2: UPRIGHT[:, ::-1],  # top, right
    3: UPRIGHT[::-1, ::-1],  # bottom, right
    4: UPRIGHT[::-1],  # bottom, left
    5: UPRIGHT.T,  # left, top
    6: UPRIGHT.T[::-1],  # right, top
    7: UPRIGHT[::-1, ::-1].T,  # right, bottom
    8: UPRIGHT.T[:, ::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_a_cameras_orientation_is_undone(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(image, kind, exif=exif, **options)
    assert_close(decode_image(data, LIGHT_ON_DARK, PIXELS), UPRIGHT[None])


@pytest.mark.parametrize("note", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\0"])
def test_a_cameras_broken_notes_are_passed_over(note):
    data = png(28, 28, 8, 0, UPRIGHT.tobytes(), (b"eXIf", note))
    assert np.array_equal(decode_image(data, LIGHT_ON_DARK, PIXELS)[0], UPRIGHT)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "ICO", "JPEG2000"])
def test_other_formats_are_refused_by_name(kind):
    data = file_of(Image.fromarray(GREY), kind)
    with pytest.raises(ValueError, match="not a PNG, JPEG or WebP file"):
        decode_image(data, LIGHT_ON_DARK, PIXELS)


@pytest.mark.parametrize("data", [b"", b"hello", b"<svg/>", b"\x89PNG", b"RIFF....WAVE"])
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(ValueError, match="not a PNG, JPEG or WebP file"):
        decode_image(data, LIGHT_ON_DARK, PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_picture_is_refused(kind, share):
    data = file_of(Image.fromarray(noise(64, 64, 3)), kind)
    with pytest.raises(ValueError, match=f"the {kind} file is broken or truncated"):
        decode_image(data[: max(12, int(len(data) * share))], LIGHT_ON_DARK, PIXELS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damage_anywhere_gives_a_picture_or_a_clear_refusal(kind):
    data = file_of(Image.fromarray(noise(32, 32, 3)), kind)
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[random.integers(12, len(data))] ^= int(random.integers(1, 256))
        try:
            got = decode_image(bytes(damaged), COLOUR, PIXELS)
        except ValueError as error:
            assert re.search("is broken or truncated|make it smaller", str(error))  # noqa: PT017
        else:
            assert got.shape == (3, 28, 28)


def huge_jpeg(width: int, height: int) -> bytes:
    data = file_of(Image.fromarray(GREY), "JPEG")
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def huge_webp(width: int, height: int) -> bytes:
    data = file_of(Image.fromarray(RGB), "WEBP", quality=50)
    assert data[12:16] == b"VP8 "
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


@pytest.mark.parametrize(
    "data",
    [
        png(12_000, 12_000, 8, 2, b""),
        png(60_000, 60_000, 8, 2, b""),
        huge_jpeg(12_000, 12_000),
        huge_jpeg(60_000, 60_000),
        huge_webp(12_000, 12_000),
        huge_webp(16_383, 16_383),
    ],
    ids=["PNG", "larger PNG", "JPEG", "larger JPEG", "WebP", "larger WebP"],
)
def test_a_bomb_is_refused_by_its_size_before_it_is_decoded(data):
    """None of these has the pixels that it claims: decoding would call it broken instead."""
    start = time.thread_time()
    with pytest.raises(ValueError, match=r"pixels.* make it smaller"):
        decode_image(data, LIGHT_ON_DARK, PIXELS)
    assert time.thread_time() - start < 0.5


def test_a_png_of_very_many_chunks_is_refused_by_their_number():
    def with_chunks(count: int) -> bytes:
        return png(4, 4, 8, 0, bytes(range(16)), *[(b"tEXt", b"a\0")] * count)

    start = time.thread_time()
    with pytest.raises(ValueError, match="has more than 10000 chunks; save the picture anew"):
        decode_image(with_chunks(10_000), LIGHT_ON_DARK, PIXELS)
    got, want = (
        decode_image(with_chunks(count), LIGHT_ON_DARK, PIXELS) for count in (9_997, 0)
    )  # with the header, the pixels and the end
    assert np.array_equal(got, want)
    assert time.thread_time() - start < 0.5


def test_the_limit_counts_pixels_and_the_message_names_both():
    data = file_of(Image.fromarray(noise(30, 40)))
    assert decode_image(data, LIGHT_ON_DARK, 1200).shape == (1, 28, 28)
    with pytest.raises(ValueError, match="40 x 30 pixels, at most 1199"):
        decode_image(data, LIGHT_ON_DARK, 1199)


def test_training_and_serving_make_the_same_input():
    image = Image.fromarray(noise(105, 90))
    assert np.array_equal(
        prepare_image(image, DARK_ON_LIGHT), decode_image(file_of(image), DARK_ON_LIGHT, PIXELS)
    )


def test_the_array_owns_contiguous_writable_memory():
    got = decode_image(file_of(Image.fromarray(RGB)), COLOUR, PIXELS)
    assert got.flags.c_contiguous
    assert got.flags.writeable


def test_bytes_become_floats_from_zero_to_one():
    got = to_float(np.array([[0, 51, 255]], np.uint8))
    assert got.dtype == np.float32
    assert got.tolist() == [[0, np.float32(0.2), 1]]


def test_a_png_with_one_flipped_byte_is_never_taken_for_another_picture():
    image = Image.new("1", (105, 105), 1)
    image.paste(0, (20, 20, 60, 30))
    whole = file_of(image)
    expected = decode_image(whole, DARK_ON_LIGHT, PIXELS)
    for position in range(8, len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        try:
            found = decode_image(bytes(broken), DARK_ON_LIGHT, PIXELS)
        except ValueError:
            continue
        assert np.array_equal(found, expected), f"byte {position}"
