"""An external part of an ensemble is treated as the same attack is outside of one.

It gets the model itself and never an accelerated one, so there is nothing to compare on what it
leaves: not with an accelerated model that answers otherwise, in an ensemble or out of it.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.core import registry
from bench.core.contracts.attack import Attack, AttackSpec, EnsembleAttack, Part
from bench.evaluation.crafting import Examples
from bench.evaluation.ensemble import run_ensemble
from bench.evaluation.judge import judge
from bench.evaluation.verify import craft_and_verify

EPS = 0.1
ROWS = 8


@dataclass(frozen=True, kw_only=True)
class Params:
    """No params."""


class Mean(nn.Module):
    """Class 1 where the mean of an image is above an edge, or below it for a negative slope."""

    def __init__(self, edge: float, slope: float = 10.0) -> None:
        super().__init__()
        self.edge, self.slope = edge, slope

    def forward(self, x: Tensor) -> Tensor:
        score = self.slope * (x.flatten(1).mean(1, keepdim=True) - self.edge)
        return torch.cat([-score, score], 1)


def brighten(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """Add eps where the model's answer says that this is enough; leave all other images."""
    brighter = (x + EPS).clamp(0, 1)
    return torch.where((model(brighter).argmax(1) == 1)[:, None, None, None], brighter, x)


EXTERNAL = Attack(
    summary="brighter", source="this test", params=Params, norms=("linf",), run=brighten
)
PGD = registry.find("attacks", "pgd")


def spec_of(parts: list[Part] | None) -> AttackSpec:
    """Describe the external attack, alone or in an ensemble."""
    attack: Any = EXTERNAL
    if parts is not None:
        attack = EnsembleAttack(
            summary="s", source="s", params=Params, norms=("linf",), parts=lambda *_: parts
        )
    return AttackSpec(name="brighter", attack=attack, params=Params(), norm="linf", eps=(EPS,))


@pytest.fixture
def examples() -> Examples:
    """Images of class 0, from such that nothing turns to such that little does."""
    x = torch.linspace(0.1, 0.59, ROWS)[:, None, None, None].expand(ROWS, 1, 4, 4).clone()
    ids = torch.arange(ROWS)
    pred, confidence, _, agreement = judge(MODEL, x, ROWS)[:4]
    return Examples(ids, x, pred, ids - ids - 1, pred, confidence, agreement)


MODEL = Mean(0.6).eval()
OTHER = Mean(0.2, slope=-10.0).eval()
"""An accelerated model that answers otherwise nearly everywhere."""
PART = Part("brighter", "brighter", EXTERNAL, Params())


def test_it_finds_the_same_at_the_same_cost(examples: Examples) -> None:
    alone = craft_and_verify(MODEL, spec_of(None), examples, ROWS, accelerated=OTHER)
    inside = run_ensemble(MODEL, spec_of([PART]), examples, ROWS, OTHER)
    fooled = alone.predictions[0].pred == 1
    assert 0 < fooled.sum() < ROWS
    assert torch.equal(inside.part[0] == 0, fooled)
    assert torch.equal(inside.x_adv[0][fooled], alone.output.x_adv[0][fooled])
    assert torch.equal(inside.forwards, alone.output.forwards)
    assert torch.equal(inside.backwards, alone.output.backwards)
    assert (inside.dropped, alone.output.dropped) == ("", "")


@pytest.mark.parametrize("first", [True, False])
def test_a_part_beside_it_is_still_compared_with_the_model(examples: Examples, first: bool) -> None:
    rule = Part("pgd", "pgd", PGD, PGD.params(steps=2, alpha=0.01))
    parts = [PART, rule] if first else [rule, PART]
    output = run_ensemble(MODEL, spec_of(parts), examples, ROWS, OTHER)
    assert output.dropped.startswith("on images that it left standing")
    assert (output.part[0] == parts.index(PART)).any()
