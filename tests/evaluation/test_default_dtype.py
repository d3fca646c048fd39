"""A program whose tensors are float64 by default gets the records of any other."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bench

Batch = tuple[Tensor, Tensor]
ATTACKS: dict[str, dict[str, Any]] = {
    "a ball": {"attack": "pgd", "params": {"steps": 3}},
    "a search": {"attack": "fmn", "norm": "l2", "eps": 1, "params": {"steps": 3}},
    "labels": {"attack": "rays", "params": {"steps": 8}},
    "a family": {
        "attack": "rotation_translation", "norm": "rotation-translation", "eps": 0.5,
        "params": {"angles": 3, "shifts": 1},
    },
    "an attack of a library": {"attack": "torchattacks:FGSM"},
}  # fmt: skip


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def few(digits: Batch) -> Batch:
    return digits[0][:6], digits[1][:6]


@pytest.mark.parametrize("kind", ATTACKS)
def test_the_records_are_those_of_float32(
    kind: str, lenet: nn.Module, few: Batch, float64_by_default: None
) -> None:
    settings = {"eps": 0.1, "device": "cpu", "audit": kind == "a ball", **ATTACKS[kind]}
    found = bench.evaluate(lenet, *few, **settings)
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)
    expected = bench.evaluate(lenet, *few, **settings)
    assert found.records.equals(expected.records)
    assert found.findings == expected.findings


def test_a_benchmark_runs_and_gives_the_default_back_after_a_mistake_too(
    lenet: nn.Module, few: Batch, float64_by_default: None
) -> None:
    found = bench.benchmark({"net": lenet}, few, attacks=["fgsm"], eps=0.1, device="cpu")
    assert found.table["status"].tolist() == ["ok"]
    assert torch.get_default_dtype() == torch.float64
    with pytest.raises(bench.SuiteError):
        bench.evaluate(lenet, *few, attack="pgdd", eps=0.1)
    assert torch.get_default_dtype() == torch.float64


SUITE = """
schema = 1
name = "small"
[data]
name = "digits"
limit = 20
[[models]]
name = "mine.py:make"
allow = ["near-chance", "zero-gradient"]
[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.1]
params = { steps = 2 }
"""
MINE = """
import torch
from torch import nn
torch.set_default_dtype(torch.float64)

def make():
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).float()
    nn.init.zeros_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    return net  # of which each image is of class 0, as some are
"""


def test_a_file_of_a_suite_that_sets_the_type_fails_no_cell_and_changes_no_program(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "small.toml").write_text(SUITE)
    found = bench.run(tmp_path / "small.toml", out=tmp_path / "run", device="cpu")
    assert found.table["status"].tolist() == ["ok"]
    assert found.table["attacked"][0] > 0
    assert torch.get_default_dtype() == torch.float32


def test_a_doubt_is_a_warning_at_the_line_of_the_caller(few: Batch) -> None:
    constant = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    nn.init.zeros_(constant[1].weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        bench.evaluate(constant, *few, attack="fgsm", eps=0.1, audit=False, device="cpu")
    (doubt,) = [each for each in caught if each.category is bench.RobustnessWarning]
    assert doubt.filename == __file__
