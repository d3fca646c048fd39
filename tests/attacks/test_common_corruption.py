"""Common corruptions by corrupt-tta: seeds, verification, and what happens without the library."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench
from bench.attacks import common_corruption
from bench.core.contracts.threat import VerifierInput
from bench.core.optional import missing_reason
from bench.core.rng import Noise
from bench.core.validation import Validator
from bench.engine.threats import corruption
from bench.engine.threats.corruption import CORRUPTIONS, SEVERITIES, Setting
from bench.suite import attack_tables, caveats
from bench.suite.attack_tables import SuiteDefaults
from bench.suite.identity import ModelFacts

needs_library = pytest.mark.skipif(
    bool(common_corruption.ATTACK.unavailable), reason="corrupt-tta is not installed"
)
TABLE = {
    "name": "common_corruption", "label": "c", "norm": "corruption", "eps": [1, 5],
    "vary": {"corruption": ["fog", "snow"]},
}  # fmt: skip


def make_noise(*ids: int) -> Noise:
    return Noise(0, "test", torch.tensor(ids), torch.zeros(len(ids), dtype=torch.int64))


@pytest.fixture(params=[(1, 28), (3, 32)], ids=["grey", "colour"])
def x(request: pytest.FixtureRequest) -> Tensor:
    channels, side = request.param
    pixels = torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(0))
    return (pixels * 255).round() / 255


def expand(raw: dict[str, Any], attack: bench.Attack | None = None) -> Any:
    check = Validator("this test")
    found = attack_tables.expand_table(check, raw, "", Path(), SuiteDefaults(), [], attack)
    check.stop_if_wrong()
    return found.entries


@needs_library
@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_the_example_alone_and_stays_in_the_box(
    name: corruption.Corruption, severity: int, x: Tensor
) -> None:
    setting = Setting(name, severity)
    both = corruption.corrupt(x, setting, make_noise(0, 1))
    assert torch.equal(both[1:], corruption.corrupt(x[1:], setting, make_noise(1)))
    assert both.shape == x.shape
    assert both.min() >= 0
    assert both.max() <= 1
    assert not torch.equal(both, x)


@needs_library
def test_another_example_gets_other_noise(x: Tensor) -> None:
    setting, same = Setting("gaussian_noise", 3), x[:1].expand(2, -1, -1, -1)
    first, second = corruption.corrupt(same, setting, make_noise(0, 1))
    assert not torch.equal(first, second)


@needs_library
def test_the_global_generators_are_restored(x: Tensor) -> None:
    before = torch.get_rng_state()
    corruption.corrupt(x, Setting("fog", 1), make_noise(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


@needs_library
def test_one_changed_pixel_value_is_a_violation(x: Tensor) -> None:
    params, noise = common_corruption.Params(corruption="contrast"), make_noise(0, 1)
    x_adv = corruption.corrupt(x, Setting("contrast", 2), noise)
    x_adv[1, 0, 0, 0] += 1 / 255
    given = VerifierInput(x_adv, torch.zeros(2, 2), x, "corruption", 2.0, params, noise)
    expected = "1 pixel values differ from contrast, severity 2 computed again, allowed 0"
    assert corruption.verify(given) == ["", expected]


@needs_library
def test_every_example_is_corrupted_and_none_counts_as_fooled_that_was_wrong_before() -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mean = x.mean((1, 2, 3))
            return torch.stack([0.5 - mean, mean - 0.5], dim=1)

    x = torch.full((4, 1, 28, 28), 0.4)
    found = bench.evaluate(
        Brightness(), x, torch.tensor([0, 0, 0, 1]), attack="common_corruption", device="cpu",
        norm="corruption", eps=[0, 5], params={"corruption": "brightness"},
    )  # fmt: skip
    records = found.records[found.records["eps"] == 5]
    assert records["attacked"].all()
    assert (records["adv_pred"] == 1).all()
    assert records["fooled"].tolist() == [True, True, True, False]
    assert (records["parameters"] == "brightness, severity 5").all()
    assert found.table["robust_correct"].tolist() == [3, 0]


@pytest.mark.parametrize("severity", [0.5, 2.5, 6, -1])
def test_a_severity_that_is_none_is_one_sentence(severity: float) -> None:
    expected = r"expected a severity of 1, 2, 3, 4 or 5 for corruption"
    with pytest.raises(bench.SuiteError, match=expected):
        expand(TABLE | {"eps": [severity]})


def test_an_unknown_corruption_is_named() -> None:
    with pytest.raises(bench.SuiteError, match="did you mean 'fog'"):
        expand(TABLE | {"vary": {"corruption": ["frog"]}})


def test_a_parameter_varied_over_texts_makes_one_attack_each() -> None:
    entries = expand(TABLE)
    assert [entry.label for entry in entries] == ["c, fog", "c, snow"]
    assert [entry.params.corruption for entry in entries] == ["fog", "snow"]
    assert {(entry.family, entry.varied, entry.value) for entry in entries} == {("c", "", None)}


def test_without_the_library_every_cell_is_skipped_with_the_way_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "corrupt_tta", None)
    reason = missing_reason("corrupt_tta", "corruptions")
    attack = dataclasses.replace(common_corruption.ATTACK, unavailable=reason)
    facts = ModelFacts(10, (1, 28, 28))
    reasons = [caveats.find_skip_reason(entry, facts, facts) for entry in expand(TABLE, attack)]
    assert len(reasons) == 2
    assert all('pip install "robustness-bench[corruptions]"' in reason for reason in reasons)
