"""Norms, balls and boxes: all the geometry of the threat models, pure and out of place.

Images are (n, *input) in the box [0, 1]; one number per row, such as eps or a distance, is (n,).
"""

import torch
from torch import Tensor

from bench.contracts import Norm
from bench.rng import Noise


def per_row(value: Tensor, like: Tensor) -> Tensor:
    """`value` (n,) shaped (n, 1, ..., 1), so that it broadcasts over the rows of `like`."""
    return value.view(-1, *[1] * (like.dim() - 1))


def norm_of(delta: Tensor, norm: Norm) -> Tensor:
    """The norm of each row of `delta` (n, *input), shape (n,); l0 counts entries that are not 0."""
    flat = delta.flatten(1)
    if norm == "linf":
        return flat.abs().amax(1)
    if norm == "l2":
        # Scaled first, or the squares of a saturated net's gradients underflow to 0.
        scale = flat.abs().amax(1)
        scaled = flat / scale.clamp_min(_tiny(flat))[:, None]
        return scaled.square().sum(1).sqrt() * scale
    if norm == "l1":
        return flat.abs().sum(1)
    return (flat != 0).sum(1).to(delta.dtype)


def distance(x: Tensor, x0: Tensor, norm: Norm) -> Tensor:
    """How far each row of `x` is from `x0`, both (n, *input); shape (n,)."""
    return norm_of(x - x0, norm)


def project(x: Tensor, x0: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """`x` brought into the ball of radius `eps` (n,) around `x0`, then into the box [0, 1].

    Shapes: x, x0 (n, *input) with x0 in the box; result as x.
    The nearest point for linf, where ball and box commute. For l2, l1 and l0 the nearest point of
    the ball, then of the box: the second step shrinks every |x - x0| and so keeps the first.
    Source: Duchi et al. 2008, figure 1 (l1), https://doi.org/10.1145/1390156.1390191
    """
    radius = per_row(eps, x)
    if norm == "linf":
        return torch.clamp(x, x0 - radius, x0 + radius).clamp_(0, 1)
    delta = x - x0
    if norm == "l2":
        length = per_row(norm_of(delta, "l2"), x)
        nearest = delta * (radius / length.clamp_min(_tiny(x)))
        nearest = torch.where(length <= radius, delta, nearest)
    elif norm == "l1":
        nearest = _soft_threshold(delta.flatten(1), eps).view_as(delta)
    else:
        nearest = _largest_entries(delta.flatten(1), eps).view_as(delta)
    return torch.where(nearest == delta, x, x0 + nearest).clamp(0, 1)


def steepest(gradient: Tensor, norm: Norm) -> Tensor:
    """The direction of unit norm along which a linear function with `gradient` rises most.

    Shapes: gradient (n, *input), result the same; a row of zeros stays zero.
    linf: the signs. l2: the gradient over its length. l1 and l0: the signed unit vector of its
    largest entry (for l0 the box limits the step, not the norm).
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        scale = per_row(norm_of(gradient, "linf"), gradient).clamp_min(_tiny(gradient))
        scaled = gradient / scale
        return scaled / per_row(norm_of(scaled, "l2"), gradient).clamp_min(_tiny(gradient))
    flat = gradient.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    unit = torch.zeros_like(flat).scatter_(1, largest, flat.gather(1, largest).sign())
    return unit.view_as(gradient)


def random_in_ball(like: Tensor, eps: Tensor, norm: Norm, noise: Noise) -> Tensor:
    """A random offset within the ball of radius `eps` (n,) for each row; shape of `like`.

    linf and l2: uniform in the ball. l1: uniform in the ball (normalised exponential gaps).
    l0: floor(eps) uniformly chosen entries, each moved by U(-1, 1).
    Source: l2 Voelker et al. 2017 (direction of a Gaussian, radius U^(1/d)); l1 Calafiore,
    Dabbene and Tempo 1998, https://doi.org/10.1109/81.735436
    """
    radius = per_row(eps, like)
    if norm == "linf":
        return radius * noise.uniform(like)
    d = like[0].numel()
    share = per_row(noise.unit(like) ** (1 / d), like)
    if norm == "l2":
        return radius * share * steepest(noise.normal(like), "l2")
    if norm == "l1":
        draw = noise.uniform(like)
        gaps = -torch.log(1 - draw.abs().clamp_max(1 - 1e-7))
        direction = draw.sign() * gaps / per_row(gaps.flatten(1).sum(1), like)
        return radius * share * direction
    chosen = _largest_entries(noise.uniform(like, draw=1).flatten(1), eps).view_as(like) != 0
    return torch.where(chosen, noise.uniform(like), torch.zeros_like(like))


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def _soft_threshold(delta: Tensor, eps: Tensor) -> Tensor:
    """Euclidean projection of each row of `delta` (n, d) onto the l1 ball of radius eps (n,)."""
    magnitude = delta.abs()
    sorted_, _ = magnitude.sort(dim=1, descending=True)
    excess = sorted_.cumsum(1) - eps[:, None]
    counts = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    kept = (sorted_ * counts > excess).sum(1, keepdim=True).clamp_min(1)  # rho in the paper
    threshold = (excess.gather(1, kept - 1) / kept).clamp_min(0)
    shrunk = delta.sign() * (magnitude - threshold).clamp_min(0)
    return torch.where(magnitude.sum(1, keepdim=True) <= eps[:, None], delta, shrunk)


def _largest_entries(delta: Tensor, eps: Tensor) -> Tensor:
    """Each row of `delta` (n, d) with all but its floor(eps) largest entries set to 0."""
    rank = delta.abs().argsort(dim=1, descending=True).argsort(dim=1)
    return torch.where(rank < eps[:, None].floor(), delta, torch.zeros_like(delta))
