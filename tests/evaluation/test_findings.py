"""What `bench.evaluate` says beside its numbers, so that no trap passes for robustness."""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.core import registry
from bench.core.errors import ContractError, RobustnessWarning, SuiteError
from bench.datasets.as_data import as_data
from bench.evaluation.audit import symptoms

HERE = Path(__file__).parents[1] / "helpers"


def asked(net: nn.Module, digits: tuple[Tensor, Tensor], **settings: Any) -> bench.Evaluation:
    """A short PGD on the first digits."""
    x, y = (each[:16] for each in digits)
    params = {"steps": 3}
    return bench.evaluate(net, x, y, eps=0.1, params=params, device="cpu", **settings)


class Wrapped(nn.Module):
    """A net behind one of the accidents below."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class WithoutGradients(Wrapped):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits


class OfTheBatch(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x - x.mean(0))
        return logits


class Stuck(Wrapped):
    """Batch norm in the first layer, which evaluation mode does not reach."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.norm = nn.BatchNorm2d(1)

    def train(self, mode: bool = True) -> "Stuck":
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self.norm(x))
        return logits


def test_a_sound_net_has_no_finding_and_its_evaluation_unpacks(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation = asked(lenet, digits)
    assert (evaluation.findings, evaluation.audit.symptoms) == ((), [])
    table, records, adversarial = evaluation
    assert table is evaluation.table
    assert records is evaluation.records
    assert adversarial is None


@pytest.mark.parametrize(
    ("accident", "code"),
    [(WithoutGradients, "zero-gradient"), (OfTheBatch, "batch-dependent")],
)
def test_what_preflight_found_is_a_finding_and_a_warning(
    accident: type[Wrapped], code: str, lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.warns(RobustnessWarning, match=code):
        evaluation = asked(accident(lenet).eval(), digits)
    assert any(f"({code})" in finding for finding in evaluation.findings)


def test_batch_norm_stuck_in_training_is_named_and_the_attack_is_not(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(ContractError, match=r"its module 'norm' \(BatchNorm2d\) stays in training"):
        asked(Stuck(lenet), digits)


def test_the_records_are_audited_and_the_model_probed_where_that_is_asked_for(
    lenet: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    trap = registry.find("models", "traps.py:Saturated", HERE)(lenet)
    with pytest.warns(RobustnessWarning, match="saturated loss"):
        evaluation = asked(trap, digits)
    missing = {each.name: each.why for each in evaluation.audit.unchecked}
    assert "more than a tenth" in missing[symptoms.NO_GRADIENT.name]
    assert symptoms.WRONG_GRADIENT.name not in missing  # a few gradients are compared in any case
    full = asked(trap, digits, audit=True).audit
    assert symptoms.NO_GRADIENT.name not in {each.name for each in full.unchecked}
    assert symptoms.FLAT_LOSS.name in {sign.name for sign in full.symptoms}


def test_images_without_labels_are_refused(digits: tuple[Tensor, Tensor], lenet: nn.Module) -> None:
    given = as_data(digits[0][:4], digits[1][:4])
    with pytest.raises(SuiteError, match="data given: expected labels, got images alone; give"):
        bench.evaluate(lenet, dataclasses.replace(given, labels=None), eps=0.1, device="cpu")
