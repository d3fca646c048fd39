"""PGD and MI-FGSM in l1: steps over a share of the pixels, held to the best attack's value."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bench.engine.functional import norms, projections

Linear = Callable[[Tensor, Tensor], nn.Module]
SIDE = 6


def scene(rows: int = 8) -> tuple[Tensor, Tensor]:
    """Images with half of their pixels on the walls, and the weights of a score to be raised."""
    generator = torch.Generator().manual_seed(3)
    x = (2 * torch.rand(rows, 1, SIDE, SIDE, generator=generator) - 0.5).clamp(0, 1)
    return x, torch.randn(SIDE * SIDE, generator=generator)


def best_gain(x: Tensor, w: Tensor, eps: float) -> Tensor:
    """How far w . x rises at most within l1 distance eps and the box: the largest |w| first, each
    as far as its pixel has room."""
    room = torch.where(w > 0, 1 - x.flatten(1), x.flatten(1))
    order = w.abs().argsort(descending=True)
    room, gain = room[:, order], w.abs()[order]
    spent = (room.cumsum(1) - room).clamp_max(eps)
    return (torch.minimum(room, eps - spent) * gain).sum(1)


@pytest.mark.parametrize("attack", ["pgd", "mifgsm"])
@pytest.mark.parametrize("eps", [0.5, 3.0])
def test_it_reaches_the_best_attack_on_a_linear_net(
    attack: str, eps: float, linear: Linear, attacked: Callable[..., object]
) -> None:
    x, w = scene()
    model = linear(torch.stack([torch.zeros_like(w), w]), torch.zeros(2))
    params = {"steps": 300, "alpha": "eps/60", "l1_share": 1 / 36}
    y = torch.zeros(len(x), dtype=torch.int64)
    result = attacked(model, x, y, attack, eps, norm="l1", stop="never", params=params)
    gain = ((result.x_adv[0] - x).flatten(1) * w).sum(1)  # type: ignore[attr-defined]
    assert torch.allclose(gain, best_gain(x, w, eps), rtol=2e-2)


def test_one_step_of_the_whole_radius_is_the_best_attack_to_the_rounding() -> None:
    x, w = scene()
    eps = torch.linspace(0.1, 9.0, len(x))
    step = projections.steepest_sparse_step(
        w.view(1, 1, SIDE, SIDE).expand_as(x), x, eps, 1 / SIDE**2
    )
    best = torch.stack([best_gain(x[i : i + 1], w, float(eps[i]))[0] for i in range(len(x))])
    assert torch.allclose((step.flatten(1) * w).sum(1), best, rtol=1e-5)
    assert torch.allclose(norms.norm_of(step, "l1"), eps, rtol=1e-5)


def test_a_step_is_spread_over_the_fraction_and_skips_what_the_box_stops() -> None:
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    gradient = torch.tensor([[-9.0, 9.0, 2.0, -1.0]])
    half = projections.steepest_sparse_step(gradient, x, torch.tensor([0.5]), 0.5)
    one = projections.steepest_sparse_step(gradient, x, torch.tensor([0.5]), 0.25)
    assert half.tolist() == [[0.0, 0.0, 0.25, -0.25]]
    assert one.tolist() == [[0.0, 0.0, 0.5, 0.0]]


def test_what_one_pixel_cannot_take_goes_to_the_next() -> None:
    x, gradient = torch.tensor([[0.75, 0.5]]), torch.tensor([[3.0, 1.0]])
    step = projections.steepest_sparse_step(gradient, x, torch.tensor([0.5]), 0.5)
    assert step.tolist() == [[0.25, 0.25]]


def test_a_step_that_the_box_stops_everywhere_or_without_a_gradient_is_none() -> None:
    x, stopped = torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0, 1.0]])
    for gradient in (stopped, torch.zeros_like(x)):
        assert projections.steepest_sparse_step(gradient, x, torch.ones(1), 1.0).abs().max() == 0
