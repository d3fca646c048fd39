"""Compare a model's gradients with finite differences of its own output.

A gradient attack follows what autograd returns, which a custom backward, a detached tensor or a
straight-through estimator may change arbitrarily. The slope of the output itself cannot be
forged: central differences along the gradient and along a random direction, in a float64 copy of
the model, agree with a true gradient to many digits. Where no such copy can be made, longer
differences in float32 along the gradient alone tell a gradient from noise and from its opposite.
Source: Athalye et al. 2018, section 3.1, https://arxiv.org/abs/1802.00420
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.rng import Noise
from bench.engine.functional import gradients, norms
from bench.engine.functional.losses import label_and_target
from bench.engine.rejection import spare_rejected

MAX_IMAGES = 4
"""Images compared; each costs a gradient and a few passes in float64."""
CONTRACTION, NOISE_SCALE = 0.9, 0.02
"""Images are contracted from the faces of the box and noise is added: on a background of zeros many
ReLUs and max-pools are exactly at a kink, where there is no slope to compare with."""
STEPS = (1e-6, 1e-3)
"""Lengths of a difference in float64, in L2, of which one must agree: the first crosses no kink,
the second changes the output of a model that rounds its input to float32."""
SLOPE_TOLERANCE = 0.1
"""Relative error from which a slope differs from the gradient; in float32 gradients err by 1e-3."""
FLOOR = 1e-5
"""Slopes below this share of the largest logit, per unit of L2, are rounding."""
SHARES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Changes of the objective, as shares of the logits' spread, that the steps in float32 aim at."""
RATIO_RANGE = (0.5, 2.0)
"""Ratios of slope to gradient that count as agreement in float32."""
TINY = 1e-30


def find_wrong_gradients(model: nn.Module, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
    """Find the images whose gradient is not the slope of the model's output.

    The output is the difference of two logits, the likeliest other class's and the label's, which
    neither saturates nor loses digits at any scale of the logits.

    Args:
        model: In evaluation mode, its parameters frozen; must be deterministic.
        x: Images in [0, 1], (n, c, h, w).
        y: Their labels, (n,).
        ids: Example ids that key the random direction, (n,).

    Returns:
        Whether gradient and slope differ, (n,), bool.
    """
    model = spare_rejected(model, y)
    noise = Noise(0, "finite differences", ids, torch.zeros_like(ids))
    at = 0.5 + CONTRACTION * (x - 0.5) + NOISE_SCALE * noise.uniform(x)
    with torch.no_grad():
        other = model(at).scatter(1, y[:, None], -torch.inf).argmax(1)
    look = gradients.gradient_pass(model, label_and_target, at, y, other)
    gradient = torch.nan_to_num(look.gradient, 0.0, 0.0, 0.0)
    exact = _copy_to_double(model, at, look.logits)
    if exact is not None:
        point = _Point(at.double(), y, other, gradient.double(), look.logits.double())
        return _differs_in_double(exact, point, noise.normal(x, draw=1).double())
    return _differs_in_single(model, _Point(at, y, other, gradient, look.logits.float()))


class _Point(NamedTuple):
    """Images and gradients where slopes are measured; every field is per row."""

    x: Tensor
    y: Tensor
    other: Tensor
    gradient: Tensor
    logits: Tensor

    def slope(self, model: nn.Module, offset: Tensor) -> Tensor:
        """Compute half the difference of the objective on either side of x, (n,)."""
        with torch.no_grad():
            ahead, behind = (
                label_and_target(model(self.x + sign * offset), self.y, self.other)
                for sign in (1, -1)
            )
        return (ahead - behind) / 2


def _copy_to_double(model: nn.Module, x: Tensor, logits: Tensor) -> nn.Module | None:
    """Copy the model to float64; None if that is impossible, or the copy answers otherwise."""
    try:
        exact = copy.deepcopy(model).double()
        with torch.no_grad():
            answers = exact(x.double())
    except Exception:  # of the user's module, which may refuse a copy or float64
        return None
    if not isinstance(answers, Tensor) or answers.dtype != torch.float64:
        return None
    near = (answers - logits).abs().max() <= 1e-3 * logits.abs().max().clamp_min(TINY)
    return exact if bool(near) else None


def _differs_in_double(exact: nn.Module, point: _Point, direction: Tensor) -> Tensor:
    gradient = point.gradient
    size = gradient.flatten(1).norm(dim=1)
    floor = FLOOR * point.logits.abs().amax(1).clamp_min(TINY)
    floor = floor + 0.1 * SLOPE_TOLERANCE * size / math.sqrt(gradient[0].numel())
    differs = torch.zeros_like(point.y, dtype=torch.bool)
    for along in (gradient, direction):
        unit = along / norms.per_row(along.flatten(1).norm(dim=1).clamp_min(TINY), along)
        expected = (unit * gradient).flatten(1).sum(1)
        apart = torch.ones_like(differs)
        for step in STEPS:
            slope = point.slope(exact, step * unit) / step
            allowed = SLOPE_TOLERANCE * torch.maximum(expected.abs(), slope.abs()) + floor
            apart &= (slope - expected).abs() > allowed
            if not apart.any():
                break
        differs |= apart
    return differs


def _differs_in_single(model: nn.Module, point: _Point) -> Tensor:
    """Check that no step length finds a slope like the gradient's, where one is measurable."""
    gradient = point.gradient
    size = gradient.flatten(1).norm(dim=1).clamp_min(TINY)
    unit = gradient / norms.per_row(size, gradient)
    spread = point.logits.amax(1) - point.logits.amin(1)
    farthest = 0.1 * math.sqrt(gradient[0].numel())
    alike = torch.zeros_like(point.y, dtype=torch.bool)
    measured = torch.zeros_like(alike)
    for share in SHARES:
        length = share * spread / size
        within = (size > TINY) & (length <= farthest)
        length = torch.where(within, length, torch.zeros_like(length))
        slope = point.slope(model, norms.per_row(length, unit) * unit)
        ratio = slope / length.clamp_min(TINY) / size
        measured |= within
        alike |= within & (ratio >= RATIO_RANGE[0]) & (ratio <= RATIO_RANGE[1])
    return measured & ~alike
