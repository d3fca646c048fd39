"""One file per data set, each ending in a DATASET record; images are float32 in [0, 1].

A data set states what it was made from in its fingerprint, so that records of one are never
taken for records of another. What is taken for images and labels, `bench.datasets.inputs` lists.
"""

import hashlib

from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.datasets import inputs


def make_data(name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Data:
    """Make a data set of tensors that fit in memory.

    Args:
        name: Name in tables.
        images: (n, c, h, w), of a type that `bench.datasets.inputs` lists.
        labels: (n,), integers from 0.
        classes: Names of the classes in index order; may be empty.

    Returns:
        Data whose fingerprint and images depend on values alone, not on strides, views or devices.

    Raises:
        SuiteError: They are not taken, in one sentence.
    """
    where = f"data {name}"
    inputs.check_shapes(where, images, labels)
    plain, y = inputs.to_float_images(where, images), inputs.check_labels(where, labels)
    digest = hashlib.sha256(str((tuple(plain.shape), plain.dtype)).encode())
    digest.update(plain.numpy().tobytes())
    digest.update(y.numpy().tobytes())

    def read(first: int, last: int) -> Tensor:
        return inputs.scale_images(plain[first:last])

    return Data(
        name=name,
        read=read,
        labels=y,
        n=len(y),
        shape=(plain.shape[1], plain.shape[2], plain.shape[3]),
        classes=classes,
        fingerprint=digest.hexdigest(),
        mapping=inputs.describe_mapping(images, plain, y, classes),
    )
