"""Shortest steps onto a hyperplane within the box, against linear and quadratic programmes."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from bench.core.contracts.types import Norm
from bench.engine.functional import hyperplane
from bench.engine.functional.hyperplane import shortest_step
from bench.engine.functional.norms import norm_of

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
D = 6


@pytest.fixture(params=["the host asks", "the host must not ask"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs as on a CPU, and with the fixed steps of a GPU and of a recording."""
    if request.param == "the host must not ask":
        monkeypatch.setattr(hyperplane, "get_proxy_mode", object)


def planes(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points of the box, a third of their pixels on its walls; slopes, a fifth of them 0; and rises
    up to a tenth beyond what the box allows."""
    g = torch.Generator().manual_seed(0)
    x = (3 * torch.rand(rows, 1, 2, 3, generator=g, dtype=torch.float64) - 1).clamp(0, 1)
    slope = torch.randn(rows, 1, 2, 3, generator=g, dtype=torch.float64)
    slope = slope * (torch.rand(rows, 1, 2, 3, generator=g) > 0.2)
    share = 2.2 * torch.rand(rows, generator=g, dtype=torch.float64) - 1.1
    return x, slope, share * highest(x, share.sign()[:, None, None, None] * slope)


def highest(x: Tensor, slope: Tensor) -> Tensor:
    """The largest rise within the box, (n,)."""
    return torch.where(slope > 0, slope * (1 - x), -slope * x).flatten(1).sum(1)


def rise_of(slope: Tensor, step: Tensor) -> Tensor:
    return (slope * step).flatten(1).sum(1)


def least(x: np.ndarray, slope: np.ndarray, rise: float, norm: Norm) -> float:
    """The least norm of a step from x onto the hyperplane, as SciPy finds it."""
    box = list(zip(-x, 1 - x, strict=True))
    if norm == "l2":
        plane = {"type": "eq", "fun": lambda d: slope @ d - rise, "jac": lambda d: slope}
        result = minimize(
            lambda d: d @ d, 0.5 - x, jac=lambda d: 2 * d, bounds=box, constraints=[plane],
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        assert result.success
        return float(np.sqrt(result.fun))
    bounds = D if norm == "l1" else 1  # a bound for each entry, or one for all: what is minimised
    above = np.eye(D) if norm == "l1" else np.ones((D, 1))
    both = np.block([[np.eye(D), -above], [-np.eye(D), -above]])  # |d| <= bound
    result = linprog(
        np.r_[np.zeros(D), np.ones(bounds)], A_ub=both, b_ub=np.zeros(2 * D),
        A_eq=np.r_[slope, np.zeros(bounds)][None], b_eq=[rise],
        bounds=[*box, *[(0, None)] * bounds],
    )  # fmt: skip
    assert result.success
    return float(result.fun)


@pytest.mark.parametrize("norm", NORMS)
def test_no_step_onto_the_hyperplane_is_shorter(norm: Norm) -> None:
    x, slope, rise = planes(80)
    able = rise.abs() < 0.999 * highest(x, rise.sign()[:, None, None, None] * slope)
    assert 40 < able.sum() < 80
    x, slope, rise = x[able], slope[able], rise[able]
    step = shortest_step(x, slope, rise, norm)
    assert torch.allclose(rise_of(slope, step), rise, rtol=0, atol=1e-12)
    assert ((x + step > -1e-12) & (x + step < 1 + 1e-12)).all()
    flat = zip(x.flatten(1).numpy(), slope.flatten(1).numpy(), rise.tolist(), strict=True)
    references = torch.tensor([least(*row, norm) for row in flat], dtype=torch.float64)
    assert torch.allclose(norm_of(step, norm), references, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_where_the_box_does_not_reach_the_step_goes_as_far_as_it_can(norm: Norm) -> None:
    x, slope, _ = planes(20)
    most = highest(x, slope)
    step = shortest_step(x, slope, 2 * most + 1, norm)
    assert torch.allclose(rise_of(slope, step), most)
    assert ((x + step >= 0) & (x + step <= 1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_pixel_without_a_slope_stays(norm: Norm) -> None:
    x, slope, rise = planes(80)
    step = shortest_step(x, slope, rise, norm)
    assert (slope == 0).any()
    assert (step[slope == 0] == 0).all()
    assert (shortest_step(x, torch.zeros_like(x), rise, norm) == 0).all()
    assert (shortest_step(x, slope, torch.zeros_like(rise), norm) == 0).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_a_hyperplane_is_the_same_when_it_is_multiplied(norm: Norm, scale: float) -> None:
    x, slope, rise = (part.float() for part in planes(40))
    step, scaled = (shortest_step(x, slope * by, rise * by, norm) for by in (1.0, scale))
    assert torch.allclose(scaled, step, rtol=0, atol=1e-5)
    assert (step != 0).any()


@pytest.mark.parametrize("norm", NORMS)
def test_slopes_of_all_sizes_in_one_row_are_no_hindrance_in_float32(norm: Norm) -> None:
    x = torch.full((1, 1, 1, 4), 0.25)
    slope = torch.tensor([1e-42, -1e-25, 1e-9, 4.0]).view_as(x)
    inside, beyond = (shortest_step(x, slope, torch.tensor([r]), norm) for r in (2.0, 9.0))
    assert torch.allclose(inside[..., 3], torch.tensor(0.5))
    assert (inside.abs() <= 0.5 + 1e-6).all()
    assert torch.allclose(beyond[..., 3], torch.tensor(0.75))


@pytest.mark.parametrize("norm", NORMS)
def test_a_row_is_stepped_as_if_alone(norm: Norm) -> None:
    x, slope, rise = planes(9)
    slope[4] = torch.nan
    together = shortest_step(x, slope, rise, norm)
    for row in (0, 3, 5, 8):
        at = slice(row, row + 1)
        assert torch.equal(together[at], shortest_step(x[at], slope[at], rise[at], norm))


@pytest.mark.parametrize("norm", NORMS)
def test_several_points_are_stepped_onto_a_hyperplane_as_each_alone(norm: Norm) -> None:
    x, slope, rise = (part.float() for part in planes(9))
    points, rises = torch.stack([x, 1 - x, x / 2]), torch.stack([rise, -rise, rise / 3])
    together = shortest_step(points, slope, rises, norm)
    alone = [shortest_step(*each, norm) for each in zip(points, [slope] * 3, rises, strict=True)]
    assert torch.equal(together, torch.stack(alone))


# ------------------------------------------------------------- float32 against float64 by bisection


SHARES = torch.tensor([1e-4, 0.01, 0.1, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-5], dtype=torch.float64)
"""Rises as shares of what the box allows."""
HARD = (
    "gaussian",
    "four decades",
    "thirty decades",
    "most pixels at walls",
    "least room, steepest",
)


def hard_planes(kind: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Points, slopes and rises in float32, a row for each of SHARES."""
    g = torch.Generator().manual_seed(1)
    size = (len(SHARES), *shape)
    room, sign = torch.rand(size, generator=g), torch.randn(size, generator=g).sign()
    if kind == "most at walls":
        room = room * (torch.rand(size, generator=g) < 0.1)
    spread = torch.rand(size, generator=g)
    steep = {
        "four decades": 10 ** (-4 * spread),
        "thirty decades": 10 ** (-30 * spread),
        "least room, steepest": (room + 1e-4) ** -2,
    }.get(kind, torch.randn(size, generator=g).abs())
    x, slope = torch.where(sign > 0, 1 - room, room), sign * steep
    return x, slope, (SHARES * highest(x.double(), slope.double())).float()


def least_norms(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> Tensor:
    """The least norm of a step in float64: the threshold of the optimality conditions, bisected.

    By them an entry moves by min(t, room) in linf, min(t |slope|, room) in l2, and in l1 by its
    room where |slope| >= 1/t; the last entry there in part, which is a share of the gap.
    """
    slope, room = slope.double(), torch.where(slope > 0, 1 - x.double(), x.double())
    steep, room = slope.abs().flatten(1), room.flatten(1)
    steep = steep / steep.amax(1, keepdim=True)
    wanted = (rise.double() / slope.abs().flatten(1).amax(1))[:, None]

    def moved(t: Tensor) -> Tensor:
        if norm == "l1":
            return torch.where(steep >= 1 / t, room, 0.0)
        return torch.minimum(t if norm == "linf" else t * steep, room)

    low, high = torch.full_like(wanted, 1e-40), torch.full_like(wanted, 1e40)
    for _ in range(70):
        middle = (low * high).sqrt()
        short = (steep * moved(middle)).sum(1, keepdim=True) < wanted
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    if norm != "l1":
        return norm_of(moved(high), norm)
    below = moved(low)
    return below.sum(1) + ((wanted - (steep * below).sum(1, keepdim=True)) * high)[:, 0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", HARD)
def test_steps_are_optimal_to_the_precision_of_float32(kind: str, norm: Norm) -> None:
    """They reach the hyperplane within 1e-6 of the rise and are no longer than the shortest onto
    one that lies so much further, also where nearly all pixels must go to their walls."""
    x, slope, rise = hard_planes(kind, (1, 28, 28))
    check_optimal(x, slope, rise, norm)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_in_large_images_are_optimal_to_the_precision_of_float32(norm: Norm) -> None:
    x, slope, rise = (part[[1, 5, 7]] for part in hard_planes("thirty decades", (3, 224, 224)))
    check_optimal(x, slope, rise, norm)


def check_optimal(x: Tensor, slope: Tensor, rise: Tensor, norm: Norm) -> None:
    step = shortest_step(x, slope, rise, norm)
    moved = x.double() + step.double()
    assert ((moved >= -1e-7) & (moved <= 1 + 1e-7)).all()
    assert (step * slope >= 0).all()  # no entry moves the other way
    gap = rise_of(slope.double(), step.double()) / rise.double() - 1
    assert gap.abs().max() < 1e-6
    length = norm_of(step.double(), norm)
    assert (length <= least_norms(x, slope, rise * (1 + 2e-6), norm) * (1 + 1e-6)).all()


def test_a_norm_without_such_a_projection_is_refused() -> None:
    with pytest.raises(ValueError, match="l0"):
        shortest_step(*planes(1), "l0")
