"""Hash images and labels, the same for the same content in memory, in a file or from a loader."""

import hashlib

import torch
from torch import Tensor

BLOCK = 2**26
"""Bytes that are hashed at once."""


class ContentHash:
    """Fingerprint of images that arrive block by block, and of their labels.

    Floats that are exactly 8-bit levels divided by 255 count as those levels, so that a loader
    that converts to float and the file of levels behind it have one fingerprint.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """Start a hash.

        Args:
            shape: Of all images together, (n, c, h, w).
            dtype: Of the blocks: torch.uint8 or torch.float32.
        """
        self._levels = hashlib.sha256(str((shape, torch.uint8)).encode())
        self._values = hashlib.sha256(str((shape, dtype)).encode())
        self._is_levels = True

    def update(self, images: Tensor) -> None:
        """Add the next images.

        Args:
            images: (k, c, h, w), contiguous on the CPU; float32 in [0, 1] or uint8.
        """
        flat = images.view(-1)
        for block in flat.split(BLOCK // images.element_size()):
            if images.dtype == torch.uint8:
                self._levels.update(block.numpy().data)
                continue
            self._values.update(block.numpy().data)
            if self._is_levels:
                levels = block.mul(255).round().to(torch.uint8)
                self._is_levels = torch.equal(levels.float().div(255), block)
                self._levels.update(levels.numpy().data)

    def finish(self, labels: Tensor) -> str:
        """Add the labels.

        Args:
            labels: (n,), int64, contiguous on the CPU.

        Returns:
            64 hexadecimal digits.
        """
        digest = self._levels if self._is_levels else self._values
        digest.update(labels.numpy().tobytes())
        return digest.hexdigest()
