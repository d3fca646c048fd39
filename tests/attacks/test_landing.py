"""No attack of bench's own ever leaves its ball or the box, on photographs either.

A photograph has 150,000 entries. In l1 all of an iterate's changes are shortened by the same
amount, so float32 rounds all of them the same way, and that adds up to more than the verifier
allows, unless the iterate is landed (`geometry.landed`) before it is judged.
"""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.types import Norm
from bench.engine.functional import norms, projections
from bench.evaluation import crafting, verify

RULES = [
    name
    for name in registry.names("attacks")
    if not name.endswith(":") and isinstance(registry.find("attacks", name), IterativeAttack)
]
CELLS = [(name, norm) for name in RULES for norm in registry.find("attacks", name).norms]
RADII: dict[Norm, tuple[float, float]] = {
    "linf": (0.3, 2 / 255), "l2": (2.0, 0.5), "l1": (2.0, 12.0), "l0": (3.0, 40.0),
}  # fmt: skip
"""For a digit, and for a photograph."""
FEW = {"steps": 3, "targets": 1}
N = 2


def patches(channels: int, side: int, patch: int) -> nn.Module:
    """A random net that reads patches, quick on photographs."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 4, patch, patch)
    head = nn.Linear(4 * (side // patch) ** 2, 10)
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("photograph", [False, True])
@pytest.mark.parametrize(("name", "norm"), CELLS)
def test_no_attack_of_our_own_leaves_its_ball(name: str, norm: Norm, photograph: bool) -> None:
    net = patches(3, 224, 16) if photograph else patches(1, 28, 4)
    shape = (3, 224, 224) if photograph else (1, 28, 28)
    x = torch.rand(N, *shape, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    attack = registry.find("attacks", name)
    settable = {field.name: field.default for field in dataclasses.fields(attack.params)}
    wanted = {key: value for key, value in FEW.items() if key in settable}
    if isinstance(settable.get("alpha"), str):
        wanted["alpha"] = "eps/100"  # so that a start with changes everywhere stays one
    params = attack.params(**wanted)
    eps, none = RADII[norm][photograph], torch.zeros(N)
    chosen = crafting.Examples(torch.arange(N), x, y, torch.full((N,), -1), y, none, none)
    spec = AttackSpec(name=name, attack=attack, params=params, norm=norm, eps=(eps,), stop="never")
    raw = crafting.craft(net, spec, chosen, 8)
    images = crafting.final_images(spec, eps, x, raw, 0)
    assert verify.find_violations(images, x, eps, norm, net(images).argmax(1)) == [""] * N


def alike(n: int) -> tuple[Tensor, Tensor]:
    """Clean images (n, 3, 224, 224) and others at an equal change everywhere, which float32 rounds
    the same way everywhere."""
    clean = torch.full((n, 3, 224, 224), 0.5)
    return clean, clean + torch.linspace(1e-4, 3e-3, n).view(-1, 1, 1, 1)


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_what_is_landed_is_inside_in_float64_and_nearly_at_the_border(norm: Norm) -> None:
    clean, there = alike(4)
    far = norms.distance_float64(there, clean, norm)
    eps = (far * torch.tensor([0.99, 1 - 2e-5, 1 - 1e-6, 1.5])).float()
    landed = projections.round_into_ball(there, clean, eps, norm)
    after = norms.distance_float64(landed, clean, norm)
    assert (after <= eps.double() + (1e-6 + 1e-5 * eps.double()) / 2).all()
    assert (after[:2] <= eps[:2].double()).all()  # brought back to eps itself
    assert (after[:2] > 0.99 * eps[:2]).all()
    assert torch.equal(landed[2:], there[2:])  # within rounding, and inside: the same bits
    exact = (there.double() - clean.double()).abs().flatten(1)
    total = exact.sum(1) if norm == "l1" else exact.square().sum(1).sqrt()
    assert torch.allclose(far, total, rtol=1e-12)
