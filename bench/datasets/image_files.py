"""Read image files as tensors, and write tensors as PNG."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.core.errors import SuiteError, first_line
from bench.core.files import write_atomic

MAX_PIXELS = 2**27
"""128 megapixels, 384 MiB decoded; larger files are taken for decompression bombs."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Accepted formats, independent of file names: for others Pillow may run programs, such as
Ghostscript for PostScript."""
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> operation that turns the stored pixels upright."""
ORIENTATION = 0x0112
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")
"""Modes of 16 bits: from 0 to 65,535, as PNG, PPM and TIFF define it."""
MODES_8_BIT = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LA", "PA", "RGBA", "La", "RGBa")
"""Modes of 8 bits that Pillow converts to RGB and grey."""


def decode_image(path: Path, resize: int, crop: int, channels: int = 3) -> Tensor:
    """Read an image file as (channels, crop, crop), float32 in [0, 1].

    A photograph is turned upright by its EXIF orientation; 16 bits are divided by 257, rounded and
    read as 8; palettes, CMYK and YCbCr are converted by Pillow, without a colour profile; then
    the image is resized bilinearly by its short side and cut to the middle square, as torchvision's
    transforms for ImageNet do.

    Args:
        path: The file, of a format in FORMATS.
        resize: Length of the short side.
        crop: Length of the sides of the square.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        The image.

    Raises:
        SuiteError: The file is no readable image, or one whose pixels have no single meaning:
            transparent, animated, or of 32 bits.
    """
    from torchvision.transforms import functional  # slow to import

    mode = "RGB" if channels == 3 else "L"
    with _open_image(path, path) as image:
        check_size(*image.size, resize)
        resized = functional.resize(convert_image(image, mode), resize)
        square = functional.center_crop(resized, crop)
    levels: Tensor = functional.pil_to_tensor(square)
    return levels.float() / 255


def is_coloured(path: Path) -> bool:
    """Return whether an image file is in colour.

    Args:
        path: The file, of a format in FORMATS.

    Returns:
        True if red, green and blue differ in any pixel.

    Raises:
        SuiteError: The file is no readable image.
    """
    with _open_image(path, path) as image:
        check_size(*image.size, 1)
        if image.mode in ("1", "L", "LA") or _is_deep(image):
            return False
        pixels = np.asarray(image.convert("RGB"))
    return bool((pixels != pixels[..., :1]).any())


def describe_treatment(path: Path, content: bytes) -> str:
    """Describe what `decode_image` does beyond converting, resizing and cropping.

    Args:
        path: The file, for messages.
        content: Its bytes; pixels are not decoded.

    Returns:
        "" for most images; else "turned upright by EXIF", "16 bits", or both.

    Raises:
        SuiteError: As `decode_image`, as far as the header shows.
    """
    with _open_image(path, io.BytesIO(content)) as image:
        _check_kind(image)
        turned = _orientation(image) if image.format != "PNG" or b"eXIf" in content else 1
        changes = ["turned upright by EXIF"] if turned in TRANSPOSITIONS else []
        return ", ".join([*changes, "16 bits"] if _is_deep(image) else changes)


@contextlib.contextmanager
def _open_image(path: Path, source: Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image file; Pillow's errors become a SuiteError."""
    if isinstance(source, Path) and not source.exists():
        raise SuiteError(f"{path}: expected an image file, found none; check the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                yield image
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise SuiteError(f"{path} is no readable image: {first_line(error)}") from error


def _is_deep(image: Image.Image) -> bool:
    return image.mode in MODES_16_BIT or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _check_kind(image: Image.Image) -> None:
    """Raise ValueError for pixels of unknown scale, and for more than one picture."""
    if image.mode not in MODES_8_BIT and not _is_deep(image):
        raise ValueError(
            f"its pixels are of Pillow's mode {image.mode}, whose range is not known; save it with "
            "8 or 16 bits a channel"
        )
    # A telephone's JPEG may carry a preview or a depth map behind the photograph (MPO).
    frames = getattr(image, "n_frames", 1) if image.format in ("GIF", "PNG", "WEBP", "TIFF") else 1
    if frames > 1:
        raise ValueError(f"it holds {frames} pictures; save the one that is meant by itself")


def convert_image(image: Image.Image, mode: str) -> Image.Image:
    """Convert an open image to upright 8-bit RGB or grey.

    Args:
        image: The image.
        mode: "RGB" or "L".

    Returns:
        A new image of that mode.

    Raises:
        ValueError: Its pixels have no single meaning: transparent, animated or of 32 bits.
    """
    _check_kind(image)
    turn = TRANSPOSITIONS.get(_orientation(image))
    seen_through = {"A", "a"} & {*image.getbands()} or "transparency" in image.info
    if seen_through and (
        _is_deep(image) or image.convert("RGBA").getchannel("A").getextrema()[0] != 255
    ):
        raise ValueError(
            "it has transparent pixels, whose colour depends on what is behind; put it onto a "
            "background and save it without transparency"
        )
    if _is_deep(image):
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    converted = image.convert(mode)
    return converted if turn is None else converted.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an open image; 1 (upright) if it is absent or damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
        return 1  # damaged EXIF data are common in readable images
    return orientation if isinstance(orientation, int) else 1


def check_size(width: int, height: int, resize: int) -> None:
    """Check the number of pixels before and after resizing.

    A strip of a million by one pixels is small, but not after its short side is resized to 256.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        resize: Length of the short side after resizing, in pixels.

    Raises:
        ValueError: There are more than MAX_PIXELS.
    """
    short, long = sorted((width, height))
    pixels = max(short * long, resize * resize * long // max(short, 1))
    if pixels > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many, or too long a strip")


def write_png(image: Tensor, path: Path) -> Path:
    """Write an image as PNG, rounded to 8 bits.

    Args:
        image: (c, h, w) in [0, 1].
        path: The file.

    Returns:
        `path`.
    """
    levels = image.mul(255).round().to(torch.uint8).cpu()
    array = levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return write_atomic(path, buffer.getvalue())
