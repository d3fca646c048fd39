"""Image files in and out, and ImageNet's class names."""

import io
import warnings
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.errors import SuiteError
from bench.files import write_whole

MOST_PIXELS = 2**27
"""A photograph of 128 megapixels, 384 MiB as it is decoded; what claims more is a bomb."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What a file may be, whatever its name says: of some others Pillow runs a program, as Ghostscript
on PostScript."""


def decode(path: Path, resize: int, crop: int, channels: int = 3) -> Tensor:
    """An image file as (channels, crop, crop), float32 in [0, 1]; channels 3 (RGB) or 1 (grey).

    Resized bilinearly by its short side, then cut to the middle square, as torchvision's
    transforms for ImageNet do.
    Raises: SuiteError if the file is no readable image.
    """
    from torchvision.transforms import functional  # slow to import; only photographs pay for it

    mode = "RGB" if channels == 3 else "L"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                check_size(*image.size, resize)
                resized = functional.resize(image.convert(mode), resize)
        square = functional.center_crop(resized, crop)
    except (
        UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        raise SuiteError(f"{path} is no readable image: {error}") from error
    levels: Tensor = functional.pil_to_tensor(square)
    return levels.float() / 255


def check_size(width: int, height: int, resize: int) -> None:
    """Raises: ValueError if an image has, or gets by its short side becoming `resize`, more pixels
    than any photograph: a line of a million pixels is small, but not once it is 256 high."""
    short, long = sorted((width, height))
    pixels = max(short * long, resize * resize * long // max(short, 1))
    if pixels > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels are too many, or too long a strip")


def to_png(image: Tensor, path: Path) -> Path:
    """Write an image (c, h, w) in [0, 1], rounded to 8 bits, without loss; gives `path`."""
    levels = image.mul(255).round().to(torch.uint8).cpu()
    array = levels[0].numpy() if len(levels) == 1 else levels.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return write_whole(path, buffer.getvalue())


def imagenet_names() -> tuple[str, ...]:
    """ImageNet's 1000 class names in index order, from torchvision's weights metadata."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
