"""An ensemble: its parts on what those before left, its verdicts the model's, its counts exact."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import bench
from bench.attacks import autoattack
from bench.core import registry
from bench.core.contracts.attack import AttackSpec, EnsembleAttack
from bench.core.errors import SuiteError
from bench.evaluation.crafting import Examples
from bench.evaluation.ensemble import run_ensemble
from bench.models import lenet as lenet_architecture
from bench.models.published_weights import WEIGHTS

Batch = tuple[Tensor, Tensor]
SHORT = {"steps": 8, "targets": 2, "queries": 20}
N = 24
EPS = [0.03, 0.06]


def evaluate(model: nn.Module, batch: Batch, attack: str = "autoattack", **settings: Any) -> Any:
    settings = {"eps": EPS, "params": SHORT, "device": "cpu"} | settings
    return bench.evaluate(model, *batch, attack=attack, **settings)


@pytest.fixture
def batch(digits: Batch) -> Batch:
    return digits[0][:N], digits[1][:N]


@pytest.fixture(scope="module")
def evaluation(_digits: Batch) -> Any:
    """The evaluation that several tests read."""
    net = lenet_architecture.build()
    net.load_state_dict(load_file(WEIGHTS / "lenet-digits.safetensors"))
    return evaluate(net.eval(), (_digits[0][:N], _digits[1][:N]))


@pytest.fixture(scope="module")
def records(evaluation: Any) -> pd.DataFrame:
    frame: pd.DataFrame = evaluation.records
    return frame


def robust(records: pd.DataFrame, eps: float) -> set[int]:
    at = records[(records["eps"] == eps) & records["clean_correct"] & ~records["fooled"]]
    return set(at["example"])


def test_every_fooled_example_names_the_part_that_broke_it_and_no_other_does(
    records: pd.DataFrame,
) -> None:
    labels = {part.label for part in autoattack.parts(autoattack.Params(), "linf")}
    assert set(records[records["fooled"]]["part"]) <= labels
    assert set(records[~records["fooled"]]["part"]) == {""}
    assert records["fooled"].any()
    assert (records["violation"] == "").all()


def test_it_leaves_no_more_than_its_first_part_alone(
    lenet: nn.Module, batch: Batch, records: pd.DataFrame
) -> None:
    first = autoattack.parts(autoattack.Params(**SHORT), "linf")[0]
    params = {"steps": first.params.steps}
    alone = evaluate(lenet, batch, first.name, params=params).records
    for eps in EPS:
        here = records[(records["eps"] == eps) & (records["part"] == first.label)]
        assert robust(records, eps) <= robust(alone, eps)
        assert set(here["example"]) == set(
            alone[(alone["eps"] == eps) & alone["fooled"]]["example"]
        )


def test_the_table_counts_what_each_part_broke(evaluation: Any) -> None:
    for row in evaluation.table.itertuples():
        counts = dict(pair.split(": ") for pair in row.parts.split(", "))
        assert list(counts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
        assert sum(map(int, counts.values())) == row.fooled


def test_outcomes_depend_neither_on_the_rows_of_a_pass_nor_on_the_accelerated_model(
    lenet: nn.Module, batch: Batch, records: pd.DataFrame
) -> None:
    other = evaluate(lenet, batch, batch_size=7, copied=False).records
    assert other["fooled"].tolist() == records["fooled"].tolist()


def test_a_later_part_attacks_only_what_is_still_robust(lenet: nn.Module, batch: Batch) -> None:
    own = evaluate(lenet, batch, eps=0.4).records
    early = own[own["part"] == "apgd-ce"]
    assert len(early) > N - 6
    assert (early["forwards"] <= SHORT["steps"]).all()


CHEAT = """
from dataclasses import dataclass, replace
from bench import Attack
from bench.attacks import autoattack
from bench import Part

@dataclass(frozen=True, kw_only=True)
class Params:
    pass

NEGATIVE = Attack(
    summary="the negative, whatever eps is", source="this test", params=Params,
    norms=("linf",), goals=("untargeted",), run=lambda model, x, y, threat, params, noise: 1 - x,
)
CHEAT = Part("cheat", "cheat", NEGATIVE, Params())
APGD = autoattack.parts(autoattack.Params(steps=8, targets=2, queries=20), "linf")[0]
ALONE = replace(NEGATIVE, run=None, parts=lambda params, norm: [CHEAT])
HELPED = replace(NEGATIVE, run=None, parts=lambda params, norm: [CHEAT, APGD])
"""


@pytest.mark.parametrize("name", ["ALONE", "HELPED"])
def test_a_part_that_leaves_the_ball_breaks_nothing_and_hides_nothing_from_later_parts(
    lenet: nn.Module, batch: Batch, records: pd.DataFrame, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "cheat.py"
    file.write_text(CHEAT)
    own = evaluate(lenet, batch, f"{file}:{name}", eps=0.06, params={}).records
    own = own[own["clean_correct"]]
    broken = (records["eps"] == 0.06) & (records["part"] == "apgd-ce")
    assert own["fooled"].sum() == (broken.sum() if name == "HELPED" else 0)
    assert (own["violation"] != "").sum() > 10
    assert (own["fooled"] == (own["violation"] == "")).all()


def test_a_model_of_three_classes_is_refused_with_a_reason() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.full((4, 1, 8, 8), 0.5)
    with torch.no_grad():
        y = model(x).argmax(1)
    with pytest.raises(SuiteError, match="needs at least 4 classes, the model has 3"):
        bench.evaluate(model, x, y, attack="autoattack", eps=0.1, device="cpu")


def test_images_that_are_not_square_and_have_two_channels_are_attacked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 6 * 9, 5)).eval()
    x = torch.rand(6, 2, 6, 9)
    with torch.no_grad():
        y = model(x).argmax(1)
    table = evaluate(model, (x, y), eps=0.3).table
    assert table["status"].item() == "ok"
    assert table["fooled"].item() > 0


def test_the_final_verdict_is_the_same_in_every_order_of_the_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
    model.requires_grad_(False).eval()
    x = torch.rand(16, 1, 6, 6, generator=generator)
    label, none = model(x).argmax(1), torch.full((16,), -1)
    chosen = Examples(torch.arange(16), x, label, none, label, torch.ones(16), torch.ones(16))
    attack = registry.find("attacks", "autoattack")
    params = autoattack.Params(steps=2, targets=1, queries=6)
    spec = AttackSpec(name="autoattack", attack=attack, params=params, norm="linf", eps=(0.012,))
    first = set()
    verdicts = set()
    for order in itertools.permutations(autoattack.parts(params, "linf")):
        permuted = replace(attack, parts=lambda params, norm, order=order: order)
        found = run_ensemble(model, replace(spec, attack=permuted), chosen, 16)
        verdicts.add(tuple((found.part[0] >= 0).tolist()))
        first.add(tuple(order[k].label if k >= 0 else "" for k in found.part[0].tolist()))
    (broken,) = verdicts
    assert 0 < sum(broken) < 16
    assert len(first) > 2  # which part breaks an example first does depend on the order


def test_a_nested_sweep_inherits_what_a_smaller_eps_broke(
    lenet: nn.Module, batch: Batch, tmp_path: Any
) -> None:
    suite = (
        'schema = 1\nname = "n"\nsweep = "nested"\n[data]\nname = "digits"\nlimit = 24\n'
        '[[models]]\nname = "lenet"\nweights = "digits"\n[[attacks]]\nname = "autoattack"\n'
        'norm = "linf"\neps = [0.06, 0.03]\n'
        "params = { steps = 8, targets = 2, queries = 20 }\n"
    )
    (tmp_path / "n.toml").write_text(suite, encoding="utf-8")
    run = bench.run(str(tmp_path / "n.toml"), out=tmp_path / "out", device="cpu")
    large, small = run.table["robust_correct"]
    assert large <= small
    assert isinstance(registry.find("attacks", "autoattack"), EnsembleAttack)
