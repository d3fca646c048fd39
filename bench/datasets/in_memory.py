"""Make data sets from tensors.

The fingerprint covers images and labels, so that records of different data are never confused.
`bench.datasets.inputs` lists the accepted types.
"""

from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.datasets import inputs
from bench.datasets.content_hash import ContentHash


def make_data(name: str, images: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Data:
    """Make a data set of tensors that fit in memory.

    Args:
        name: Name in tables.
        images: (n, c, h, w), of a type that `bench.datasets.inputs` lists.
        labels: (n,), integers from 0.
        classes: Names of the classes in index order; may be empty.

    Returns:
        A data set; its fingerprint depends on values alone, not on strides, views or devices.

    Raises:
        SuiteError: Images or labels are not accepted.
    """
    where = f"data {name}"
    inputs.check_shapes(where, images, labels)
    plain, y = inputs.to_float_images(where, images), inputs.check_labels(where, labels)
    inputs.check_classes(where, y, classes)
    content = ContentHash(tuple(plain.shape), plain.dtype)
    content.update(plain)

    def read(first: int, last: int) -> Tensor:
        return inputs.scale_images(plain[first:last])

    return Data(
        name=name,
        read=read,
        labels=y,
        n=len(y),
        shape=(plain.shape[1], plain.shape[2], plain.shape[3]),
        classes=classes,
        fingerprint=content.finish(y),
        mapping=inputs.describe_mapping(images, plain, y, classes),
    )
