"""One file per data set, each ending in a DATASET record; images are float32 in [0, 1].

A data set states what it was made from in its fingerprint, so that records of one are never
taken for records of another.
"""

import hashlib

from torch import Tensor

from bench.contracts import Data


def in_memory(name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Data:
    """Data of tensors that fit in memory.

    Shapes: images uint8 levels 0..255 or float32 in [0, 1], (n, c, h, w); labels (n,) integers.
    """
    digest = hashlib.sha256(str((tuple(images.shape), images.dtype)).encode())
    digest.update(images.contiguous().numpy().tobytes())
    digest.update(labels.long().contiguous().numpy().tobytes())
    levels = not images.is_floating_point()

    def read(first: int, last: int) -> Tensor:
        rows = images[first:last]
        return rows.float().div(255) if levels else rows.float()

    return Data(
        name=name,
        read=read,
        labels=labels.long(),
        n=len(labels),
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        classes=classes,
        fingerprint=digest.hexdigest(),
    )
