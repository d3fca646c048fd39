"""Image files in and out, and ImageNet's class names."""

import io
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from bench.errors import SuiteError
from bench.files import write_whole


def decode(path: Path, resize: int, crop: int, channels: int = 3) -> Tensor:
    """An image file as (channels, crop, crop), float32 in [0, 1]; channels 3 (RGB) or 1 (grey).

    Resized bilinearly by its short side, then cut to the middle square, as torchvision's
    transforms for ImageNet do.
    Raises: SuiteError if the file is no readable image.
    """
    from torchvision.transforms import functional  # slow to import; only photographs pay for it

    mode = "RGB" if channels == 3 else "L"
    try:
        with Image.open(path) as image:
            square = functional.center_crop(functional.resize(image.convert(mode), resize), crop)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise SuiteError(f"{path} is no readable image: {error}") from error
    levels: Tensor = functional.pil_to_tensor(square)
    return levels.float() / 255


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
