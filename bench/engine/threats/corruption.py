"""Common corruptions: fifteen kinds of noise, blur, weather and digital damage at five severities.

The library corrupt-tta computes them (extra `corruptions`), with two exceptions. Its impulse noise
leaves its generator unseeded, so that noise is drawn here by the function of scikit-image that the
library calls. An image of one channel is given as three equal channels, of which the first is
taken: so its noise has the variance of one channel, and not that of a mean of three.

As in the paper, images are of 8 bits before and after: x is rounded to 8 bits and the result is cut
off to 8 bits. What is random is drawn from the global generators of NumPy, seeded by the suite's
seed, attack and example and restored afterwards; so an image depends neither on its batch nor on
what was corrupted before it.
Source: Hendrycks and Dietterich 2019, section 3, https://arxiv.org/abs/1903.12261
Differs from the paper: motion blur, snow and frost as corrupt-tta draws them, without ImageMagick;
JPEG compression of the stored images, which ImageNet-C adds, is left out.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bench.core import rng
from bench.core.contracts.threat import ThreatFamily, VerifierInput
from bench.core.optional import import_library, silence
from bench.core.rng import Noise

Corruption = Literal[
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur",
    "zoom_blur", "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate",
    "jpeg_compression",
]  # fmt: skip
CORRUPTIONS: tuple[Corruption, ...] = get_args(Corruption)
"""The fifteen of the paper, in its order."""
SEVERITIES = (1, 2, 3, 4, 5)
IMPULSE_SHARES = (0.03, 0.06, 0.09, 0.17, 0.27)
"""Share of the pixel values that impulse noise replaces, by severity, as in corrupt-tta."""


class Setting(NamedTuple):
    """One corruption at one severity."""

    corruption: Corruption
    severity: int


def corrupt(x: Tensor, setting: Setting, noise: Noise) -> Tensor:
    """Corrupt images.

    Args:
        x: Images, (n, c, h, w), in [0, 1], of one or three channels.
        setting: Corruption and severity.
        noise: Random numbers keyed by example.

    Returns:
        Images, as `x`. An image that is not finite is returned as it is.
    """
    keys = noise.keys(x).tolist()
    finite = x.flatten(1).isfinite().all(1).tolist()
    rows = [
        _corrupt_one(image, setting, key) if known else image
        for image, key, known in zip(x.cpu(), keys, finite, strict=True)
    ]
    return torch.stack(rows).to(x)


def _corrupt_one(image: Tensor, setting: Setting, key: int) -> Tensor:
    """Corrupt one image (c, h, w) on the CPU."""
    channels = len(image)
    pixels = np.rint(image.expand(3, -1, -1).permute(1, 2, 0).double().numpy() * 255)
    with rng.seed_global(*setting, key), silence("corrupt_tta", "skimage", "cv2"):
        damaged = _call_library(np.ascontiguousarray(pixels.astype(np.uint8)), setting, key)
    stored = np.clip(damaged, 0, 255).astype(np.uint8)  # cut off, as the paper's files are
    return torch.from_numpy(stored).permute(2, 0, 1)[:channels].to(image.dtype) / 255


def _call_library(pixels: npt.NDArray[np.uint8], setting: Setting, key: int) -> npt.NDArray[Any]:
    """Corrupt pixels (h, w, 3) in 0..255 to floats in 0..255."""
    if setting.corruption == "impulse_noise":
        share = IMPULSE_SHARES[setting.severity - 1]
        util, seed = import_library("skimage.util"), rng.fold(*setting, key)
        noisy: npt.NDArray[Any] = util.random_noise(
            pixels / 255, mode="s&p", amount=share, rng=seed
        )
        return noisy * 255
    library = import_library("corrupt_tta")
    damaged: npt.NDArray[Any] = library.corrupt(
        pixels, severity=setting.severity, corruption_name=setting.corruption
    )
    return damaged


def verify(given: VerifierInput) -> list[str]:
    """Corrupt the clean images again and compare them bit by bit.

    Args:
        given: Images, level, params and random numbers.

    Returns:
        For each image the violation; "" if there is none.
    """
    setting = Setting(given.params.corruption, int(given.level))
    expected = corrupt(given.x, setting, given.noise)
    changed = (given.x_adv != expected).flatten(1).sum(1).tolist()
    return [
        f"{count} pixel values differ from {describe_setting(setting)} computed again, allowed 0"
        if count
        else ""
        for count in changed
    ]


def describe_setting(setting: Setting) -> str:
    """Describe a setting.

    >>> describe_setting(Setting("fog", 3))
    'fog, severity 3'

    Args:
        setting: Corruption and severity.

    Returns:
        Text.
    """
    return f"{setting.corruption}, severity {setting.severity}"


def describe(parameters: list[float]) -> str:
    """Describe the parameters of one image, which are its corruption and severity.

    Args:
        parameters: Index in CORRUPTIONS, and severity.

    Returns:
        Text.
    """
    index, severity = (int(value) for value in parameters)
    return describe_setting(Setting(CORRUPTIONS[index], severity))


def find_level_problem(level: float) -> str:
    """Check a severity.

    Args:
        level: Above or below 0.

    Returns:
        What was expected; "" if the severity is allowed.
    """
    if math.isfinite(level) and level in SEVERITIES:
        return ""
    return "expected a severity of 1, 2, 3, 4 or 5 for corruption (0: the clean images)"


THREAT = ThreatFamily(
    summary="a common corruption, which no model influences",
    source="Hendrycks and Dietterich 2019",
    level="severity, 1 to 5",
    example_levels=(1, 5),
    find_level_problem=find_level_problem,
    verify=verify,
    describe=describe,
    transforms_all=True,
)
