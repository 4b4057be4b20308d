"""From an encoded picture to what a network sees: the one way for training and for serving.

Pictures cross the other floors as uint8 arrays (C, H, W), ready but for the division by 255.
"""

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import ChunkStream, PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from app.registry.card import InputSpec

PNG = b"\x89PNG\r\n\x1a\n"
"""What every PNG file begins with."""
MOST_CHUNKS = 10_000
"""Of a PNG file. Each takes 3 µs, however little it holds, and more the more there are; of
the usual 8 KiB so many are 80 MB."""
WHITE = 255
MODES = {1: "L", 3: "RGB"}
"""Pillow's mode by number of channels; "L" is the luminance of ITU-R BT.601."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to undo each EXIF orientation other than 1, the upright one."""


def decode_image(data: bytes, spec: InputSpec, max_pixels: int) -> NDArray[np.uint8]:
    """Decode a PNG, JPEG or WebP file into a model's input.

    The size is read from the header and checked before any pixel is decoded. Of an animation the
    first picture counts.

    Args:
        data: the bytes of the file.
        spec: the model's input, of kind "image".
        max_pixels: most pixels of the picture as it is stored, width times height.

    Returns:
        (C, H, W) uint8, as `prepare_image` makes it.

    Raises:
        ValueError: with a message for the caller, where the file is of another format, broken,
            truncated or larger than `max_pixels`.
    """
    image = open_image(data)
    if image.width * image.height > max_pixels:
        raise ValueError(
            f"the picture has {image.width} x {image.height} pixels, at most {max_pixels} in all "
            "are allowed; make it smaller"
        )
    try:
        return prepare_image(image, spec)
    except Exception as error:  # a decoder meets hostile bytes here and may raise anything
        raise ValueError(f"the {image.format} file is broken or truncated") from error


def prepare_image(image: Image.Image, spec: InputSpec) -> NDArray[np.uint8]:
    """Make a picture the model's channels and size.

    In order: EXIF orientation applied, transparency laid over white, channels converted (one:
    luminance, three: RGB), resized once by an antialiased bilinear filter so that it fits with its
    aspect kept, centred on its ground, and inverted where the model reads dark on light. The
    ground is white for dark on light, else the median colour of the picture's border.

    Args:
        image: a picture that Pillow opened, perhaps not loaded yet.
        spec: the model's input, of kind "image".

    Returns:
        (C, H, W) uint8.
    """
    channels, height, width = spec.shape
    opaque = _opaque(_upright(image))
    if opaque.mode != MODES[channels]:
        opaque = opaque.convert(MODES[channels])
    scale = min(width / opaque.width, height / opaque.height)
    size = max(1, round(opaque.width * scale)), max(1, round(opaque.height * scale))
    fitted = opaque if size == opaque.size else opaque.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted).reshape(fitted.height, fitted.width, channels)
    if fitted.size != (width, height):
        ground = WHITE if spec.dark_on_light else _border_median(opaque)
        pixels = _centred(pixels, height, width, ground)
    return np.ascontiguousarray(prepare_pixels(pixels.transpose(2, 0, 1), spec))


def prepare_pixels(pixels: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Make pixels (C, H, W) of the model's size what it reads: inverted where dark on light."""
    return WHITE - pixels if spec.dark_on_light else pixels


def to_float(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes [0, 255] of any shape to what a network sees, float32 in [0, 1]."""
    return np.divide(images, 255, dtype=np.float32)


def open_image(data: bytes) -> ImageFile:
    """Read the header of a picture, by its signature.

    Not by `Image.open`, which warns of large pictures by its own limit, tries every known format
    in turn, and so costs more than decoding a small picture.

    Raises:
        ValueError: as `decode_image`.
    """
    opener: type[ImageFile]
    if data.startswith(PNG):
        opener = PngImageFile
    elif data.startswith(b"\xff\xd8\xff"):
        opener = JpegImageFile
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        opener = WebPImageFile
    else:
        raise ValueError("the picture is not a PNG, JPEG or WebP file")
    try:
        file = BytesIO(data)
        if opener is PngImageFile:  # the checksums, which decoding does not look at
            file.seek(len(PNG))
            _Chunks(file).verify()
            file.seek(0)
        return opener(file)
    except Image.DecompressionBombError as error:
        raise ValueError("the picture has too many pixels; make it smaller") from error
    except _TooManyChunks as error:
        raise ValueError(
            f"the PNG file has more than {MOST_CHUNKS} chunks; save the picture anew"
        ) from error
    except Exception as error:  # a parser meets hostile bytes here and may raise anything
        raise ValueError(f"the {opener.format} file is broken or truncated") from error


class _TooManyChunks(Exception):
    pass


class _Chunks(ChunkStream):
    """The chunks of a PNG file, which raise _TooManyChunks where they are."""

    def __init__(self, file: BytesIO):
        super().__init__(file)
        self._left = MOST_CHUNKS

    def read(self) -> tuple[bytes, int, int]:
        if self._left == 0:
            raise _TooManyChunks
        self._left -= 1
        return super().read()


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a picture is whole even where its camera's notes are not
        orientation = None
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _opaque(image: Image.Image) -> Image.Image:
    """Reduce to 8 bits a channel, and lay what is transparent over white."""
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if not image.has_transparency_data:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits; Pillow's own conversion clips it."""
    grey = np.asarray(image).astype(np.int64)
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[grey == transparent] = 65_535
    return Image.fromarray(((grey * 255 + 32_767) // 65_535).astype(np.uint8))


def _border_median(image: Image.Image) -> NDArray[np.uint8]:
    """Median of each channel over the outermost pixels, (C,) or a scalar array."""
    pixels = np.asarray(image)
    border = np.concatenate((pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    return np.asarray(np.median(border, axis=0)).astype(np.uint8)


def _centred(
    pixels: NDArray[np.uint8], height: int, width: int, ground: NDArray[np.uint8] | int
) -> NDArray[np.uint8]:
    """Lay a picture (h, w, C) in the middle of a ground of (height, width, C)."""
    h, w, channels = pixels.shape
    top, left = (height - h) // 2, (width - w) // 2
    canvas = np.empty((height, width, channels), np.uint8)
    canvas[:] = ground
    canvas[top : top + h, left : left + w] = pixels
    return canvas
