"""How an attack is trained before it can attack, such as the generator of AdvGAN."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.types import Shape, Threat


class TrainingBatch(NamedTuple):
    """One batch of the training of an attack."""

    target: nn.Module
    """Model to fool: in evaluation mode, its parameters frozen."""
    x: Tensor
    """Clean images, (n, c, h, w), in [0, 1]."""
    y: Tensor
    """True labels, (n,), int64."""
    threat: Threat


Losses = Mapping[str, Mapping[str, Tensor]]
"""Network -> term of its loss -> mean of that term over a batch, a detached scalar."""


@dataclass(frozen=True, kw_only=True)
class Learner:
    """Functions that define the training of an attack; each network has a name.

    `bench.workflows.training` owns the loop, the data, the optimisers (one per network) and the
    files.
    """

    params: type
    """Frozen dataclass of the training's parameters, such as the weights of the loss's terms."""
    build: Callable[[Shape, Any], Mapping[str, nn.Module]]
    """(shape of an image, params) -> untrained networks by name."""
    step: Callable[
        [Mapping[str, nn.Module], Mapping[str, torch.optim.Optimizer], TrainingBatch, Any], Losses
    ]
    """(networks, their optimisers, batch, params) -> losses; updates every network once."""
    published: str
    """Name of the network that crafts the adversarial images."""
    craft: Callable[[nn.Module, Tensor, Threat], Tensor]
    """(published network, x, threat) -> x_adv."""
    metadata: Callable[[Shape, Threat], Mapping[str, str]]
    """(shape of an image, threat) -> metadata of the weights file."""
