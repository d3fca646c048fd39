"""Result of an attack: images, passes and steps of every example at every eps."""

from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.contracts.attack import AttackSpec


class StreamResult(NamedTuple):
    """Result of an attack: e epsilons in the spec's order, n examples in the caller's."""

    x_adv: Tensor
    """(e, n, *input)"""
    forwards: Tensor
    """Forward passes of each example at each eps, (e, n), float64; a pass for several eps is
    divided equally among them."""
    backwards: Tensor
    """Gradients with respect to the input, likewise."""
    first_success: Tensor
    """Steps made before the first successful iterate, (e, n), int64; -1 if there was none. The
    judge evaluates the last iterate."""
    losses: Tensor | None
    """Loss at each iterate of the last restart, (e, n, steps), NaN where there was none. None if no
    trace was requested."""
    rows: int
    """Rows a pass at the end: fewer than requested where memory ran out."""
    nonfinite: Tensor
    """Gradients of each example at each eps with entries that were not finite and so set to 0,
    (e, n), int64. A gradient for several eps counts at each."""
    queries: Tensor
    """Queries of the model until each example was first seen to fall, (e, n), float64; infinite if
    it was not, NaN where a smaller eps had made it fall. A search that runs once has the radii of
    the spec in place of e eps."""
    nearest: Tensor
    """Least distance that a search found within each of the spec's b budgets of queries, (n, b);
    infinite if it found none."""


def allocate_result(x: Tensor, spec: AttackSpec) -> StreamResult:
    """Allocate the result of an attack.

    Args:
        x: Clean images (n, c, h, w).
        spec: The attack with all eps.

    Returns:
        A result without passes and successes, whose images are not initialised.
    """
    e, n = len(spec.eps), len(x)
    counts = torch.zeros(e, n, dtype=torch.float64, device=x.device)
    never = torch.full((e, n), -1, dtype=torch.int64, device=x.device)
    traced_shape = (e, n, spec.params.steps)
    losses = x.new_full(traced_shape, torch.nan) if spec.trace else None
    images = x.new_empty(e, *x.shape)  # every item is written when it leaves
    nonfinite = torch.zeros_like(never)
    fell = torch.full((len(spec.radii) or e, n), torch.inf, dtype=torch.float64, device=x.device)
    nearest = x.new_full((n, len(spec.budgets)), torch.inf)
    return StreamResult(images, counts, counts.clone(), never, losses, 0, nonfinite, fell, nearest)
