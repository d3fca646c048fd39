"""What attacks ascend: exact identities, and what float32 loses of one but not of the other."""

import pytest
import torch
from torch import Tensor

from bench import losses
from bench.contracts import Loss


def some(n: int = 16, classes: int = 10, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits (n, classes), float64, and labels (n,)."""
    generator = torch.Generator().manual_seed(0)
    z = scale * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return z, torch.arange(n) % classes


def slope(name: Loss, z: Tensor, y: Tensor) -> Tensor:
    z = z.detach().requires_grad_()
    return torch.autograd.grad(losses.LOSSES[name](z, y).sum(), z)[0]


def test_cross_entropy_is_logsumexp_minus_the_labels_logit() -> None:
    z, y = some()
    expected = z.exp().sum(1).log() - z[torch.arange(16), y]
    assert torch.allclose(losses.cross_entropy(z, y), expected)


def test_the_margin_is_the_log_odds_against_the_label() -> None:
    z, y = some()
    p = z.softmax(1)[torch.arange(16), y]
    assert torch.allclose(losses.margin(z, y), ((1 - p) / p).log())


def test_the_margins_gradient_is_cross_entropys_over_the_chance_of_being_wrong() -> None:
    z, y = some()
    wrong = 1 - z.softmax(1)[torch.arange(16), y]
    assert torch.allclose(slope("cross-entropy", z, y), wrong[:, None] * slope("margin", z, y))


def test_float32_turns_the_direction_of_a_saturated_cross_entropy_and_not_the_margins() -> None:
    z, y = some()
    z[torch.arange(16), y] += 30.0  # the label's probability rounds to 1
    weights = torch.randn(10, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = (slope("cross-entropy", z, y) @ weights).sign()
    ours = (slope("margin", z.float(), y) @ weights.float()).sign()
    naive = (slope("cross-entropy", z.float(), y) @ weights.float()).sign()
    assert torch.equal(ours.double(), truth)
    assert (naive != truth).double().mean() > 0.1


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_constant_added_to_all_logits_changes_nothing(name: Loss) -> None:
    z, y = some()
    moved = z + torch.linspace(-50, 50, 16, dtype=torch.float64)[:, None]
    assert torch.allclose(losses.LOSSES[name](moved, y), losses.LOSSES[name](z, y))
    assert torch.allclose(slope(name, moved, y), slope(name, z, y))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_the_logits_scale_does_change_it(name: Loss) -> None:
    z, y = some()
    assert (losses.LOSSES[name](2 * z, y) - losses.LOSSES[name](z, y)).abs().min() > 1e-3


def test_cross_entropy_to_the_target_less_that_to_the_label_is_a_difference_of_logits() -> None:
    z, y = some()
    target, rows = 9 - y, torch.arange(16)
    difference = losses.cross_entropy(z, target) - losses.cross_entropy(z, y)
    assert torch.allclose(difference, z[rows, y] - z[rows, target])


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_targeted_attack_descends_what_an_untargeted_one_ascends(name: Loss) -> None:
    z, y = some()
    away, towards = losses.to_ascend(name, "untargeted"), losses.to_ascend(name, "targeted")
    assert torch.equal(away(z, y, y), losses.LOSSES[name](z, y))
    assert torch.equal(towards(z, y, 9 - y), -losses.LOSSES[name](z, y))


def test_label_and_target_ascends_the_difference_of_their_logits_and_no_more() -> None:
    z, y = some()
    target, rows = 9 - y, torch.arange(16)
    towards = losses.to_ascend("label-and-target", "targeted")
    assert torch.equal(towards(z, target, y), -(z[rows, y] - z[rows, target]))
    away = losses.to_ascend("label-and-target", "untargeted")
    assert torch.equal(away(z, y, y), losses.cross_entropy(z, y))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_each_examples_loss_is_its_own(name: Loss) -> None:
    z, y = some()
    alone = torch.cat([losses.LOSSES[name](z[i : i + 1], y[i : i + 1]) for i in range(16)])
    assert losses.LOSSES[name](z, y).shape == (16,)
    assert torch.allclose(losses.LOSSES[name](z, y), alone)
