"""Recognise the layout of images and labels in arrays of NumPy, PyTorch and files.

Accepted are (n, c, h, w), (n, h, w, c) where the last axis alone can be the channels, and (n, h, w)
for grey images; how they were read is a text for `Data.mapping`.
"""

import warnings
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.core.errors import SuiteError, first_line
from bench.datasets import inputs

Layout = Literal["nchw", "nhwc"]
CHANNELS = (1, 3)
"""Numbers of channels by which a last axis is recognised."""
SHORTEST = 8
"""Fewer pixels along a side, and the axes of an image cannot be told from channels."""


class Axes(NamedTuple):
    """How axes of an array are read."""

    order: tuple[int, ...]
    """Axes of the array in the order (n, c, h, w); the axis -1 is a new one of length 1."""
    text: str
    """Text for `Data.mapping`; empty for (n, c, h, w)."""


def to_tensor(where: str, values: Any) -> Tensor:
    """Convert an array to a tensor.

    Args:
        where: Start of the error message.
        values: A tensor, or an array of NumPy or of a library that NumPy can read.

    Returns:
        A tensor; it may share memory with `values`.

    Raises:
        SuiteError: NumPy or PyTorch has no such array, or a tensor has no plain values.
    """
    if isinstance(values, Tensor):
        return inputs.to_dense(where, values)
    try:
        array = np.asarray(values)
        if not array.dtype.isnative:
            array = array.astype(array.dtype.newbyteorder("="))
        if array.dtype == np.longdouble and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        with warnings.catch_warnings():  # of read-only memory, which bench does not write to
            warnings.simplefilter("ignore")
            return torch.from_numpy(np.ascontiguousarray(array) if _is_odd(array) else array)
    except (TypeError, ValueError) as error:
        raise SuiteError(
            f"{where}: expected an array of numbers, got {type(values).__name__} "
            f"({first_line(error)})"
        ) from error


def _is_odd(array: "np.ndarray[Any, Any]") -> bool:
    """Return whether PyTorch has no such strides."""
    return any(step < 0 or step % array.itemsize for step in array.strides)


def is_channel_last(shape: tuple[int, ...]) -> bool:
    """Return whether the last axis of one image is certainly its channels.

    >>> is_channel_last((32, 32, 3)), is_channel_last((3, 32, 32)), is_channel_last((28, 28, 1))
    (True, False, True)
    >>> is_channel_last((12, 5000, 1)), is_channel_last((2, 2, 1))
    (False, False)

    Args:
        shape: Three lengths.

    Returns:
        True for (h, w, 3) and for square (h, w, 1), of at least SHORTEST pixels a side.
    """
    high, wide, last = shape
    if last not in CHANNELS or high in CHANNELS or min(high, wide) < SHORTEST:
        return False
    return last == 3 or high == wide


def find_axes(where: str, shape: tuple[int, ...], layout: Layout | None) -> Axes:
    """Find out which axis of an array of images is which.

    Args:
        where: Start of the error message.
        shape: The array's.
        layout: What the user says of four axes; None to recognise it.

    Returns:
        The order of the axes.

    Raises:
        SuiteError: It is ambiguous, or no array of images.
    """
    if layout not in (None, "nchw", "nhwc"):
        raise SuiteError(f"{where}: layout: expected 'nchw' or 'nhwc', got {layout!r}")
    if len(shape) == 3:
        return Axes((0, -1, 1, 2), "(n, h, w), grey images")
    if len(shape) != 4:
        raise SuiteError(
            f"{where}: expected images (n, c, h, w), (n, h, w, c) or (n, h, w), got {shape}"
        )
    high, wide, last = shape[1:]
    if layout == "nhwc" or (layout is None and is_channel_last((high, wide, last))):
        return Axes((0, 3, 1, 2), "(n, h, w, c), the channels last")
    if layout is None and last == 1 and min(high, wide) >= SHORTEST:
        raise SuiteError(
            f"{where}: images of shape {shape} may be (n, c, h, w) or (n, h, w, c); say "
            "layout = 'nchw' or 'nhwc'"
        )
    return Axes((0, 1, 2, 3), "")


def arrange(images: Tensor, axes: Axes) -> Tensor:
    """Bring the axes of images into the order of PyTorch.

    Args:
        images: As in the array, any number of them.
        axes: Result of `find_axes`.

    Returns:
        A view, (n, c, h, w).
    """
    if -1 in axes.order:
        return images.unsqueeze(1)
    return images.permute(axes.order)
