"""Make data sets of examples that are read one block after another.

What fits into RESIDENT bytes is held in memory once it is read. Of more, every image is read once
to be checked and hashed, and again whenever it is attacked.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets import inputs
from bench.datasets.content_hash import ContentHash
from bench.datasets.in_memory import make_data

RESIDENT = 2**30
"""Bytes of a data set that are held in memory."""
BLOCK = 256
"""Examples that are read at once while a data set is checked."""

Block = tuple[Tensor, Tensor]
"""Images (k, c, h, w) and labels (k,)."""


def collect_data(name: str, blocks: Iterable[Block], classes: tuple[str, ...]) -> Data:
    """Make a data set of blocks that can be read only once.

    Args:
        name: Name in tables.
        blocks: Images and labels in their order.
        classes: Names of the classes in index order; may be empty.

    Returns:
        The data set, all in memory.

    Raises:
        SuiteError: There is no block, or images and labels are not accepted.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for x, y in blocks:
        if images and (x.shape[1:] != images[0].shape[1:] or x.dtype != images[0].dtype):
            raise _changed(f"data {name}", images[0], x)
        images.append(x.clone())
        labels.append(y)
    if not images:
        raise SuiteError(f"data {name}: expected at least one example, got none")
    return make_data(name, torch.cat(images), torch.cat(labels), classes)


def stream_data(
    name: str, n: int, read: Callable[[int, int], Block], classes: tuple[str, ...]
) -> Data:
    """Make a data set of examples that can be read in any order.

    Args:
        name: Name in tables.
        n: Number of examples.
        read: (first, last) -> images (last - first, c, h, w), float in [0, 1] or uint8, and labels.
        classes: Names of the classes in index order; may be empty.

    Returns:
        The data set, in memory if it takes no more than RESIDENT bytes.

    Raises:
        SuiteError: There is no example, images and labels are not accepted, or some of the first
            images are others when they are read again.
    """
    where = f"data {name}"
    if n < 1:
        raise SuiteError(f"{where}: expected at least one example, got none")
    first = read(0, 1)
    inputs.check_shapes(where, *first)
    if n * first[0].nbytes <= RESIDENT:
        data = collect_data(name, _blocks(n, read), classes)
        _check_repeats(where, data, read(0, min(n, inputs.N_PROBED))[0])
        return data
    return _stream(name, n, read, classes)


def _blocks(n: int, read: Callable[[int, int], Block]) -> Iterator[Block]:
    for start in range(0, n, BLOCK):
        yield read(start, min(start + BLOCK, n))


def _stream(name: str, n: int, read: Callable[[int, int], Block], classes: tuple[str, ...]) -> Data:
    """Check and hash all examples; the images are not kept."""
    where, labels = f"data {name}", []
    content: ContentHash | None = None
    head, plain = torch.empty(0), torch.empty(0)
    for x, y in _blocks(n, read):
        inputs.check_shapes(where, x, y)
        plain = inputs.to_float_images(where, x)
        if content is None:
            head = x
            content = ContentHash((n, *plain.shape[1:]), plain.dtype)
        elif x.shape[1:] != head.shape[1:] or x.dtype != head.dtype:
            raise _changed(where, head, x)
        content.update(plain)
        labels.append(inputs.check_labels(where, y))
    y = torch.cat(labels)
    inputs.check_classes(where, y, classes)
    plain = inputs.to_float_images(where, head)
    assert content is not None

    def read_floats(first: int, last: int) -> Tensor:
        images = read(first, last)[0]
        if images.dtype != torch.uint8:
            images = images.to(torch.float32)
        return inputs.scale_images(images)

    data = Data(
        name=name,
        read=read_floats,
        labels=y,
        n=n,
        shape=(plain.shape[1], plain.shape[2], plain.shape[3]),
        classes=classes,
        fingerprint=content.finish(y),
        mapping=inputs.describe_mapping(head, plain, y, classes),
    )
    _check_repeats(where, data, head[: inputs.N_PROBED])
    return data


def _check_repeats(where: str, data: Data, images: Tensor) -> None:
    """Raise SuiteError if first images that were read at another time are not those of the data.

    One image is not enough: an augmentation such as a random flip leaves half of them as they are.
    """
    rows, n = data.read(0, len(images)), len(images)
    other = inputs.scale_images(inputs.to_float_images(where, images))
    changed = n if rows.shape != other.shape else int((rows != other).flatten(1).any(1).sum())
    if changed:
        raise SuiteError(
            f"{where}: {changed} of the first {n} images are others when they are read again; let "
            "the data set give the same image each time, without augmentation"
        )


def _changed(where: str, first: Tensor, later: Any) -> SuiteError:
    return SuiteError(
        f"{where}: expected all images to be of the shape and type of the first, "
        f"{tuple(first.shape[1:])} {first.dtype}, got {tuple(later.shape[1:])} {later.dtype}"
    )
