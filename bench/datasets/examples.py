"""Read one example of a map-style data set: (image, label), or a mapping with both.

An image is a Pillow image, a tensor (c, h, w) or (h, w), or an array (h, w, c), (c, h, w) or
(h, w). PyTorch's, torchvision's and Hugging Face's data sets all deliver one of these.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench.core.errors import SuiteError, suggest_params
from bench.datasets import arrays, image_files

IMAGE_KEYS = ("image", "img", "images", "pixel_values", "x", "jpg", "png")
LABEL_KEYS = ("label", "labels", "fine_label", "target", "targets", "y", "cls")
GREY_MODES = ("1", "L", "LA", "La", *image_files.MODES_16_BIT)


@dataclass(frozen=True, kw_only=True)
class ExampleReader:
    """Turns examples into images of one shape and labels."""

    where: str
    """Start of error messages."""
    channels: int | None = None
    """Channels that Pillow images are converted to; those of the first image if None."""
    size: int | None = None
    """Side of the square that images are cut to after resizing; None leaves their size."""
    resize: int | None = None
    """Length of the short side before the square is cut; `size` if None."""
    image_key: str | None = None
    """Key of the image in a mapping; found by its name if None."""
    label_key: str | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SuiteError: One of them is impossible.
        """
        if self.channels not in (None, 1, 3):
            raise SuiteError(f"{self.where}: channels: expected 1 or 3, got {self.channels!r}")
        for name in ("size", "resize"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise SuiteError(f"{self.where}: {name}: expected a whole number, got {value!r}")
        if self.resize is not None and (self.size is None or self.resize < self.size):
            raise SuiteError(
                f"{self.where}: resize: expected a `size` of at most {self.resize}, got {self.size}"
            )

    def split_example(self, example: Any) -> tuple[Any, Any]:
        """Split an example into image and label.

        Args:
            example: A pair, a mapping, or MAITE's (image, one-hot label or scores, metadata).

        Returns:
            Image and label as they are.

        Raises:
            SuiteError: It is neither, or the mapping has no such keys.
        """
        if isinstance(example, Mapping):
            image = _find_key(self.where, "image", self.image_key, IMAGE_KEYS, example)
            label = _find_key(self.where, "label", self.label_key, LABEL_KEYS, example)
            return example[image], example[label]
        if isinstance(example, tuple | list) and len(example) == 2:
            return example[0], example[1]
        if isinstance(example, tuple) and len(example) == 3 and isinstance(example[2], Mapping):
            scores = np.asarray(example[1])
            return example[0], int(scores.argmax()) if scores.size > 1 else example[1]
        raise SuiteError(
            f"{self.where}: expected each example to be (image, label), got {_describe(example)}"
        )

    def read_image(self, image: Any) -> Tensor:
        """Convert an image to a tensor.

        Args:
            image: As the module says.

        Returns:
            (c, h, w), of the type of its pixels; Pillow images are uint8.

        Raises:
            SuiteError: It is no image.
        """
        from torchvision.transforms import functional  # slow to import

        if isinstance(image, Image.Image):
            channels = self.channels or (1 if image.mode in GREY_MODES else 3)
            if channels == 1 and image.mode not in GREY_MODES:
                raise SuiteError(
                    f"{self.where}: expected grey images as the first is, got one of mode "
                    f"{image.mode}; say channels = 3, or channels = 1 on grey images alone"
                )
            try:
                image = image_files.convert_image(image, "L" if channels == 1 else "RGB")
            except (OSError, ValueError) as error:
                raise SuiteError(f"{self.where}: an image cannot be used: {error}") from error
            if self.size is not None:
                image = functional.resize(image, self.resize or self.size)
                image = functional.center_crop(image, self.size)
            levels: Tensor = functional.pil_to_tensor(image)
            return levels
        tensor = arrays.to_tensor(self.where, image)
        if tensor.dim() == 2:
            tensor = tensor.unsqueeze(0)
        if tensor.dim() != 3:
            raise SuiteError(
                f"{self.where}: expected each image to be (c, h, w), (h, w, c) or (h, w), got "
                f"{tuple(tensor.shape)}"
            )
        if arrays.is_channel_last(tuple(tensor.shape)):
            tensor = tensor.permute(2, 0, 1)
        if self.size is not None:
            tensor = functional.resize(tensor, self.resize or self.size, antialias=True)
            tensor = functional.center_crop(tensor, self.size)
        return tensor

    def read_label(self, label: Any) -> int:
        """Convert a label.

        Args:
            label: An integer of Python, NumPy or PyTorch.

        Returns:
            The class index.

        Raises:
            SuiteError: It is no integer.
        """
        single = isinstance(label, Tensor | np.ndarray) and np.prod(label.shape) == 1
        value = label.item() if single else label
        if isinstance(value, int | np.integer | np.bool_):
            return int(value)
        raise SuiteError(
            f"{self.where}: expected each label to be an integer, got {_describe(label)}"
        )

    def read_examples(self, examples: list[Any]) -> tuple[Tensor, Tensor]:
        """Convert examples to a block of images and labels.

        Args:
            examples: At least one.

        Returns:
            Images (k, c, h, w) and labels (k,).

        Raises:
            SuiteError: One of them cannot be read, or sizes differ.
        """
        pairs = [self.split_example(example) for example in examples]
        images = [self.read_image(image) for image, _ in pairs]
        labels = torch.tensor([self.read_label(label) for _, label in pairs], dtype=torch.int64)
        self.check_sizes(images[0].shape, images)
        return torch.stack(images), labels

    def check_sizes(self, shape: tuple[int, ...], images: list[Tensor]) -> None:
        """Check that images have one shape.

        Args:
            shape: The first image's.
            images: (c, h, w) each.

        Raises:
            SuiteError: Shapes differ.
        """
        for image in images:
            if image.shape != shape:
                raise SuiteError(
                    f"{self.where}: expected images of one shape, got {tuple(shape)} and then "
                    f"{tuple(image.shape)}; say size = 224 to resize the short side and cut the "
                    "middle square, or let the data set do it"
                )


def _find_key(
    where: str, what: str, given: str | None, usual: tuple[str, ...], example: Mapping[str, Any]
) -> str:
    """Return the key of an image or a label."""
    known = [str(key) for key in example]
    if given is not None:
        if given not in known:
            raise SuiteError(
                f"{where}: {what}: there is no column '{given}'; columns: {', '.join(known)}"
            )
        return given
    found = [key for key in usual if key in known]
    if not found:
        raise SuiteError(
            f"{where}: no column is called as an {what} usually is"
            f"; name it by {suggest_params(f'{what} = ...')}; columns: {', '.join(known)}"
        )
    return found[0]


def _describe(value: Any) -> str:
    """Describe a value by its type, and its length or shape."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"{type(value).__name__} of shape {tuple(shape)} and type {value.dtype}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {len(value)}"
    return f"{type(value).__name__} {value!r}" if isinstance(value, float) else type(value).__name__
