"""What attacks ascend: exact identities, and what float32 loses of one but not of the other."""

import pytest
import torch
from torch import Tensor

from bench.core.contracts.types import Goal, Loss
from bench.engine.functional import losses


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


def test_the_difference_of_logits_is_above_0_only_where_another_class_wins() -> None:
    logits = torch.tensor([[3.0, 1.0, 0.0], [1.0, 3.0, 0.0]])
    assert losses.logit_difference(logits, torch.tensor([0, 0])).tolist() == [-2.0, 2.0]


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


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name != "dlr"])
def test_the_logits_scale_does_change_it(name: Loss) -> None:
    z, y = some()
    assert (losses.LOSSES[name](2 * z, y) - losses.LOSSES[name](z, y)).abs().min() > 1e-3


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
@pytest.mark.parametrize(("scale", "shift"), [(1e-3, 7.0), (2.0, -3.0), (1e4, 1e4)])
def test_the_logits_neither_scale_nor_shift_changes_the_difference_of_logits_ratio(
    goal: Goal, scale: float, shift: float
) -> None:
    z, y = some()
    z, label, dlr = z.requires_grad_(), y if goal == "untargeted" else 9 - y, losses.make_objective
    ratio, moved = (dlr("dlr", goal)(logits, y, label) for logits in (z, scale * z + shift))
    assert torch.allclose(moved, ratio)
    slopes = [torch.autograd.grad(each.sum(), z, retain_graph=True)[0] for each in (ratio, moved)]
    assert torch.allclose(slopes[0], slopes[1])


def test_the_difference_of_logits_ratio_is_above_0_exactly_where_the_label_is_not_predicted() -> (
    None
):
    z, y = some()
    assert torch.equal(losses.dlr(z, y) > 0, z.argmax(1) != y)
    assert losses.dlr(torch.tensor([[3.0, 0.0, 1.0, -1.0]]), torch.tensor([0])) == -2 / 3
    assert losses.dlr(torch.tensor([[3.0, 0.0, 1.0, -1.0]]), torch.tensor([2])) == 2 / 3


def test_the_targeted_ratio_is_the_lead_of_the_target_over_what_lies_between_first_and_others() -> (
    None
):
    z, target, label = torch.tensor([[4.0, 3.0, 1.0, 0.0]]), torch.tensor([1]), torch.tensor([0])
    assert losses.make_objective("dlr", "targeted")(z, target, label) == -1 / 3.5


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_is_defined_for_as_many_classes_as_it_says_and_the_ratio_for_no_fewer(
    name: Loss, goal: Goal
) -> None:
    least = losses.min_classes(name, goal)
    z, y = some(classes=least)
    ascended = losses.make_objective(name, goal)
    assert ascended(z, y, (y + 1) % least).isfinite().all()
    if name == "dlr":
        with pytest.raises(RuntimeError, match="out of range"):
            ascended(z[:, 1:], y * 0, y * 0 + 1)


def test_cross_entropy_to_the_target_less_that_to_the_label_is_a_difference_of_logits() -> None:
    z, y = some()
    target, rows = 9 - y, torch.arange(16)
    difference = losses.cross_entropy(z, target) - losses.cross_entropy(z, y)
    assert torch.allclose(difference, z[rows, y] - z[rows, target])


@pytest.mark.parametrize("name", [name for name in losses.LOSSES if name != "dlr"])
def test_a_targeted_attack_descends_what_an_untargeted_one_ascends(name: Loss) -> None:
    z, y = some()
    away, towards = (
        losses.make_objective(name, "untargeted"),
        losses.make_objective(name, "targeted"),
    )
    assert torch.equal(away(z, y, y), losses.LOSSES[name](z, y))
    assert torch.equal(towards(z, y, 9 - y), -losses.LOSSES[name](z, y))


def test_label_and_target_ascends_the_difference_of_their_logits_and_no_more() -> None:
    z, y = some()
    target, rows = 9 - y, torch.arange(16)
    towards = losses.make_objective("label-and-target", "targeted")
    assert torch.equal(towards(z, target, y), -(z[rows, y] - z[rows, target]))
    away = losses.make_objective("label-and-target", "untargeted")
    assert torch.equal(away(z, y, y), losses.cross_entropy(z, y))


@pytest.mark.parametrize("name", losses.LOSSES)
def test_each_examples_loss_is_its_own(name: Loss) -> None:
    z, y = some()
    alone = torch.cat([losses.LOSSES[name](z[i : i + 1], y[i : i + 1]) for i in range(16)])
    assert losses.LOSSES[name](z, y).shape == (16,)
    assert torch.allclose(losses.LOSSES[name](z, y), alone)


def test_the_probability_margin_is_the_difference_of_softmax_probabilities_plus_1() -> None:
    z, y = some()
    p = z.softmax(1)
    own = p[torch.arange(16), y]
    others = p.scatter(1, y[:, None], -1).amax(1)
    assert torch.allclose(losses.probability_margin(z, y), 1 + others - own, rtol=1e-12)


def test_the_probability_margin_has_the_gradient_of_its_definition() -> None:
    z, y = some()
    z = z.detach().requires_grad_()
    p = z.softmax(1)
    own, others = p[torch.arange(16), y], p.scatter(1, y[:, None], -1).amax(1)
    (expected,) = torch.autograd.grad((others - own).sum(), z)
    assert torch.allclose(slope("pma", z, y), expected, rtol=1e-9, atol=1e-15)


def test_the_probability_margin_keeps_its_gradient_where_the_softmax_rounds_to_1() -> None:
    z = torch.tensor([[30.0, 0.0, -1.0]])
    y = torch.tensor([0])
    assert z.softmax(1)[0, 0] == 1
    exact, rounded = slope("pma", z.double(), y), slope("pma", z, y)
    assert torch.allclose(rounded.double(), exact, rtol=1e-5, atol=0)
    assert rounded.abs().min() > 0
