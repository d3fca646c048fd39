"""Define a maxout network for 28x28 grey images: two layers whose units take maxima.

Source: Goodfellow et al. 2013, https://arxiv.org/abs/1302.4389 (permutation-invariant MNIST: two
maxout layers with dropout, then softmax); 240 units of 5 pieces each, or 1600 in the wide one.
Differs from the paper: no constraint on the norm of the weights.
"""

from torch import Tensor, nn

from bench.core.contracts.model import Model


class Maxout(nn.Module):
    """Compute for each unit the largest of several linear functions.

    Source: Goodfellow et al. 2013, section 2.
    """

    def __init__(self, inputs: int, units: int, pieces: int) -> None:
        super().__init__()
        self.pieces = nn.Linear(inputs, units * pieces)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Activations, (n, inputs).

        Returns:
            Activations, (n, units).
        """
        every: Tensor = self.pieces(x).unflatten(1, (self.units, -1))  # (n, units, pieces)
        return every.amax(2)


def build(units: int = 240, pieces: int = 5) -> nn.Module:
    """Build the network.

    Args:
        units: Units of each maxout layer.
        pieces: Linear functions of each unit.

    Returns:
        The network with random weights: images (n, 1, 28, 28) in [0, 1] to logits (n, 10).
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Dropout(0.2),
        Maxout(784, units, pieces),
        nn.Dropout(0.5),
        Maxout(units, units, pieces),
        nn.Dropout(0.5),
        nn.Linear(units, 10),
    )


MODEL = Model(
    summary="two maxout layers of 240 units (or `units`) with 5 pieces, for 28x28 grey images",
    source="Goodfellow et al. 2013",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
