"""Square Attack: proposals held to loops over slices, runs to what a random search promises."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.attacks import square, square_windows
from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm
from bench.core.rng import Noise, hash_uniform
from bench.engine.functional.losses import make_objective
from bench.engine.functional.norms import distance
from bench.engine.functional.projections import NoBox, make_box, project_l1_box

Attacked = Callable[..., Any]
EPS: dict[Norm, float] = {"linf": 0.2, "l2": 2.5, "l1": 40.0}
SHAPES = [(1, 28, 28), (3, 12, 17), (1, 20, 9), (3, 3, 5), (1, 2, 2), (2, 1, 1)]
HELD = [shape for shape in SHAPES if min(shape[1:]) >= 3]
"""Shapes that hold an eta; on a single pixel it may cancel what was there."""


def items(shape: tuple[int, ...], eps: float, k: Tensor, spread: float = 0.5) -> AttackBatch:
    """Images of grey +-spread at proposal k (n,), float64."""
    n = len(k)
    generator = torch.Generator().manual_seed(1)
    x = 0.5 + spread * (2 * torch.rand(n, *shape, generator=generator, dtype=torch.float64) - 1)
    zero = torch.zeros_like(k)
    radius = torch.full((n,), eps, dtype=torch.float64)
    return AttackBatch(x, zero, zero, radius, k, zero - 1, zero, radius + torch.inf)


def keys(n: int) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (n,), generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------------- windows


def test_the_side_shrinks_as_published() -> None:
    assert square_windows.window_sides(0.8, 28, 28, "linf") == [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    assert square_windows.window_sides(0.8, 28, 28, "l2") == [25, 19, 13, 9, 7, 5, 3, 3, 3, 3]
    assert square_windows.window_sides(0.05, 32, 32, "linf")[:4] == [7, 5, 4, 3]


def test_the_area_is_halved_after_the_published_numbers_of_proposals_and_not_rescaled() -> None:
    halvings = square_windows.make_tables(
        0.8, 28, 28, "linf", torch.float32, torch.device("cpu")
    ).halvings
    for number, after in enumerate(square_windows.HALVED_AFTER):
        assert halvings[after : after + 2].tolist() == [number, number + 1]
    assert len(halvings) == square_windows.HALVED_AFTER[-1] + 2


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("shape", SHAPES)
def test_no_window_is_larger_than_the_image(norm: Norm, shape: tuple[int, ...]) -> None:
    for p in (1.0, 0.8, 0.001):
        sides = square_windows.window_sides(p, *shape[1:], norm)
        assert all(1 <= side <= min(shape[1:]) for side in sides)
        assert norm == "linf" or all(side % 2 for side in sides)


def test_every_place_is_as_likely_as_any_other_those_at_the_edges_too() -> None:
    n, side, height, width = 60_000, 3, 8, 5
    known = square_windows.make_tables(
        0.8, height, width, "linf", torch.float32, torch.device("cpu")
    )
    u = hash_uniform(keys(n), torch.zeros(n, dtype=torch.int64), 2)[:, None]
    at = square_windows.locate_windows(u, torch.full((n,), side), known)
    first = (at == 0).long().argmax(3)  # (n, 1, 2)
    assert torch.equal(at, torch.arange(height) - first[..., None])
    place = first[:, 0, 0] * (width - side + 1) + first[:, 0, 1]
    counts = torch.bincount(place)
    assert len(counts) == 6 * 3
    assert (counts - n / 18).abs().max() < 5 * math.sqrt(n / 18)


def slow_hill(height: int, width: int, power: int) -> Tensor:
    """Rectangles that grow by one pixel on each side, laid on top of each other."""
    result = torch.zeros(height, width, dtype=torch.float64)
    for m in range(max(height, width) // 2 + 1):
        top, left = height // 2 - m, width // 2 - m
        rows = slice(max(top, 0), top + 2 * m + 1)
        columns = slice(max(left, 0), left + 2 * m + 1)
        result[rows, columns] += 1 / (m + 1) ** power
    return result


@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 13, 25])
@pytest.mark.parametrize(("norm", "power"), [("l2", 2), ("l1", 4)])
def test_eta_is_a_hill_above_a_valley_of_the_same_mass(side: int, norm: Norm, power: int) -> None:
    upper, order = side // 2, square_windows.POWER[norm]
    result = square_windows.make_eta(side, norm)
    halves = slow_hill(upper, side, power), -slow_hill(side - upper, side, power)
    share = (1 if upper == 0 else 2) ** (-1 / order)
    for part, slow in zip(result.split([upper, side - upper]), halves, strict=True):
        assert part.numel() == 0 or torch.allclose(part, slow * share / slow.norm(order))


# -------------------------------------------------------------------------------------- proposals


def window(u: Tensor, side: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """The window that two numbers draw."""
    tops = [int(v * (length + 1 - side)) for v, length in zip(u.tolist(), shape[1:], strict=True)]
    return slice(tops[0], tops[0] + side), slice(tops[1], tops[1] + side)


def by_hand_linf(best: Tensor, x: Tensor, eps: float, side: int, u: Tensor) -> Tensor:
    result, at = best.clone(), window(u[:2], side, x.shape)
    for channel, drawn in enumerate(u[2:]):
        to = x[channel] - eps if drawn < 0.5 else x[channel] + eps
        result[channel][at] = to.clamp(0, 1)[at]
    return result


def by_hand_l2(best: Tensor, x: Tensor, eps: float, side: int, u: Tensor, p: int = 2) -> Tensor:
    """The paper's steps on one image; with p = 1 as AutoAttack's code has them for l1."""
    at, second = window(u[:2], side, x.shape), window(u[2:4], side, x.shape)
    shape = square_windows.make_eta(side, "l2" if p == 2 else "l1")
    shape = shape.T if u[4] < 0.5 else shape
    delta, result = best - x, best - x
    unused = max(eps**p - float(delta.abs().pow(p).sum()), 0.0)
    result[:, second[0], second[1]] = 0
    for channel, drawn in enumerate(u[5:]):
        both = torch.zeros_like(x[0])
        both[at], both[second] = delta[channel][at], delta[channel][second]
        was = delta[channel][at]
        mixed = shape * (-1 if drawn < 0.5 else 1) + was / (was.norm(p) + square.TINY)
        size = (both.abs().pow(p).sum() + unused / len(x)) ** (1 / p) * (1 if p == 2 else len(x))
        result[channel][at] = mixed / (mixed.norm(p) + square.TINY) * size
    return x + result


def by_hand(norm: Norm, best: Tensor, x: Tensor, eps: float, side: int, u: Tensor) -> Tensor:
    if norm == "linf":
        return by_hand_linf(best, x, eps, side, u)
    if norm == "l2":
        return by_hand_l2(best, x, eps, side, u).clamp(0, 1)
    result = by_hand_l2(best, x, eps, side, u, p=1)[None]
    return project_l1_box(result, x[None], torch.tensor([eps]))[0]


PROPOSED = torch.tensor([0, 10, 11, 50, 51, 300, 900, 5000, 9000, 30000]).repeat(3)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", HELD)
def test_a_proposal_is_what_a_loop_over_windows_makes(norm: Norm, shape: tuple[int, ...]) -> None:
    known, key = items(shape, EPS[norm], PROPOSED), keys(len(PROPOSED))
    best = random_in(known, norm)
    result = square.propose(
        best, key, make_box(known.x, known.eps, norm), known, square.Params(), norm
    )
    u = hash_uniform(key, known.k, (2 if norm == "linf" else 5) + shape[0])
    for row, k in enumerate(PROPOSED.tolist()):
        halvings = sum(k > after for after in square_windows.HALVED_AFTER)
        side = square_windows.window_sides(0.8, *shape[1:], norm)[halvings]
        wanted = by_hand(norm, best[row], known.x[row], EPS[norm], side, u[row])
        assert torch.allclose(result[row], wanted, rtol=0, atol=1e-9), (row, side)


def random_in(known: AttackBatch, norm: Norm) -> Tensor:
    """A point of each row's ball and box, moved in half of its pixels."""
    generator = torch.Generator().manual_seed(3)
    by = 2 * torch.rand(known.x.shape, generator=generator, dtype=torch.float64) - 1
    by = by * (torch.rand(known.x.shape, generator=generator) < 0.5)
    length = by.flatten(1).norm(math.inf if norm == "linf" else square_windows.POWER[norm], dim=1)
    share = known.eps * 0.9 / length.clamp_min(1e-9)
    return (known.x + by * share[:, None, None, None]).clamp(0, 1)


def test_in_l2_a_proposal_that_no_wall_cuts_has_length_eps_however_often_it_was_changed() -> None:
    known, key = items((3, 11, 11), 0.4, torch.arange(40), spread=0.0), keys(40)
    best, whole = known.x, []
    for _ in range(100):
        best = square.propose(best, key, NoBox(), known, square.Params(), "l2")
        known = known._replace(k=known.k + 1)
        length = distance(best, known.x, "l2") / known.eps
        assert (length <= 1 + 1e-9).all()
        whole.append((length > 1 - 1e-9).double().mean())
    assert torch.stack(whole).mean() > 0.95  # less only where eta cancels the one before


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_ball_and_box_are_kept_to_float32_rounding_from_the_start_on(
    norm: Norm, shape: tuple[int, ...]
) -> None:
    ids = torch.arange(12)
    known = items(shape, EPS[norm], ids, spread=1.0)
    known = known._replace(x=known.x.clamp(0, 1).float(), eps=known.eps.float())
    state = square.init(known, Noise(0, "square", ids, 0 * ids), square.Params(), norm)
    best = state.x
    for _ in range(30):
        assert best.min() >= 0
        assert best.max() <= 1
        assert best.isfinite().all()
        moved = distance(best.double(), known.x.double(), norm)
        assert (moved <= EPS[norm] + 1e-7 + (0 if norm == "linf" else 1e-6 * EPS[norm])).all()
        best = square.propose(best, state.key, state.box, known, square.Params(), norm)
        known = known._replace(k=known.k + 14)


def test_the_stripes_of_linf_are_a_sign_for_each_column_and_channel() -> None:
    known = items((3, 6, 50), 0.1, torch.arange(20), spread=0.0)
    ids = torch.arange(20)
    start = square.start_stripes(known, Noise(0, "square", ids, 0 * ids))
    up = start > known.x
    assert torch.allclose((start - known.x).abs(), torch.tensor(0.1).double())
    assert torch.equal(up, up[:, :, :1].expand_as(up))
    assert 0.4 < up.double().mean() < 0.6
    assert (up[:, 0] != up[:, 1]).any()


def test_the_tiles_of_l2_are_five_rows_of_five_etas_on_the_sphere() -> None:
    known = items((1, 28, 28), 1.5, torch.arange(20), spread=0.0)
    ids = torch.arange(20)
    delta = square.start_tiles(known, Noise(0, "square", ids, 0 * ids), "l2") - known.x
    assert torch.allclose(distance(delta, 0 * delta, "l2"), known.eps)
    shape, kinds = square_windows.make_eta(5, "l2"), set()
    for tile in delta[:, 0, 1:26, 1:26].unfold(1, 5, 5).unfold(2, 5, 5).reshape(-1, 5, 5):
        shapes = [sign * each * 0.3 for sign in (1, -1) for each in (shape, shape.T)]
        kinds.add([torch.allclose(tile, each) for each in shapes].index(True))
    assert kinds == {0, 1, 2, 3}


# -------------------------------------------------------------------------------------------- runs


@pytest.fixture
def net(lenet: nn.Module) -> nn.Module:
    return lenet.double().requires_grad_(False)


@pytest.fixture
def few(net: nn.Module, digits: Any) -> tuple[Tensor, Tensor]:
    """12 digits that the net gets right, float64."""
    x, y = digits[0][:20].double(), digits[1][:20]
    right = net(x).argmax(1) == y
    return x[right][:12], y[right][:12]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_an_outcome_is_independent_of_the_batch_its_size_and_its_order(
    norm: Norm, net: nn.Module, few: Any, attacked: Attacked
) -> None:
    x, y = few
    settings = {"norm": norm, "params": {"steps": 30}}
    whole = attacked(net, x, y, "square", EPS[norm], rows=12, **settings)
    order = torch.arange(11, -1, -1)
    small = attacked(
        net, x[order], y[order], "square", EPS[norm], rows=5, examples=order, **settings
    )
    assert torch.allclose(small.x_adv[0], whole.x_adv[0][order], rtol=0, atol=1e-12)
    assert norm != "linf" or torch.equal(small.x_adv[0], whole.x_adv[0][order])
    assert torch.equal(small.first_success[0], whole.first_success[0][order])
    assert len(whole.first_success.unique()) > 3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_run_is_the_beginning_of_a_longer_one_which_never_does_worse(
    norm: Norm, lenet: nn.Module, digits: Any, attacked: Attacked
) -> None:
    x, y = (part[:10] for part in digits)
    net = lenet.requires_grad_(False)
    runs = [
        attacked(net, x, y, "square", EPS[norm], norm=norm, stop="never", trace=True,
                 params={"steps": steps})
        for steps in (4, 12, 40)
    ]  # fmt: skip
    reached = [net(each.x_adv[0]).argmax(1) != y for each in runs]
    for (short, fooled), (long, still) in pairwise(zip(runs, reached, strict=True)):
        assert torch.allclose(long.losses[:, :, : short.losses.shape[2]], short.losses)
        assert not (fooled & ~still).any()
    assert reached[0].sum() < reached[2].sum()


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
@pytest.mark.parametrize("loss", ["logit-difference", "cross-entropy"])
def test_what_is_returned_has_the_best_loss_of_all_that_was_asked_for(
    goal: str, loss: str, lenet: nn.Module, digits: Any, attacked: Attacked
) -> None:
    net, (x, label) = lenet.requires_grad_(False), (part[:12] for part in digits)
    y = label if goal == "untargeted" else (label + 1) % 10
    settings = {"goal": goal, "stop": "never", "trace": True}
    params = {"steps": 40, "loss": loss}
    result = attacked(net, x, y, "square", 0.25, params=params, **settings)
    reached = result.first_success[0] >= 0
    prediction = net(result.x_adv[0]).argmax(1)
    assert torch.equal(prediction != y if goal == "untargeted" else prediction == y, reached)
    own = make_objective(loss, goal)(net(result.x_adv[0]), y, label)
    best = result.losses[0].amax(1)
    exact = torch.isclose(own, best, atol=1e-4)
    assert exact[~reached].all()
    assert exact.all() or loss == "cross-entropy"  # among images that reach the goal, the best
    assert 0 < reached.sum() < len(x)


def test_random_search_needs_no_gradient_where_a_gradient_attack_finds_none(
    net: nn.Module, few: Any, attacked: Attacked
) -> None:
    class Rounded(nn.Module):
        """The net behind pixels rounded to tenths: its gradient is 0 everywhere."""

        def forward(self, x: Tensor) -> Tensor:
            return net((x * 10).round() / 10)

    x, y = few
    counts = {}
    for attack, steps in (("pgd", 40), ("square", 400)):
        params = {"steps": steps}
        result = attacked(Rounded(), x, y, attack, 0.25, params=params)
        counts[attack] = int((Rounded()(result.x_adv[0]).argmax(1) != y).sum())
        assert (result.backwards > 0).any() == (attack == "pgd")
    assert counts["square"] > 2 * counts["pgd"]
    assert counts["square"] > 6
