"""One of the fifteen common corruptions, at the severity that eps names; no question to the model.

Every example is corrupted, also those that the model misclassifies without it, so that the error of
a corruption is that of all images. A corruption is chosen without regard to the model: a robust
accuracy under it is an average case and says nothing of an adversary.
Source: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.threat import TransformedBatch
from bench.core.contracts.types import Norm, Threat
from bench.core.optional import missing_reason
from bench.core.rng import Noise
from bench.engine.threats import corruption
from bench.engine.threats.corruption import CORRUPTIONS, Corruption, Setting


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    corruption: Corruption = "gaussian_noise"


def run(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, params: Params, noise: Noise
) -> TransformedBatch:
    """Corrupt the images.

    Args:
        model: Not called.
        x: Clean images, (n, c, h, w), in [0, 1].
        y: Not read.
        threat: Its eps is the severity.
        params: The corruption.
        noise: Random numbers keyed by example.

    Returns:
        Images, with corruption and severity of each.
    """
    severity = int(threat.eps)
    images = corruption.corrupt(x, Setting(params.corruption, severity), noise)
    parameters = torch.tensor(
        [[CORRUPTIONS.index(params.corruption), severity]], dtype=torch.float64
    )
    return TransformedBatch(images, parameters.expand(len(x), 2))


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Say which corruption it is.

    Args:
        params: Params of the attack.
        norm: Not read.
        eps: Not read.

    Returns:
        The corruption, by which the table of corruptions finds its cells.
    """
    return {"corruption": params.corruption}


def caveats(params: Params, norm: Norm, eps: float) -> Sequence[str]:
    """Say what the numbers may be compared with.

    Args:
        params: Params of the attack.
        norm: Not read.
        eps: Not read.

    Returns:
        A sentence.
    """
    return (
        "Constants of ImageNet-C (224 pixels) as corrupt-tta implements them, and stronger on "
        "smaller images: compare with runs of bench, not with files of ImageNet-C or CIFAR-10-C.",
    )


ATTACK = ExternalAttack(
    summary="one of 15 common corruptions at severity 1 to 5, drawn without regard to the model",
    source="Hendrycks and Dietterich 2019, by corrupt-tta",
    params=Params,
    norms=("corruption",),
    goals=("untargeted",),
    needs="nothing",
    stochastic=True,
    channels=(1, 3),
    implementation="corrupt_tta",
    distribution="corrupt-tta",
    unavailable=missing_reason("corrupt_tta", "corruptions"),
    run=run,
    traits=traits,
    caveats=caveats,
)
