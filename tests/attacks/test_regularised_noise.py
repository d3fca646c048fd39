"""The regularised noise attack, held to torch's own Adam, and to what a penalty must do."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.engine.stream import run_attack


def plain(
    model: nn.Module, x: Tensor, target: Tensor, weight: float, power: int, steps: int
) -> Tensor:
    """The same objective by torch.optim.Adam, the box kept after every step."""
    noise = torch.zeros_like(x, requires_grad=True)
    optimiser = torch.optim.Adam([noise], lr=0.01)
    for _ in range(steps):
        wrong = nn.functional.cross_entropy(model(x + noise), target, reduction="sum")
        cost = wrong + weight * noise.abs().pow(power).sum()
        optimiser.zero_grad()
        cost.backward()
        optimiser.step()
        with torch.no_grad():
            noise.copy_((x + noise).clamp(0, 1) - x)
    return (x + noise).detach()


@pytest.mark.parametrize(("regulariser", "power"), [("l1", 1), ("l2", 2)])
def test_it_is_adam_on_the_penalised_objective(
    regulariser: str, power: int, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    net, x, y = lenet.double(), digits[0][:8].double(), digits[1][:8]
    attack = registry.find("attacks", "regularised_noise")
    params = attack.params(steps=15, weight=0.05, regulariser=regulariser, start=0.0)
    spec = AttackSpec(
        name="regularised_noise", attack=attack, params=params, norm="l2", eps=(torch.inf,),
        goal="targeted", stop="never",
    )  # fmt: skip
    result = run_attack(net, spec, x, 9 - y, torch.arange(8), 3, label=y)
    assert torch.allclose(result.x_adv[0], plain(net, x, 9 - y, 0.05, power, 15), atol=1e-7)


def measured(lenet: nn.Module, digits: tuple[Tensor, Tensor], **params: Any) -> bench.Evaluation:
    x, y = (part[:24] for part in digits)
    settings: dict[str, Any] = {"norm": "l2", "goal": "targeted", "target": "complement"}
    given = {"steps": 100, **params}
    return bench.evaluate(
        lenet, x, y, attack="regularised_noise", eps=[0.5, 100], params=given, **settings
    )


def test_a_heavier_penalty_leaves_less_noise_and_no_more_success(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    free = measured(lenet, digits, regulariser="none")
    light, heavy = (measured(lenet, digits, weight=w, regulariser="l2") for w in (0.01, 1.0))
    norms = [float(e.records[e.records["eps"] == 100]["l2"].mean()) for e in (free, light, heavy)]
    fooled = [int(e.table["fooled"].iloc[1]) for e in (free, light, heavy)]
    assert norms == sorted(norms, reverse=True)
    assert fooled == sorted(fooled, reverse=True)
    assert fooled[0] == int(free.table["eligible"].iloc[1])


def test_it_runs_once_and_is_read_at_every_eps(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    result = measured(lenet, digits, regulariser="none")
    near, far = (result.records[result.records["eps"] == eps] for eps in (0.5, 100))
    assert near["forwards"].sum() + far["forwards"].sum() == 100 * int(far["attacked"].sum())
    assert int(near["fooled"].sum()) < int(far["fooled"].sum())
    assert (near[near["fooled"]]["l2"] <= 0.5 + 1e-5).all()
    assert (result.records["violation"] == "").all()
