"""Define the LeNet of Caffe's MNIST example for 28x28 grey images: 431,080 parameters.

No padding: 28 -> 24 -> 12 -> 8 -> 4. Source: Jia et al. 2014, https://arxiv.org/abs/1408.5093,
after LeCun et al. 1998.
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
        nn.Conv2d(1, 20, 5),
        nn.MaxPool2d(2),  # (20, 12, 12)
        nn.Conv2d(20, 50, 5),
        nn.MaxPool2d(2),  # (50, 4, 4)
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, 10),
    )


MODEL = Model(
    summary="Caffe's LeNet for 28x28 grey images, 431,080 parameters",
    source="Jia et al. 2014",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
