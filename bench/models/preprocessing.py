"""Normalise images inside a model.

A model maps float32 images in [0, 1], shape (n, c, h, w), to logits (n, classes). Normalisation is
one of its layers, so that eps is always measured in pixels of [0, 1].
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Normalise(nn.Module):
    """Subtract a mean and divide by a standard deviation per channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images.

        Args:
            x: Images, (n, c, h, w) in [0, 1].

        Returns:
            (x - mean) / std, same shape.
        """
        return (x - self.mean) / self.std


class Resize(nn.Module):
    """Resize square images bilinearly, with antialiasing where they become smaller.

    Written as a product of matrices: its gradient is exact and, unlike that of
    `torch.nn.functional.interpolate`, deterministic on a GPU.
    """

    def __init__(self, size: int, to: int) -> None:
        """Compute the weights.

        Args:
            size: Height and width of the images.
            to: Height and width of the results.
        """
        super().__init__()
        identity = torch.eye(size)[None, None]
        rows = functional.interpolate(identity, (to, size), mode="bilinear", antialias=True)
        self.rows: Tensor
        self.register_buffer("rows", rows[0, 0], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Resize images.

        Args:
            x: Images, (n, c, size, size).

        Returns:
            Images, (n, c, to, to).
        """
        return self.rows @ x @ self.rows.T


class Preprocessed(nn.Module):
    """A library's network after the normalisation that the library states for its weights.

    Images are neither resized nor cropped.
    """

    def __init__(
        self,
        net: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        made_for: tuple[int, int, int] | None = None,
        logits: str = "",
    ) -> None:
        """Wrap a network.

        Args:
            net: The network.
            mean: Mean per channel, in pixels of [0, 1].
            std: Standard deviation per channel, likewise.
            made_for: Shape (c, h, w) of the images that it was trained on, if known.
            logits: Field of the network's output that holds the logits; empty if it is the logits.
        """
        super().__init__()
        self.normalise, self.net = Normalise(mean, std), net
        self.made_for, self.logits = made_for, logits

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (n, c, h, w) in [0, 1].

        Returns:
            Logits, (n, classes).
        """
        output = self.net(self.normalise(x))
        logits: Tensor = getattr(output, self.logits) if self.logits else output
        return logits


MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
