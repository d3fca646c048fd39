"""Take wrappers off a model, and put those on that make it take any float32 images.

Wrappers of torch that change no answer (DataParallel, DistributedDataParallel, torch.compile) are
taken off, so that a wrapped model has the records of the plain one.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.engine.padding import call_padded

COMPILED = "OptimizedModule"
"""Class that torch.compile wraps a module in; its module takes long to import."""


def unwrap_model(model: Any) -> Any:
    """Take off wrappers of torch that change no answer.

    Args:
        model: A module, or any callable.

    Returns:
        The innermost network; the model itself if it has no such wrapper, or hooks on it.
    """
    while isinstance(model, nn.Module) and not (model._forward_hooks or model._forward_pre_hooks):
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif type(model).__name__ == COMPILED and "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]
        else:
            break
    return model


class FixedBatchModel(nn.Module):
    """A model that takes one number of images alone: other numbers are filled up or divided."""

    def __init__(self, net: nn.Module, size: int) -> None:
        """Wrap a model.

        Args:
            net: Maps exactly `size` images to logits.
            size: Number of images.
        """
        super().__init__()
        self.net, self.size = net, size
        self.training = net.training

    def forward(self, x: Tensor) -> Tensor:
        """Call the model on pieces of its size, the last one filled up with its last image.

        Args:
            x: Images, (n, c, h, w).

        Returns:
            The model's output for them.

        Raises:
            TypeError: torch.fx traces the model.
        """
        if isinstance(x, fx.Proxy):
            raise TypeError("the number of images decides how such a model is called")
        return call_padded(self.net, x, self.size, self.size)

    def extra_repr(self) -> str:
        """Format the settings for `repr`.

        Returns:
            The text between the parentheses.
        """
        return f"size={self.size}"


class CastingModel(nn.Module):
    """A model in another precision: images are converted to it."""

    def __init__(self, net: nn.Module, dtype: torch.dtype) -> None:
        """Wrap a model.

        Args:
            net: Takes images in `dtype`.
            dtype: Its precision.
        """
        super().__init__()
        self.net, self.dtype = net, dtype
        self.training = net.training

    def forward(self, x: Tensor) -> Any:
        """Call the model on converted images.

        Args:
            x: Images, (n, c, h, w), float32.

        Returns:
            The model's output, in its own precision.
        """
        return self.net(x.to(self.dtype))

    def extra_repr(self) -> str:
        """Format the settings for `repr`.

        Returns:
            The text between the parentheses.
        """
        return f"dtype={self.dtype}"
