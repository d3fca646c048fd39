"""Balls, boxes and directions against their definitions and against slow, obvious references."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import kstest
from torch import Tensor

from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine.functional import norms, projections, sampling

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
DUAL = {"linf": 1, "l2": 2, "l1": float("inf"), "l0": float("inf")}
ROWS, D = 3, 6


def tensors(low: float, high: float) -> st.SearchStrategy[Tensor]:
    """(ROWS, 1, 2, 3), float32."""
    numbers = st.floats(low, high, width=32)
    return arrays(np.float32, (ROWS, 1, 2, 3), elements=numbers).map(torch.from_numpy)


radii = st.lists(st.floats(0, 4, width=32), min_size=ROWS, max_size=ROWS).map(torch.tensor)
norm_names = st.sampled_from(NORMS)
gradients = st.builds(lambda g, power: g * 10.0**power, tensors(-1, 1), st.integers(-30, 30))


def exact(delta: Tensor, norm: Norm) -> Tensor:
    """The norm in float64, by NumPy's own definition."""
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    flat = delta.double().flatten(1).numpy()
    return torch.from_numpy(np.stack([np.linalg.norm(row, order) for row in flat]))


def nearest_in_ball(delta: np.ndarray, eps: float, norm: Norm) -> np.ndarray:
    """The nearest point of the ball around 0, float64, the slow way."""
    if norm == "linf":
        return np.clip(delta, -eps, eps)
    if norm == "l2":
        return delta * min(1.0, eps / max(float(np.linalg.norm(delta)), 1e-300))
    if norm == "l0":
        kept = combinations(range(len(delta)), min(int(eps), len(delta)))
        points = [np.where(np.isin(np.arange(len(delta)), k), delta, 0) for k in kept]
        return min(points, key=lambda point: float(np.square(delta - point).sum()))
    low, high = 0.0, float(np.abs(delta).max())
    if np.abs(delta).sum() <= eps:
        return delta
    for _ in range(100):  # bisection on the threshold
        middle = (low + high) / 2
        over = np.maximum(np.abs(delta) - middle, 0).sum() > eps
        low, high = (middle, high) if over else (low, middle)
    return np.sign(delta) * np.maximum(np.abs(delta) - high, 0)


@given(tensors(-1, 2), tensors(0, 1), radii, norm_names)
def test_a_projected_image_is_in_the_ball_and_exactly_in_the_box(
    x: Tensor, x0: Tensor, eps: Tensor, norm: Norm
) -> None:
    projected = projections.project(x, x0, eps, norm)
    assert projected.shape == x.shape
    assert projected.min() >= 0
    assert projected.max() <= 1
    assert (exact(projected.double() - x0.double(), norm) <= eps * (1 + 1e-5) + 1e-6).all()


@given(tensors(0, 1), tensors(0, 1), norm_names)
def test_a_point_inside_is_returned_to_the_bit(x: Tensor, x0: Tensor, norm: Norm) -> None:
    eps = (exact(x - x0, norm) * (1 + 1e-5) + 1e-6).to(x)
    assert torch.equal(projections.project(x, x0, eps, norm), x)


@given(tensors(-1, 2), tensors(0, 1), radii, norm_names)
def test_projecting_twice_is_projecting_once(
    x: Tensor, x0: Tensor, eps: Tensor, norm: Norm
) -> None:
    once = projections.project(x, x0, eps, norm)
    assert torch.allclose(projections.project(once, x0, eps, norm), once, rtol=0, atol=1e-6)


@given(tensors(-1, 2), tensors(0, 1), norm_names)
def test_a_ball_of_radius_0_holds_the_clean_image_alone(x: Tensor, x0: Tensor, norm: Norm) -> None:
    assert torch.equal(projections.project(x, x0, torch.zeros(ROWS), norm), x0)


@given(tensors(0, 1), tensors(0, 1), radii, norm_names)
def test_no_point_of_the_ball_is_nearer_than_the_projection(
    x: Tensor, x0: Tensor, eps: Tensor, norm: Norm
) -> None:
    projected = projections.project(x, x0, eps, norm).double()
    for row in range(ROWS):
        delta = (x[row].double() - x0[row].double()).flatten().numpy()
        slow = nearest_in_ball(delta, float(eps[row]), norm)
        least = float(np.linalg.norm(delta - slow))
        result = float((x[row].double() - projected[row]).norm())
        assert result <= least + 1e-5


@given(tensors(-1, 2), tensors(0, 1), radii, st.sampled_from(["linf", "l2"]))
def test_the_projection_is_the_ball_first_and_then_the_box(
    x: Tensor, x0: Tensor, eps: Tensor, norm: Norm
) -> None:
    projected = projections.project(x, x0, eps, norm)
    for row in range(ROWS):
        delta = (x[row].double() - x0[row].double()).flatten().numpy()
        slow = x0[row].double().flatten().numpy() + nearest_in_ball(delta, float(eps[row]), norm)
        assert np.allclose(projected[row].flatten().numpy(), slow.clip(0, 1), rtol=0, atol=1e-5)


def nearest_in_both(x: np.ndarray, x0: np.ndarray, eps: float, norm: Norm) -> np.ndarray:
    """The nearest point of ball and box together, float64, the slow way."""
    if norm == "l0":
        kept = combinations(range(len(x)), min(int(eps), len(x)))
        points = [np.where(np.isin(np.arange(len(x)), k), x.clip(0, 1), x0) for k in kept]
        return min(points, key=lambda point: float(np.square(x - point).sum()))
    low, high = 0.0, 1.0
    for _ in range(100):  # bisection on t = 1 / (1 + multiplier)
        middle = (low + high) / 2
        point = (x0 + middle * (x - x0)).clip(0, 1)
        within = float(np.linalg.norm(point - x0)) <= eps
        low, high = (middle, high) if within else (low, middle)
    return (x0 + low * (x - x0)).clip(0, 1)


@given(tensors(-1, 2), tensors(0, 1), radii, norm_names)
def test_the_nearest_point_of_ball_and_box_is_in_both_and_none_nearer_is_known(
    x: Tensor, x0: Tensor, eps: Tensor, norm: Norm
) -> None:
    result = projections.project_jointly(x, x0, eps, norm)
    assert result.min() >= 0
    assert result.max() <= 1
    assert (exact(result.double() - x0.double(), norm) <= eps * (1 + 1e-5) + 1e-6).all()
    in_turn = projections.project(x, x0, eps, norm)
    near, far = (exact(x.double() - point.double(), "l2") for point in (result, in_turn))
    assert (near <= far + 1e-5).all()


@given(tensors(-1, 2), tensors(0, 1), radii, st.sampled_from(["l2", "l0"]))
def test_the_nearest_point_of_ball_and_box_is_the_references(
    x: Tensor, x0: Tensor, eps: Tensor, norm: Norm
) -> None:
    result = projections.project_jointly(x, x0, eps, norm).double()
    for row in range(ROWS):
        wanted, centre = (each[row].double().flatten().numpy() for each in (x, x0))
        slow = nearest_in_both(wanted, centre, float(eps[row]), norm)
        least = float(np.linalg.norm(wanted - slow))
        assert float(np.linalg.norm(wanted - result[row].flatten().numpy())) <= least + 1e-5


@given(tensors(0, 1), tensors(0, 1), norm_names)
def test_a_point_inside_is_the_nearest_to_the_bit(x: Tensor, x0: Tensor, norm: Norm) -> None:
    eps = (exact(x - x0, norm) * (1 + 1e-5) + 1e-6).to(x)
    assert torch.equal(projections.project_jointly(x, x0, eps, norm), x)
    assert torch.equal(projections.project_jointly(x, x0, torch.full_like(eps, torch.inf), norm), x)
    assert torch.equal(projections.project_jointly(x, x0, torch.zeros_like(eps), norm), x0)


def farthest(direction: np.ndarray, x0: np.ndarray, eps: float) -> float:
    """How far, at most, a point of the l1 ball around x0 and of the box lies from x0 along
    `direction`: the budget goes to the largest entries, each until its wall."""
    room, reached = np.where(direction > 0, 1 - x0, x0), 0.0
    for i in np.abs(direction).argsort()[::-1]:
        moved = min(float(room[i]), eps)
        reached, eps = reached + moved * abs(float(direction[i])), eps - moved
    return reached


@given(tensors(-1, 2), tensors(0, 1), radii)
def test_no_point_of_the_l1_ball_and_the_box_is_on_the_near_side_of_their_projection(
    x: Tensor, x0: Tensor, eps: Tensor
) -> None:
    """What tells the nearest point p of a convex set: (x - p)(z - p) <= 0 for all its z."""
    result = projections.project_l1_box(x, x0, eps)
    assert result.min() >= 0
    assert result.max() <= 1
    assert (exact(result.double() - x0.double(), "l1") <= eps * (1 + 1e-5) + 1e-6).all()
    for row in range(ROWS):
        wanted, point, centre = (t[row].double().flatten().numpy() for t in (x, result, x0))
        towards = wanted - point
        beyond = farthest(towards, centre, float(eps[row])) - towards @ (point - centre)
        assert beyond <= 1e-5


def test_the_projection_onto_l1_ball_and_box_is_the_one_that_a_hand_finds() -> None:
    x0, x = torch.tensor([[0.75, 0.5, 0.5]]), torch.tensor([[2.0, 1.0, 0.375]])
    result = projections.project_l1_box(x, x0, torch.tensor([0.5]))
    assert result.tolist() == [[1.0, 0.75, 0.5]]  # the wall leaves a half of the ball to the second
    result = projections.project_l1_box(x, x0, torch.tensor([0.8125]))
    assert torch.allclose(result, torch.tensor([[1.0, 0.96875, 0.40625]]))


def test_many_small_entries_leave_the_projection_onto_l1_ball_and_box_exact() -> None:
    like = torch.zeros(2, 3, 64, 64)
    x0, x = noise([0, 1]).uniform(like).clamp(0, 1), noise([2, 3]).normal(like)
    moved = exact(projections.project_l1_box(x, x0, torch.tensor([5.0, 500.0])) - x0, "l1")
    assert torch.allclose(moved, torch.tensor([5.0, 500.0]).double(), rtol=1e-6)


@given(tensors(-1, 1), norm_names)
def test_a_norm_is_the_textbooks(delta: Tensor, norm: Norm) -> None:
    assert torch.allclose(norms.norm_of(delta, norm).double(), exact(delta, norm), atol=1e-30)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_an_l2_norm_neither_underflows_nor_overflows(scale: float) -> None:
    delta = torch.tensor([[3.0, -4.0]]) * scale
    assert torch.allclose(norms.norm_of(delta, "l2"), torch.tensor(5 * scale))


@given(gradients, norm_names)
def test_the_steepest_direction_has_norm_1_and_attains_the_dual_norm(
    gradient: Tensor, norm: Norm
) -> None:
    direction = projections.steepest_direction(gradient, norm)
    rise = (direction.double() * gradient.double()).flatten(1).sum(1)
    dual = torch.linalg.vector_norm(gradient.double().flatten(1), ord=DUAL[norm], dim=1)
    moves = gradient.flatten(1).abs().amax(1) > 0
    assert torch.allclose(rise, dual, rtol=1e-5, atol=0)
    assert torch.allclose(exact(direction, norm), moves.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_gradient_has_no_direction_and_no_nan(norm: Norm) -> None:
    assert torch.equal(
        projections.steepest_direction(torch.zeros(2, 1, 2, 3), norm), torch.zeros(2, 1, 2, 3)
    )


def test_a_tiny_gradient_still_makes_a_whole_step() -> None:
    gradient = torch.tensor([[3e-30, -4e-30], [3e-42, -4e-42]])
    direction = projections.steepest_direction(gradient, "l2")
    assert torch.allclose(direction, torch.tensor([0.6, -0.8]).expand(2, 2), rtol=1e-2)


def noise(examples: list[int], seed: int = 0) -> Noise:
    ids = torch.tensor(examples)
    return Noise(seed, "test", ids, torch.zeros_like(ids))


@given(radii, norm_names, st.integers(0, 99))
def test_a_random_offset_is_in_the_ball_and_not_zero(eps: Tensor, norm: Norm, seed: int) -> None:
    offset = sampling.random_in_ball(torch.zeros(ROWS, 1, 2, 3), eps, norm, noise([0, 1, 2], seed))
    assert (exact(offset, norm) <= eps * (1 + 1e-5) + 1e-40).all()
    room = eps >= 1 if norm == "l0" else eps > 1e-30
    assert (offset.flatten(1).abs().amax(1) > 0)[room].all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_offset_belongs_to_the_example_and_not_to_its_batch(norm: Norm) -> None:
    like, eps = torch.zeros(3, 1, 2, 3), torch.tensor([1.0, 2.0, 3.0])
    together = sampling.random_in_ball(like, eps, norm, noise([7, 8, 9]))
    alone = sampling.random_in_ball(like[:1], eps[1:2], norm, noise([8]))
    turned = sampling.random_in_ball(like, eps.flip(0), norm, noise([9, 8, 7]))
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together.flip(0), turned)
    assert not torch.equal(together, sampling.random_in_ball(like, eps, norm, noise([7, 8, 9], 1)))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_random_offset_is_uniform_in_the_ball(norm: Norm) -> None:
    n, eps = 2000, 0.3
    like = torch.zeros(n, 1, 2, 3)
    offset = sampling.random_in_ball(like, torch.full((n,), eps), norm, noise(list(range(n))))
    share = (exact(offset, norm) / eps) ** D  # of the ball's volume that lies further inside
    assert kstest(share.numpy(), "uniform").pvalue > 0.001
    assert (offset.mean(0).abs() < 0.03 * eps).all()  # no side is preferred


def test_a_random_l0_offset_moves_uniformly_chosen_entries_by_uniform_amounts() -> None:
    n = 2000
    like = torch.zeros(n, 1, 2, 3)
    offset = sampling.random_in_ball(like, torch.full((n,), 2.0), "l0", noise(list(range(n))))
    moved = offset != 0
    assert (moved.flatten(1).sum(1) == 2).all()
    assert torch.allclose(moved.float().mean(0), torch.tensor(2 / D), atol=0.04)
    assert kstest(offset[moved].numpy(), "uniform", args=(-1, 2)).pvalue > 0.001


def test_a_family_of_images_has_no_distance() -> None:
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="'patch', a family of images, which has no distance"):
        norms.distance(x, x, "patch")
