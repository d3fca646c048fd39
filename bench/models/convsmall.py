"""Define a small convolutional network with strides for 28x28 grey images: 166,406 parameters.

It is the usual network for certified training: small and without pooling, so that bounds of its
outputs stay tight. Half as wide as the strided CNN.
Source: Wong and Kolter 2018, https://arxiv.org/abs/1711.00851 (the net for MNIST); "ConvSmall" in
Mirman et al. 2018, https://proceedings.mlr.press/v80/mirman18b.html
"""

from torch import nn

from bench.core.contracts.model import Model


def build() -> nn.Module:
    """Build the network; comments give the shape after each block, without the batch axis.

    Returns:
        The network with random weights: images (n, 1, 28, 28) in [0, 1] to logits (n, 10).
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),  # (16, 14, 14)
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),  # (32, 7, 7)
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


MODEL = Model(
    summary="small convolutional net with strides for 28x28 grey images, 166,406 parameters",
    source="Wong and Kolter 2018",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
