"""Call a model that takes only certain numbers of images at once."""

from collections.abc import Callable

import torch
from torch import Tensor


def call_padded(call: Callable[[Tensor], Tensor], x: Tensor, least: int, most: int) -> Tensor:
    """Call a model on pieces of a size that it takes, each filled up with its last image.

    Args:
        call: The model.
        x: Images, (n, c, h, w).
        least: Fewest images that it takes at once.
        most: Most images that it takes at once.

    Returns:
        The output for x, (n, ...).
    """
    if least <= len(x) <= most:
        return call(x)
    parts = x.split(most)
    filled = [torch.cat([part, *[part[-1:]] * (least - len(part))]) for part in parts]
    return torch.cat([call(each)[: len(part)] for each, part in zip(filled, parts, strict=True)])
