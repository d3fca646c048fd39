"""Define softmax regression: one linear layer, whose robust accuracy has a closed form.

Source: the linear explanation of adversarial examples, Goodfellow et al. 2015, sections 3 and 5,
https://arxiv.org/abs/1412.6572
"""

from torch import nn

from bench.core.contracts.model import Model


def build() -> nn.Module:
    """Build the network.

    Returns:
        The network with random weights: images (n, 1, 28, 28) in [0, 1] to logits (n, 10).
    """
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))


MODEL = Model(
    summary="softmax regression on 28x28 grey images, 7,850 parameters",
    source="Goodfellow et al. 2015",
    build=build,
    shape=(1, 28, 28),
    classes=10,
)
