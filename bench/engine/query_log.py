"""Record at which query of the model each row of an attack reached what a curve over queries needs.

A query is one image that the model is asked about. A run with many queries then contains the result
at every smaller number of queries: when an example fell, and how near its nearest adversarial
example was.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class QueryLog(NamedTuple):
    """What is recorded of each row; for an attack that is not logged, r = b = 0."""

    before: Tensor
    """Queries of the example's earlier restarts, (n,), float64."""
    fell: Tensor
    """Queries made when an adversarial example within each of r radii was first found, (n, r),
    float64; infinite while none is."""
    nearest: Tensor
    """Least distance found within each of b budgets of queries, (n, b); infinite if none was."""


def start_log(before: Tensor, fell: Tensor, nearest: Tensor) -> QueryLog:
    """Start the log of rows, or continue that of their earlier restarts.

    Args:
        before: Queries of the earlier restarts, (n,).
        fell: As stored by the earlier restarts, (n, r).
        nearest: Likewise, (n, b).

    Returns:
        The log.
    """
    return QueryLog(before.double(), fell, nearest)


def update_log(
    log: QueryLog,
    queries: Tensor,
    nearest: Tensor,
    active: Tensor | None,
    radii: Tensor,
    budgets: Tensor,
) -> QueryLog:
    """Record the distances after one more query.

    Args:
        log: The log before.
        queries: Queries of this restart, the new one included, (n,).
        nearest: Least distance found so far, (n,); infinite if none was.
        active: Whether the row made a query, (n,), bool; None if all did.
        radii: Radii, (r,).
        budgets: Numbers of queries, (b,).

    Returns:
        The log after it.
    """
    made = (log.before + queries)[:, None]
    near = (nearest[:, None] <= radii) & nearest[:, None].isfinite()
    # A budget beyond the last query has what the last query left.
    within = made <= budgets
    if active is not None:
        near, within = near & active[:, None], within & active[:, None]
    fell = torch.where(near & log.fell.isinf(), made, log.fell)
    return log._replace(
        fell=fell,
        nearest=torch.where(within, torch.minimum(log.nearest, nearest[:, None]), log.nearest),
    )
