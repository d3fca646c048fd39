"""A small convolutional net with dropout for 28x28 grey images: 1,199,882 parameters.

Dropout is off while the net is attacked and judged, as in evaluation mode.
"""

from torch import nn

from bench.contracts import Model
from bench.models import MNIST_MEAN, MNIST_STD, Normalise


def build() -> nn.Module:
    """Layers in the order of the data; shapes behind each block, without the batch axis."""
    return nn.Sequential(
        Normalise(MNIST_MEAN, MNIST_STD),
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),  # (64, 12, 12)
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


MODEL = Model(
    summary="convolutional net with dropout for 28x28 grey images, 1,199,882 parameters",
    source="the Keras and PyTorch MNIST example",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
