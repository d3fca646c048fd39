"""Linear nets, on which robust accuracy is a formula: every attack must hit it to the example.

Weights, pixels and radii are multiples of 1/64, so float32 adds them without rounding, and the
bias lies half a quantum off: no example can end on the boundary, or nearer to it than 1e-4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.types import Norm
from bench.engine.functional.norms import distance

WEIGHTS = torch.kron(torch.tensor([1, 2, 2, 4]), torch.tensor([2, 4, 5, 6])) / 64
SIGNS = torch.tensor([1, -1, 1, 1, -1, -1, 1, -1, 1, -1, -1, 1, -1, 1, 1, -1])
W, LENGTH = (WEIGHTS * SIGNS).double(), 45 / 64
"""The weights of the score, none like the next, and their l2 norm: 3 * 3 times 5, over 64."""
HALF = 2.0**-13
EPS: dict[Norm, tuple[float, ...]] = {
    "linf": (0.0, 1 / 64, 8 / 64, 32 / 64, 1.0),
    "l2": (0.0, 1 / 64, 8 / 64, 22 / 64),
}
BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
FOUND = {name: registry.find("attacks", name) for name in BUILT_IN}
RULES = [
    name
    for name, attack in FOUND.items()
    if isinstance(attack, IterativeAttack) and attack.scale_free
]
ATTACKS = [name for name in RULES if FOUND[name].needs == "gradient"]
# A search whose steps become ever shorter comes near the formula: tests/attacks/test_min_norm.py.
SHRINKING = [n for n in ATTACKS if FOUND[n].budget != "fixed" and hasattr(FOUND[n].params, "alpha")]
ATTACKS = [name for name in ATTACKS if name not in SHRINKING]
FIXED = [name for name in ATTACKS if FOUND[name].budget == "fixed"]
CASES = [(name, norm) for name in ATTACKS for norm in FOUND[name].norms if norm in EPS]
N = 42
"""With so many images none is fooled at some eps by less than 5 * HALF, which is as near to the
boundary as a search for the least distance comes."""
Linear = Callable[[Tensor, Tensor], nn.Module]


def images(norm: Norm) -> Tensor:
    """N images of 16 pixels: for linf half of them on the walls of the box, for l2 all of them
    further from the walls than the largest eps."""
    generator = torch.Generator().manual_seed(0)
    low, high = (-32, 97) if norm == "linf" else (23, 42)
    levels = torch.randint(low, high, (N, 1, 4, 4), generator=generator)
    return levels.clamp(0, 64) / 64


def bias(x: Tensor) -> float:
    """The multiple of 1/4096, plus half of one, that splits the images into two equal classes."""
    middle = (x.double().flatten(1) @ W).median()
    return -float((middle * 4096).round() / 4096) + HALF


def score(x: Tensor) -> Tensor:
    return x.double().flatten(1) @ W + bias(x)


def two_classes(linear: Linear, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Logits -s/2 and s/2 of the score s, and the labels that they give."""
    b = torch.tensor([-bias(x) / 2, bias(x) / 2])
    return linear(torch.stack([-W / 2, W / 2]), b), (score(x) > 0).long()


def six_classes(linear: Linear, x: Tensor) -> tuple[nn.Module, Tensor]:
    """Classes 1 and 4 are the two sides of the score; each side has two more classes of the same
    weights with lower logits, so the score still decides and all six classes have a gradient."""
    side = torch.tensor([-1.0] * 3 + [1.0] * 3, dtype=torch.float64)
    behind = torch.tensor([1.0, 0.0, 0.5, 0.25, 0.0, 0.75]).double()
    net = linear(side[:, None] * W / 2, side * bias(x) / 2 - behind)
    return net, torch.where(score(x) > 0, 4, 1)


def margin_left(x: Tensor, eps: float, norm: Norm) -> Tensor:
    """How far the label still leads after the best attack there is; robust where above 0."""
    s = score(x)
    if norm == "l2":
        return s.abs() - eps * LENGTH
    falls = W * s.sign()[:, None] > 0  # where the attack lowers the pixel
    room = torch.where(falls, x.double().flatten(1), 1 - x.double().flatten(1))
    return s.abs() - (W.abs() * room.clamp_max(eps)).sum(1)


def fields(attack: str) -> set[str]:
    """The names of the params that the attack can be given."""
    return {field.name for field in dataclasses.fields(FOUND[attack].params)}


def settings(attack: str, norm: Norm) -> list[dict[str, Any]]:
    """Params with which the attack reaches the best point: an iterative one with steps as long as
    the ball, which from any start end there, and in linf also with its default step; one that
    finds its step size itself in few steps."""
    if "alpha" not in (own := fields(attack)):
        return [{"steps": 25} if "steps" in own else {}]
    return [{"steps": 12, "alpha": "eps"}, *([{"steps": 8}] if norm == "linf" else [])]


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_every_attack_finds_all_adversarial_examples_and_no_other(
    attack: str, norm: Norm, linear: Linear
) -> None:
    x = images(norm)
    build = six_classes if FOUND[attack].min_classes > 2 else two_classes
    net, y = build(linear, x)
    found = bench.evaluate(
        net, x, y, attack=attack, norm=norm, eps=EPS[norm], params=settings(attack, norm)[0],
        batch_size=64, audit=False, device="cpu",
    )  # fmt: skip
    for eps, records in found.records.groupby("eps"):
        left = margin_left(x, eps, norm)
        assert left.abs().min() > 1e-4
        assert records["fooled"].tolist() == (left < 0).tolist()
    closed = [int((margin_left(x, eps, norm) > 0).sum()) for eps in EPS[norm]]
    assert found.table["robust_correct"].tolist() == closed
    assert closed[0] == N > closed[1] > closed[2] > closed[-1]


@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_every_loss_and_step_finds_them_among_six_classes(
    attack: str, norm: Norm, linear: Linear, attacked: Any
) -> None:
    """On two classes the margin loss has the direction of the cross-entropy."""
    x = images(norm)
    net, y = six_classes(linear, x)
    losses = [{"loss": loss} for loss in ("cross-entropy", "margin")]
    for loss in losses if "loss" in fields(attack) else [{}]:
        for params in settings(attack, norm):
            result = attacked(net, x, y, attack, EPS[norm], norm=norm, params=params | loss)
            for eps, x_adv in zip(EPS[norm], result.x_adv, strict=True):
                inside = distance(x_adv.double(), x.double(), norm) <= eps + 1e-6
                fooled = inside & (net(x_adv).argmax(1) != y)
                assert torch.equal(fooled, margin_left(x, eps, norm) < 0), (eps, params, loss)


@pytest.mark.parametrize(
    ("attack", "norm"), [case for case in CASES if "targeted" in FOUND[case[0]].goals]
)
def test_a_targeted_attack_at_the_other_of_two_classes_does_as_well(
    attack: str, norm: Norm, linear: Linear
) -> None:
    x = images(norm)
    net, y = two_classes(linear, x)
    found = bench.evaluate(
        net, x, y, attack=attack, norm=norm, eps=EPS[norm], goal="targeted", target="next",
        params=settings(attack, norm)[0], batch_size=64, audit=False, device="cpu",
    )  # fmt: skip
    for eps, records in found.records.groupby("eps"):
        assert records["fooled"].tolist() == (margin_left(x, eps, norm) < 0).tolist()


@pytest.mark.parametrize("attack", [name for name in FIXED if FOUND[name].min_classes == 2])
def test_the_best_linf_image_is_the_corner_of_ball_and_box(
    attack: str, linear: Linear, attacked: Any
) -> None:
    x = images("linf")
    net, y = two_classes(linear, x)
    towards = (W.sign() * (1 - 2 * y[:, None])).view_as(x)
    params = settings(attack, "linf")[0]
    result = attacked(net, x, y, attack, EPS["linf"], stop="never", params=params)
    for eps, x_adv in zip(EPS["linf"], result.x_adv, strict=True):
        assert torch.equal(x_adv, (x + eps * towards).clamp(0, 1).float())


def test_the_formula_is_the_margin_of_the_net_itself_at_the_best_point(linear: Linear) -> None:
    """At the corner the net itself has the margin that the formula states."""
    x = images("linf")
    net, y = two_classes(linear, x)
    towards = (W.sign() * (1 - 2 * y[:, None])).view_as(x)
    logits = net((x + 0.25 * towards).clamp(0, 1).float())
    lead = (logits[:, 1] - logits[:, 0]) * (2 * y - 1)
    assert torch.equal(lead.double(), margin_left(x, 0.25, "linf"))
