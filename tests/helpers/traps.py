"""Three defences that hold by making attacks fail, for tests of what tells so.

Each wraps an honest net; none makes it robust.
"""

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.models import lenet
from bench.models.published_weights import WEIGHTS


class Saturated(nn.Module):
    """Logits a thousand times too large: in float32 cross-entropy is 0, and so is its gradient.

    Source: defensive distillation at test time, Carlini and Wagner 2017, section 5,
    https://arxiv.org/abs/1608.04644
    """

    def __init__(self, net: nn.Module, scale: float = 1000.0) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.scale * self.net(x)
        return logits


class Quantised(nn.Module):
    """The image rounded to a few grey levels, whose gradient is zero wherever there is one.

    Source: input quantisation, as in Guo et al. 2018, https://arxiv.org/abs/1711.00117
    """

    def __init__(self, net: nn.Module, levels: int = 8) -> None:
        super().__init__()
        self.net, self.levels = net, levels

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x * (self.levels - 1)).round() / (self.levels - 1))
        return logits


class Randomised(nn.Module):
    """Noise on the image at every pass, drawn from the global generator as strangers' models do.

    Source: randomisation at inference time, as in Xie et al. 2018,
    https://arxiv.org/abs/1711.01991
    """

    def __init__(self, net: nn.Module, size: float = 0.3) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x + self.size * torch.randn_like(x))
        return logits


def saturated() -> nn.Module:
    """For suites: the trap around the LeNet that is published for the digits."""
    return Saturated(_honest())


def quantised() -> nn.Module:
    """For suites, as `saturated`."""
    return Quantised(_honest())


def randomised() -> nn.Module:
    """For suites, as `saturated`."""
    return Randomised(_honest())


def _honest() -> nn.Module:
    net = lenet.build()
    net.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    return net.eval()
