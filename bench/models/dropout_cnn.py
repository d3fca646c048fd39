"""Define a small convolutional network with dropout for 28x28 grey images: 1,199,882 parameters.

Dropout is off in evaluation mode, as usual, or always on: then the network is a randomised defence,
whose answers and gradients differ from call to call.
Source of that defence: Dhillon et al. 2018, the dropout that pruning is compared with,
https://arxiv.org/abs/1803.01442
"""

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from bench.core.contracts.model import Model
from bench.models.preprocessing import MNIST_MEAN, MNIST_STD, Normalise


class LastingDropout(nn.Module):
    """Dropout that stays on in evaluation mode; its name is part of fingerprints."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop units at random.

        Args:
            x: Activations, any shape.

        Returns:
            Activations of the same shape.
        """
        return functional.dropout(x, self.p, training=True)

    def extra_repr(self) -> str:
        """Format the settings for `repr`.

        Returns:
            The text between the parentheses.
        """
        return f"p={self.p}"


def build(dropout: Literal["training", "always"] = "training") -> nn.Module:
    """Build the network; comments give the shape after each block, without the batch axis.

    Args:
        dropout: When units are dropped. Parameters and their names are the same in both cases.

    Returns:
        The network with random weights: images (n, 1, 28, 28) in [0, 1] to logits (n, 10).

    Raises:
        ValueError: `dropout` is neither.
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
