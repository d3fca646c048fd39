"""Tell in which memory layout features are, and where the channels-last layout pays on a CPU."""

import torch
from torch import Tensor

WIDE = 16
"""Channels from which torch's max-pooling is vectorised in the channels-last layout."""


def is_channels_last(x: Tensor) -> bool:
    """Return whether features are in channels-last layout.

    Args:
        x: Features, (n, c, h, w).

    Returns:
        True also where the contiguous layout is the same, as with one channel.
    """
    return x.is_contiguous(memory_format=torch.channels_last)
