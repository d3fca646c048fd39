"""Define a small convolutional network without pooling for 28x28 grey images: 436,202 parameters.

Strides instead of pooling make it about six times cheaper than the dropout CNN, so that training
against a long attack is possible on a CPU.
"""

from torch import nn

from bench.core.contracts.model import Model


def build() -> nn.Module:
    """Build the network; comments give the shape after each block, without the batch axis.

    Returns:
        The network with random weights: images (n, 1, 28, 28) in [0, 1] to logits (n, 10).
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=2, padding=1),
        nn.ReLU(),  # (32, 14, 14)
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.ReLU(),  # (64, 7, 7)
        nn.Flatten(),
        nn.Linear(3136, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


MODEL = Model(
    summary="convolutional net with strides for 28x28 grey images, 436,202 parameters",
    source="after Wong et al. 2020, https://arxiv.org/abs/2001.03994 (MNIST), twice as wide",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
