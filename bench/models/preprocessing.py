"""One file per architecture, each ending in a MODEL record; published weights lie in weights/.

A model maps float32 images in [0, 1], shape (n, c, h, w), to logits (n, classes). Normalisation
is a layer of the model, so that eps is always measured in pixels.
"""

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """(x - mean) / std per channel; images in [0, 1] in, shape (n, c, h, w) in and out."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Preprocessed(nn.Module):
    """A library's net behind the normalisation that its preprocessing states; logits alone come
    out. Images are taken as they are, neither resized nor cropped."""

    def __init__(
        self,
        net: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        made_for: tuple[int, int, int] | None = None,
        logits: str = "",
    ) -> None:
        """`logits` is the field of what the net returns, if that is more than they."""
        super().__init__()
        self.normalise, self.net = Normalise(mean, std), net
        self.made_for, self.logits = made_for, logits

    def forward(self, x: Tensor) -> Tensor:
        answer = self.net(self.normalise(x))
        logits: Tensor = getattr(answer, self.logits) if self.logits else answer
        return logits


MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
