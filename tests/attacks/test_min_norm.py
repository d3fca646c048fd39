"""Searches for the least distance, held against linear nets, where that distance is a formula.

Of a net with two classes and score s = w x + b the boundary lies at |s| / ||w||_* in the dual norm
as long as no wall of the box is in the way; in l0, pixels free to go to their walls, the fewest
entries are counted by taking those that can give most one after another.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.types import Norm
from bench.engine import stream
from bench.engine.functional import norms

Linear = Callable[[Tensor, Tensor], nn.Module]
DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}
SEARCHES = [
    (name, norm)
    for name in ("fmn", "ddn", "sigma_zero")
    for norm in registry.find("attacks", name).norms
]


def run_search(
    net: nn.Module, x: Tensor, y: Tensor, attack: str, norm: Norm, **settings: Any
) -> stream.StreamResult:
    """One search from every image, which ends when all its steps are made."""
    each, params = registry.find("attacks", attack), settings.pop("params", {})
    settings = {"eps": (torch.inf,), "stop": "never"} | settings
    result = each.params(**params)
    spec = AttackSpec(name=attack, attack=each, params=result, norm=norm, **settings)
    return stream.run_attack(net, spec, x, y, torch.arange(len(x)), 64)


def fooled(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return net(x).argmax(1) != y


@pytest.fixture
def score() -> tuple[Tensor, float]:
    """Weights of 36 pixels, none like the next, and a bias, in float32 all of them exact."""
    w = torch.arange(20.0, 128.0, 3.0) / 64 * torch.tensor([1.0, -1.0, 1.0]).repeat(12)
    return w, float(1 - 32 * w.sum()) / 64


@pytest.fixture
def plane(score: Any, linear: Linear) -> nn.Module:
    w, b = score
    return linear(torch.stack([-w / 2, w / 2]), torch.tensor([-b / 2, b / 2])).requires_grad_(False)


def grey(n: int = 40) -> Tensor:
    """Images far from the walls of the box."""
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.1 * (torch.rand(n, 1, 6, 6, generator=generator) - 0.5)


@pytest.mark.parametrize(("attack", "norm"), [("ddn", "l2"), *(("fmn", norm) for norm in DUAL)])
@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_the_least_distance_to_a_plane_is_found_to_a_percent(
    attack: str, norm: Norm, goal: Any, score: Any, plane: nn.Module
) -> None:
    w, b = score
    x, w, plane = grey().double(), w.double(), plane.double()
    s = x.flatten(1) @ w + b
    y, closed = (s > 0).long(), s.abs() / norms.norm_of(w[None], DUAL[norm])
    params = {"start": 0.1, "steps": 150} if attack == "ddn" else {}
    towards = y if goal == "untargeted" else 1 - y
    x_adv = run_search(plane, x, towards, attack, norm, goal=goal, params=params).x_adv[0]
    assert fooled(plane, x_adv, y).all()
    ratio = norms.distance(x_adv, x, norm) / closed
    assert (ratio > 1 - 1e-4).all()
    assert (ratio < 1.01).all()


def fewest(x: Tensor, w: Tensor, b: float) -> Tensor:
    """The entries that must change before the score changes its sign, (n,)."""
    s, flat = x.flatten(1) @ w + b, x.flatten(1)
    room = torch.where(w * s.sign()[:, None] > 0, flat, 1 - flat)
    most = (w.abs() * room).sort(dim=1, descending=True).values.cumsum(1)
    return (most < s.abs()[:, None]).sum(1) + 1


@pytest.mark.parametrize(("attack", "exact"), [("fmn", 30), ("sigma_zero", 25)])
def test_the_fewest_entries_are_counted(attack: str, exact: int, linear: Linear) -> None:
    """By FMN on every image; sigma-zero may end with an entry that it could do without."""
    w = torch.linspace(0.3, 2.0, 64).square() * torch.tensor([1.0, -1.0]).repeat(32)
    x = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    b = 6 - float((x.flatten(1) @ w).median())
    net = linear(torch.stack([-w / 2, w / 2]), torch.tensor([-b / 2, b / 2])).requires_grad_(False)
    y, closed = net(x).argmax(1), fewest(x, w, b)
    x_adv = run_search(net, x, y, attack, "l0", params={"steps": 400}).x_adv[0]
    assert fooled(net, x_adv, y).all()
    assert set(closed.tolist()) >= {1, 2, 3, 4}
    over = norms.distance(x_adv, x, "l0") - closed
    assert (over >= 0).all()
    assert (over <= 1).all()
    assert (over == 0).sum() >= exact


@pytest.mark.parametrize(("attack", "norm"), SEARCHES)
def test_what_is_found_fools_the_net_lies_in_the_box_and_is_no_further_with_more_looks(
    attack: str, norm: Norm, lenet: nn.Module, digits: Any
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    short, long = (
        run_search(lenet.requires_grad_(False), x, y, attack, norm, params={"steps": steps})
        for steps in (15, 60)
    )
    assert fooled(lenet, long.x_adv[0], y).all()
    assert long.x_adv.min() >= 0
    assert long.x_adv.max() <= 1
    assert (long.forwards == 60).all()
    near, far = (
        norms.distance(result.x_adv[0], x, norm).masked_fill(
            ~fooled(lenet, result.x_adv[0], y), 1e9
        )
        for result in (long, short)
    )
    assert near.median() <= far.median()


@pytest.mark.parametrize(("attack", "norm"), SEARCHES)
def test_a_search_that_finds_nothing_returns_the_image(attack: str, norm: Norm) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).requires_grad_(False)
    nn.init.zeros_(flat[1].weight)
    x, y = grey(3), flat(grey(3)).argmax(1)
    result = run_search(flat, x, y, attack, norm, params={"steps": 5})
    assert torch.equal(result.x_adv[0], x)
    assert (result.first_success == -1).all()


@pytest.mark.parametrize(("attack", "norm"), SEARCHES)
def test_in_an_ensemble_a_search_stops_at_the_first_find_within_the_ball(
    attack: str, norm: Norm, lenet: nn.Module, digits: Any
) -> None:
    x, y = digits[0][:12], digits[1][:12]
    eps = {"linf": 0.3, "l2": 3.0, "l1": 30.0, "l0": 60.0}[norm]
    settings: Any = {"eps": (eps,), "stop": "first-success", "params": {"steps": 60}}
    result = run_search(lenet.requires_grad_(False), x, y, attack, norm, **settings)
    won = result.first_success[0] >= 0
    assert won.sum() > len(x) / 2
    assert fooled(lenet, result.x_adv[0], y)[won].all()
    assert (norms.distance(result.x_adv[0], x, norm)[won] <= eps * (1 + 1e-6)).all()
    assert (result.forwards[0][won] == result.first_success[0][won] + 1).all()
    assert (result.forwards[0] < 60).any()


def test_a_ball_that_the_box_cuts_is_used_to_its_rim(linear: Linear) -> None:
    """Half of the pixels cannot go where the gradient points: the others must go the whole way."""
    w = torch.cat([torch.full((18,), 1.0), torch.full((18,), -1.0)])
    x = torch.cat([torch.full((18,), 1.0), torch.full((18,), 0.9)]).view(1, 1, 6, 6)
    net = linear(torch.stack([-w / 2, w / 2]), torch.tensor([1.0, -1.0])).requires_grad_(False)
    y = net(x).argmax(1)  # 18 - 16.2 - 2 < 0: to raise the score, the second half must fall
    x_adv = run_search(net, x, y, "fmn", "l2").x_adv[0]
    least = 0.2 / 18**0.5
    assert float(norms.distance(x_adv, x, "l2")) == pytest.approx(least, rel=0.01)


class InFloat64(nn.Module):
    """A net that answers images of float32 with logits of float64."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.double())  # type: ignore[no-any-return]


RULES = [
    ("fab_t", registry.find("attacks", "fab_t").norms[0], {"targets": 1}),
    *((name, norm, {}) for name, norm in SEARCHES),
    *((name, "linf", {}) for name in ("pgd", "mifgsm", "apgd")),
]


@pytest.mark.parametrize(("attack", "norm", "params"), RULES)
def test_a_model_that_answers_in_float64_is_attacked_as_in_float32(
    attack: str, norm: Norm, params: dict[str, Any], plane: nn.Module
) -> None:
    if attack == "fab_t":  # which needs four classes
        plane = nn.Sequential(plane, nn.ConstantPad1d((0, 2), -100.0))
    x = grey(8)
    y = plane(x).argmax(1)
    settings = {"params": {"steps": 6, **params}, "eps": (torch.inf,)}
    if registry.find("attacks", attack).budget == "fixed":
        settings["eps"] = (0.2,)
    single = run_search(plane, x, y, attack, norm, **settings)
    double = run_search(InFloat64(plane), x, y, attack, norm, **settings)
    assert double.x_adv.dtype == single.x_adv.dtype == torch.float32
    assert torch.allclose(double.x_adv, single.x_adv, atol=1e-3)
