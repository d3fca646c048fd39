"""Rotations about the image's centre followed by translations, with bilinear interpolation.

At level s in (0, 1] an image may be rotated by up to s * 30 degrees and shifted along each axis by
up to s * 3/28 of that side; what comes from outside the image is 0. Level 1 is the threat model of
the paper for MNIST and CIFAR-10 (3 of 28 pixels).
Source: Engstrom et al. 2019, section 4, https://arxiv.org/abs/1712.02779
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from bench.core.contracts.threat import ThreatFamily, VerifierInput

MAX_ANGLE = 30.0
"""Degrees at level 1, to either side."""
MAX_SHIFT = 3 / 28
"""Share of the side at level 1, to either side."""
TOLERANCE = 1e-6
"""Absolute, in pixels of [0, 1], and relative for parameters: rounding of another batch size."""


def transform(x: Tensor, parameters: Tensor) -> Tensor:
    """Rotate and shift images.

    Every operation is elementwise over the rows, so an image does not depend on its batch.

    Args:
        x: Images, (n, c, h, w).
        parameters: Degrees counter-clockwise, pixels to the right, pixels down, (n, 3), float64.

    Returns:
        Images, as `x`; to the bit x where all three are 0.
    """
    h, w = x.shape[2:]
    angle, right, down = (column[:, None, None] for column in parameters.to(x.device).unbind(1))
    rows = torch.arange(h, dtype=torch.float64, device=x.device)[:, None] - (h - 1) / 2
    columns = torch.arange(w, dtype=torch.float64, device=x.device)[None] - (w - 1) / 2
    # The inverse: from the place of a pixel in the result to its place in x. Rows go down.
    across, along = columns - right, rows - down
    cosine, sine = torch.cos(torch.deg2rad(angle)), torch.sin(torch.deg2rad(angle))
    place = torch.stack(
        [(cosine * across - sine * along) * 2 / w, (sine * across + cosine * along) * 2 / h], dim=3
    )
    moved = functional.grid_sample(x, place.to(x.dtype), align_corners=False)
    unmoved = (parameters == 0).all(1).to(x.device)
    # An interpolation of pixels in [0, 1] leaves the interval by rounding alone.
    return torch.where(unmoved[:, None, None, None], x, moved.clamp(0, 1))


def list_limits(level: float, height: int, width: int) -> tuple[float, float, float]:
    """Compute the largest angle and shifts of a level.

    Args:
        level: In [0, 1].
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        Degrees, pixels to a side, pixels up or down.
    """
    return level * MAX_ANGLE, level * MAX_SHIFT * width, level * MAX_SHIFT * height


def verify(given: VerifierInput) -> list[str]:
    """Transform the clean images by the declared parameters and compare.

    Args:
        given: Images, parameters and level.

    Returns:
        For each image the violation; "" if there is none.
    """
    limits = list_limits(given.level, *given.x.shape[2:])
    units = ("rotation by {:.6g} degrees", "shift by {:.6g} pixels", "shift down by {:.6g} pixels")
    expected = transform(given.x, given.parameters)
    distance = (given.x_adv - expected).abs().flatten(1).amax(1)
    violations = []
    for values, away in zip(given.parameters.tolist(), distance.tolist(), strict=True):
        beyond = [
            f"{unit.format(value)}, allowed {limit:.6g}"
            for unit, value, limit in zip(units, values, limits, strict=True)
            if not abs(value) <= limit * (1 + TOLERANCE)
        ]
        if not away <= TOLERANCE:
            text = describe(values) or "no transform"
            beyond.append(f"image differs by {away:.6g} from {text}, allowed {TOLERANCE:g}")
        violations.append("; ".join(beyond))
    return violations


def describe(parameters: list[float]) -> str:
    """Describe the parameters of one image.

    >>> describe([-15.0, 1.5, 0.0])
    'rotation -15, right 1.5, down 0'

    Args:
        parameters: Degrees, pixels to the right, pixels down.

    Returns:
        Text; "" for the clean image.
    """
    if not any(parameters):
        return ""
    angle, right, down = parameters
    return f"rotation {angle:.6g}, right {right:.6g}, down {down:.6g}"


def find_level_problem(level: float) -> str:
    """Check a level.

    Args:
        level: Above or below 0.

    Returns:
        What was expected; "" if the level is allowed.
    """
    if 0 < level <= 1 and math.isfinite(level):
        return ""
    return "expected a level in [0, 1] for rotation-translation (1: 30 degrees, 3/28 of the side)"


THREAT = ThreatFamily(
    summary="rotation about the centre, then translation",
    source="Engstrom et al. 2019",
    level="share of the largest rotation, 30 degrees, and shift, 3/28 of the side",
    example_levels=(0.5, 1.0),
    find_level_problem=find_level_problem,
    verify=verify,
    describe=describe,
)
