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


MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
