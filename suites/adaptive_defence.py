"""The defence of the suite `adaptive` and what its attacks know of it; copy both and edit.

The defence rounds the pixels to eight levels, whose gradient is zero almost everywhere. The two
functions below it are the attacker's: a gradient for the rounding, and a loss.
"""

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.models import lenet
from bench.models.published_weights import WEIGHTS


class Quantise(nn.Module):
    """Round pixels to eight levels."""

    def forward(self, x: Tensor) -> Tensor:
        """Round images.

        Args:
            x: Images, (n, c, h, w), in [0, 1].

        Returns:
            Images of the same shape.
        """
        return torch.round(x * 7) / 7


class DefendedNet(nn.Module):
    """A LeNet behind the quantiser."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.quantise = Quantise()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Args:
            x: Images, (n, c, h, w), in [0, 1].

        Returns:
            Logits, (n, classes).
        """
        logits: Tensor = self.net(self.quantise(x))
        return logits


def make() -> nn.Module:
    """Build the defended net with its weights; load your own here.

    Returns:
        The model, in evaluation mode.
    """
    net = lenet.build()
    net.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    return DefendedNet(net).eval()


def straight_through(x: Tensor) -> Tensor:
    """Approximate the quantiser by the identity, whose gradient the attack then follows.

    Source: Athalye et al. 2018, section 4.1.1, https://arxiv.org/abs/1802.00420

    Args:
        x: Input of the module, as the model gives it.

    Returns:
        A tensor of the shape that the module returns, differentiable in x.
    """
    return x


def margin_with_features(
    logits: Tensor, labels: Tensor, images: Tensor, features: Mapping[str, Tensor]
) -> Tensor:
    """Ascend the difference of logits while the inner layer remains unremarkable.

    A defence that looks at an inner layer is attacked through it. Here large activations cost.

    Args:
        logits: Logits, (n, classes).
        labels: Labels, (n,), int64; the targets of a targeted attack.
        images: The iterates, (n, c, h, w), in [0, 1].
        features: Outputs of the modules that the suite names, (n, ...) each.

    Returns:
        One loss per example to ascend, (n,).
    """
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    gap = others - logits.gather(1, labels[:, None])[:, 0]
    return gap - 0.01 * features["net.9"].square().mean(1)
