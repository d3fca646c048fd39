"""A gradient that is NaN in some pixels: these count as 0, and the run says so."""

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
from bench.engine import stream
from bench.evaluation.audit import symptoms

BUILT_IN = [name for name in registry.names("attacks") if not name.endswith(":")]
LED = [
    name
    for name in BUILT_IN
    if isinstance(registry.find("attacks", name), IterativeAttack)
    and registry.find("attacks", name).needs == "gradient"
]
RADII: dict[Norm, float] = {"linf": 0.1, "l2": 1.5, "l1": 8.0, "l0": 20.0}


class Rooted(nn.Module):
    """A net behind a square root, whose slope at the pixels that are 0 is 0 times infinity."""

    def __init__(self, net: nn.Module, safe: bool) -> None:
        super().__init__()
        self.net, self.safe = net, safe

    def forward(self, x: Tensor) -> Tensor:
        if self.safe:  # the same values, and slopes of 0 there
            roots = torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)
        else:
            roots = (x * (x > 0)).sqrt()
        return self.net(roots)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", LED)
def test_an_attack_does_as_well_as_where_the_square_root_is_safe(
    name: str, lenet: nn.Module, digits: Any, attacked: Callable[..., stream.StreamResult]
) -> None:
    x, y = (part[:5] for part in digits)
    attack = registry.find("attacks", name)
    settable = {field.name for field in dataclasses.fields(attack.params)}
    few = {key: value for key, value in {"steps": 6, "targets": 2}.items() if key in settable}
    lenet.requires_grad_(False)
    for norm in attack.norms:
        settings = {"norm": norm, "params": few, "stop": "never"}
        sound, spoilt = (
            attacked(Rooted(lenet, safe), x, y, name, RADII[norm], **settings)
            for safe in (True, False)
        )
        assert torch.equal(spoilt.x_adv, sound.x_adv)
        assert torch.equal(spoilt.first_success, sound.first_success)
        assert not sound.nonfinite.any()
        assert (spoilt.nonfinite > 0).any()
        assert (spoilt.nonfinite <= spoilt.backwards.ceil()).all()


class Breaking(nn.Module):
    """A net whose logits are not finite as soon as an image is anything but clean."""

    def __init__(self, net: nn.Module, clean: Tensor, value: float) -> None:
        super().__init__()
        self.net, self.clean, self.value = net, clean, value

    def forward(self, x: Tensor) -> Tensor:
        same = (x[:, None] == self.clean).flatten(2).all(2).any(1)
        return self.net(x) + torch.where(same, 0.0, self.value)[:, None]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*LED, "square"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_not_finite_are_no_success_and_leave_the_images_finite(
    name: str, value: float, lenet: nn.Module, digits: Any,
    attacked: Callable[..., stream.StreamResult],
) -> None:  # fmt: skip
    x, y = (part[:3] for part in digits)
    attack = registry.find("attacks", name)
    settable = {field.name for field in dataclasses.fields(attack.params)}
    few = {key: value for key, value in {"steps": 3, "targets": 1}.items() if key in settable}
    net = Breaking(lenet.requires_grad_(False), x, value)
    for norm in attack.norms:
        result = attacked(net, x, y, name, RADII[norm], norm=norm, params=few)
        assert (result.first_success < 0).all()
        assert result.x_adv.isfinite().all()


def test_what_was_not_finite_is_counted_in_the_table_and_named_in_the_audit(
    lenet: nn.Module, digits: Any
) -> None:
    x, y = (part[:20] for part in digits)
    settings: dict[str, Any] = {"eps": [0.0, 0.1], "params": {"steps": 5}, "stop": "never"}
    spoilt, safe = (bench.evaluate(Rooted(lenet, each), x, y, **settings) for each in (False, True))
    table = spoilt.table
    assert list(table["robust_correct"]) == list(safe.table["robust_correct"])
    attacked = int(table["attacked"].iloc[1])
    assert list(table["nonfinite_examples"]) == [0, attacked]
    assert list(table["nonfinite_gradients"]) == [0, 5 * attacked]
    assert "nonfinite_gradients" not in safe.table.columns
    (symptom,) = (each for each in spoilt.audit.symptoms if each.threshold == "any")
    assert (symptom.name, symptom.count, symptom.n) == (
        symptoms.NO_GRADIENT.name, attacked, attacked,
    )  # fmt: skip
