"""A small convolutional net with dropout for 28x28 grey images: 1,199,882 parameters.

Dropout is off while the net is attacked and judged, as in evaluation mode; or it is never off, and
the net is the simplest of randomised defences: it answers otherwise each time, and so does its
gradient.
Source of that defence: Dhillon et al. 2018, the dropout that its pruning is compared with,
https://arxiv.org/abs/1803.01442
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bench.core.contracts.model import Model
from bench.models.preprocessing import MNIST_MEAN, MNIST_STD, Normalise


class LastingDropout(nn.Module):
    """Dropout that evaluation mode does not turn off; shape in and out alike."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.p, training=True)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def build(dropout: Literal["training", "always"] = "training") -> nn.Module:
    """Layers in the order of the data; shapes behind each block, without the batch axis.

    `dropout` says when units are dropped; the parameters are the same, and so are their names.
    """
    kinds = {"training": nn.Dropout, "always": LastingDropout}
    if dropout not in kinds:
        raise ValueError(f"dropout: expected 'training' or 'always', got {dropout!r}")
    kind = kinds[dropout]
    return nn.Sequential(
        Normalise(MNIST_MEAN, MNIST_STD),
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (64, 12, 12)
        kind(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        kind(0.5),
        nn.Linear(128, 10),
    )


MODEL = Model(
    summary="convolutional net with dropout for 28x28 grey images, 1,199,882 parameters",
    source="the Keras and PyTorch MNIST example",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
