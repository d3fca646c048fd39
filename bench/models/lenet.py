"""Define LeNet for 28x28 grey images: 61,706 parameters (156 + 2,416 + 48,120 + 10,164 + 850).

Source: LeCun et al. 1998, https://doi.org/10.1109/5.726791, with ReLU and max-pooling.
"""

from torch import nn

from bench.core.contracts.model import Model
from bench.models.preprocessing import MNIST_MEAN, MNIST_STD, Normalise


def build() -> nn.Module:
    """Build the network; comments give the shape after each block, without the batch axis.

    Returns:
        The network with random weights: images (n, 1, 28, 28) in [0, 1] to logits (n, 10).
    """
    return nn.Sequential(
        Normalise(MNIST_MEAN, MNIST_STD),
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (6, 14, 14)
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (16, 5, 5)
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


MODEL = Model(
    summary="LeNet for 28x28 grey images, 61,706 parameters",
    source="LeCun et al. 1998",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
