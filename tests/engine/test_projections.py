"""Projections where quantities tie exactly, against slow references in float64.

Entries are multiples of 1/8 and radii are norms that such entries attain, so that radius and
distance, or several corners of the piecewise functions behind a projection, are often equal to the
bit. Random reals never are.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.core.contracts.types import Norm
from bench.engine.functional import projections
from bench.engine.functional.norms import norm_of

ROWS, D = 4000, 5
STEPS = 8
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
JOINT: tuple[Norm, ...] = ("l2", "l1", "l0")
"""Norms in which the nearest point of ball and box is not that of the ball, then of the box."""


def draw_grid(low: int, high: int, seed: int) -> Tensor:
    """Draw images whose entries are multiples of 1/8, (ROWS, 1, 1, D)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(STEPS * low, STEPS * high + 1, (ROWS, 1, 1, D), generator=generator)
    return drawn / STEPS


def draw_radii(x: Tensor, x0: Tensor, norm: Norm, seed: int) -> Tensor:
    """Draw norms of parts of the moves from x0 to x within the box, (ROWS,)."""
    generator = torch.Generator().manual_seed(seed)
    included = torch.rand(x.shape, generator=generator) < 0.7
    return norm_of(torch.where(included, x.clamp(0, 1) - x0, 0.0), norm)


def nearest_in_ball(delta: np.ndarray, eps: float, norm: Norm) -> np.ndarray:
    """Compute the nearest point of the ball around 0 to delta (d,)."""
    if norm == "linf":
        return delta.clip(-eps, eps)
    length = np.linalg.norm(delta)
    return delta if length <= eps else delta * (eps / length)


def nearest_in_both(x: np.ndarray, x0: np.ndarray, eps: float, norm: Norm) -> np.ndarray:
    """Compute the nearest point of ball and box to x (d,), slowly."""
    if norm == "l0":
        chosen = itertools.combinations(range(D), min(int(eps), D))
        points = [np.where(np.isin(np.arange(D), each), x.clip(0, 1), x0) for each in chosen]
        return min(points, key=lambda point: float(np.square(x - point).sum()))
    delta = x - x0
    room = np.where(delta > 0, 1 - x0, x0)

    def moved(level: float) -> np.ndarray:
        length = abs(delta)
        shorter = (1 - level) * length if norm == "l2" else (length - level).clip(0)
        return np.minimum(shorter, room)

    low, high = 0.0, 1.0 if norm == "l2" else float(abs(delta).max())
    for _ in range(80):  # bisection on the level, which shortens every move
        middle = (low + high) / 2
        within = np.linalg.norm(moved(middle), 2 if norm == "l2" else 1) <= eps * (1 + 1e-12)
        low, high = (low, middle) if within else (middle, high)
    return x0 + np.sign(delta) * moved(high)


def rows_of(*parts: Tensor) -> zip:
    """Split tensors into rows (d,) in float64."""
    return zip(*(part.double().flatten(1).numpy() for part in parts), strict=True)


@pytest.mark.parametrize("norm", JOINT)
def test_ties_do_not_move_the_nearest_point_of_ball_and_box(norm: Norm) -> None:
    x, x0 = draw_grid(-2, 3, seed=0), draw_grid(0, 1, seed=1)
    eps = draw_radii(x, x0, norm, seed=2)
    found = projections.project_jointly(x, x0, eps, norm)
    wrong = []
    for row, (wanted, centre, point) in enumerate(rows_of(x, x0, found)):
        slow = nearest_in_both(wanted, centre, float(eps[row]), norm)
        distances = [float(np.linalg.norm(wanted - each)) for each in (point, slow)]
        # Several points may be nearest in l0: distances are compared, not points.
        if abs(distances[0] - distances[1]) > 1e-5:
            wrong.append(row)
    assert wrong == []


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_ties_do_not_move_the_nearest_point_of_the_ball(norm: Norm) -> None:
    x, x0 = draw_grid(-2, 3, seed=3), draw_grid(0, 1, seed=4)
    eps = draw_radii(x, x0, norm, seed=5)
    found = projections.project(x, x0, eps, norm)
    for row, (wanted, centre, point) in enumerate(rows_of(x, x0, found)):
        slow = (centre + nearest_in_ball(wanted - centre, float(eps[row]), norm)).clip(0, 1)
        assert np.allclose(point, slow, rtol=0, atol=1e-6)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_point_of_the_box_at_exactly_the_radius_stays_to_the_bit(norm: Norm, joint: bool) -> None:
    x, x0 = draw_grid(0, 1, seed=6), draw_grid(0, 1, seed=7)
    project = projections.project_jointly if joint else projections.project
    eps = norm_of(x - x0, norm)
    exact = eps.double() >= norm_of(x.double() - x0.double(), norm)  # not rounded down
    assert exact.sum() > ROWS / 4
    assert torch.equal(project(x, x0, eps, norm)[exact], x[exact])


@pytest.mark.parametrize("norm", NORMS)
def test_a_corner_of_the_box_at_exactly_the_radius_is_reached_from_outside_the_box(
    norm: Norm,
) -> None:
    """All moved entries end at their walls: no part of the move has its length."""
    x0, x = draw_grid(0, 1, seed=8).round(), draw_grid(0, 1, seed=9).round()
    eps = norm_of(x - x0, norm)
    exact = eps.double() >= norm_of(x.double() - x0.double(), norm)  # not rounded down
    assert exact.sum() > ROWS / 4
    beyond = x0 + 3 * (x - x0)
    assert torch.equal(projections.project_jointly(beyond, x0, eps, norm)[exact], x[exact])


def test_entries_at_their_walls_leave_nothing_of_an_l1_ball_to_the_others() -> None:
    """The sum of the moves is level between two thresholds, and equals the radius there."""
    few, many = 10, 774
    x0 = torch.zeros(19, few + many)
    x = torch.cat([torch.full((19, few), 3.0), torch.full((19, many), 0.1)], 1)
    x[:, few:] *= torch.arange(1, 20)[:, None] / 2
    expected = torch.cat([torch.ones(19, few), torch.zeros(19, many)], 1)
    found = projections.project_l1_box(x, x0, torch.full((19,), float(few)))
    assert torch.allclose(found, expected, rtol=0, atol=1e-6)
