"""Threat models without a norm, from the attack to records and table."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.attacks import pgd
from bench.attacks import rotation_translation as attack
from bench.engine.threats.rotation_translation import transform

FAMILY = "rotation-translation"
SMALL = attack.Params(angles=5, shifts=3)


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """No parameters."""


@pytest.fixture
def corner_net() -> nn.Module:
    """Class 1 if the upper left quarter is the brightest, else class 0."""

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            quarter = x[:, 0, :7, :7].mean((1, 2))
            return torch.stack([x[:, 0].mean((1, 2)), quarter], dim=1)

    return Corner()


@pytest.fixture
def dots() -> tuple[Tensor, Tensor]:
    """Four images of 14 x 14 with one bright square in the upper left, further in each time."""
    x = torch.zeros(4, 1, 14, 14)
    for row, place in enumerate((1, 3, 4, 5)):
        x[row, 0, place : place + 3, place : place + 3] = 1
    return x, torch.ones(4, dtype=torch.int64)


def evaluate(net: nn.Module, data: tuple[Tensor, Tensor], **settings: Any) -> bench.Evaluation:
    given = {"norm": FAMILY, "eps": 1, "device": "cpu", "keep_adversarial": True} | settings
    return bench.evaluate(net, *data, **given)


def lying(change: Any) -> bench.Attack:
    """An attack on the family whose images or parameters `change` falsifies."""

    def run(
        model: nn.Module, x: Tensor, y: Tensor, threat: bench.Threat, params: Any, noise: Any
    ) -> Any:
        parameters = torch.tensor([[10.0, 0.0, 0.0]] * len(x), dtype=torch.float64)
        return change(bench.TransformedBatch(transform(x, parameters), parameters))

    return bench.Attack(
        summary="lies", source="a test", params=Nothing, norms=(FAMILY,), needs="labels", run=run
    )  # fmt: skip


def test_the_recorded_parameters_make_the_recorded_image(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    found = evaluate(corner_net, dots, attack="rotation_translation")
    assert found.adversarial is not None
    fooled = found.records["fooled"].to_numpy()
    assert fooled.any()
    for row in fooled.nonzero()[0]:
        words = found.records["parameters"][row].replace(",", "").split()
        values = torch.tensor([[float(words[at]) for at in (1, 3, 5)]], dtype=torch.float64)
        again = transform(dots[0][row : row + 1], values)
        assert torch.allclose(again[0], found.adversarial[0, row], atol=1e-5)


def test_an_example_that_no_transform_breaks_is_the_clean_image_without_parameters(
    dots: tuple[Tensor, Tensor],
) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([-3.0, 5.0]).expand(len(x), 2) + 0 * x.sum((1, 2, 3))[:, None]

    found = evaluate(
        Constant(), dots, attack="rotation_translation", params={"angles": 3, "shifts": 1}
    )
    assert found.table["robust_correct"].item() == 4
    assert (found.records["parameters"] == "").all()
    assert found.adversarial is not None
    assert torch.equal(found.adversarial[0], dots[0])


def test_the_grid_goes_from_weak_to_strong_and_leaves_out_the_identity() -> None:
    grid = attack.build_grid(1.0, 28, 28, SMALL)
    strength = (grid.abs() / torch.tensor([30.0, 3.0, 3.0])).amax(1)
    assert len(grid) == 5 * 3 * 3 - 1
    assert strength.min() > 0
    assert torch.equal(strength, strength.sort().values)


def test_the_worst_of_the_grid_is_what_every_point_alone_says(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    x, y = dots
    found = evaluate(
        corner_net, dots, attack="rotation_translation", params={"angles": 5, "shifts": 3}
    )
    grid = attack.build_grid(1.0, 14, 14, SMALL)
    robust = torch.ones(4, dtype=torch.bool)
    for parameters in grid:
        robust &= corner_net(transform(x, parameters.expand(4, 3))).argmax(1) == y
    assert (~found.records["fooled"]).tolist() == robust.tolist()
    assert 0 < robust.sum() < 4


def test_an_image_that_is_not_of_the_family_is_a_violation_and_no_success(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    black = lying(lambda batch: batch._replace(x_adv=torch.zeros_like(batch.x_adv)))
    records = evaluate(corner_net, dots, attack=black).records
    assert records["violation"].str.contains("image differs").all()
    assert not records["fooled"].any()


def test_an_attack_that_declares_no_parameters_fails_with_what_was_expected(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(bench.ContractError, match="expected the attack to return a TransformedB"):
        evaluate(corner_net, dots, attack=lying(lambda batch: batch.x_adv))


def test_a_level_out_of_range_is_one_sentence(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(bench.SuiteError, match=r"expected a level in \[0, 1\].*got 2"):
        evaluate(corner_net, dots, attack="rotation_translation", eps=2)


def test_an_attack_on_a_ball_refuses_a_family_by_name(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(bench.SuiteError, match="attack 'pgd' has no norm 'rotation-translation'"):
        evaluate(corner_net, dots, attack="pgd")


@pytest.mark.parametrize("changed", [{"budget": "minimum"}, {"run": None, "rule": pgd.ATTACK.rule}])
def test_a_rule_or_a_search_on_a_family_is_refused(
    changed: dict[str, Any], corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    other = dataclasses.replace(lying(lambda batch: batch), **changed)
    expected = "expected a function `run` and a fixed budget for a threat without a norm"
    with pytest.raises(bench.SuiteError, match=expected):
        evaluate(corner_net, dots, attack=other)


def test_queries_are_not_counted_within_a_family(
    corner_net: nn.Module, dots: tuple[Tensor, Tensor]
) -> None:
    settings = {"attack": "rotation_translation", "params": {"angles": 3, "shifts": 3}}
    found = evaluate(corner_net, dots, batch_size=1, **settings)
    assert found.table["status"].item() == "ok"
    assert found.records["queries"].isna().all()
    assert found.queries.empty
    with pytest.raises(bench.SuiteError, match="queries are counted for threat models in a norm"):
        evaluate(corner_net, dots, batch_size=1, budgets=[5], **settings)


def test_level_0_is_the_clean_image(corner_net: nn.Module, dots: tuple[Tensor, Tensor]) -> None:
    found = evaluate(corner_net, dots, attack="rotation_translation", eps=0)
    assert found.table["robust_correct"].item() == found.table["clean_correct"].item() == 4
