"""Queries: counted where the model is called, and one run in place of one at each budget."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.analysis import queries
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.types import Norm
from bench.core.errors import SuiteError
from bench.evaluation import chunk_records, crafting, metrics
from bench.evaluation.queries import QueryObserver

N = 12
ATTACKS: list[tuple[str, Norm, float, dict[str, Any]]] = [
    ("square", "linf", 0.15, {}),
    ("square", "linf", 0.12, {"restarts": 2}),
    ("square", "l2", 2.0, {}),
    ("hopskipjump", "l2", 6.0, {"directions": 20}),
    ("hopskipjump", "linf", 0.35, {"directions": 20}),
    ("surfree", "l2", 3.5, {}),
    ("rays", "linf", 0.15, {}),
]
every = pytest.mark.parametrize(("name", "norm", "eps", "params"), ATTACKS)


class Counter(nn.Module):
    """A model that counts the rows it is asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.rows = model, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        logits: Tensor = self.model(x)
        return logits


def evaluate(
    lenet: nn.Module,
    digits: tuple[Tensor, Tensor],
    name: str,
    norm: Norm,
    eps: Any,
    **settings: Any,
) -> bench.Evaluation:
    x, y = digits
    chosen = {"batch_size": N, "device": "cpu", "copied": False} | settings
    return bench.evaluate(lenet, x[:N], y[:N], attack=name, norm=norm, eps=eps, **chosen)


@every
def test_the_wrapper_of_the_model_counts_what_the_engine_says(
    name: str, norm: Norm, eps: float, params: dict[str, Any], lenet: nn.Module, digits: Any
) -> None:
    x, y = digits[0][:N], digits[1][:N]
    found, counter = registry.find("attacks", name), Counter(lenet.requires_grad_(False))
    spec = AttackSpec(
        name=name, attack=found, params=found.params(**{"steps": 60, **params}), norm=norm,
        eps=(eps,), stop="never" if found.budget == "minimum" else "first-success",
    )  # fmt: skip
    examples = crafting.Examples(
        torch.arange(N), x, y, torch.full((N,), -1), y, torch.ones(N), torch.ones(N)
    )
    output = crafting.craft(counter, spec, examples, 7)
    assert counter.rows == output.forwards.sum()
    assert counter.rows > N


@every
@pytest.mark.parametrize("budget", [13, 60])
def test_one_run_holds_the_run_at_each_smaller_budget_example_by_example(
    name: str,
    norm: Norm,
    eps: float,
    params: dict[str, Any],
    budget: int,
    lenet: nn.Module,
    digits: Any,
) -> None:
    whole = evaluate(lenet, digits, name, norm, eps, params={"steps": 150, **params})
    # Restarts divide what one run of them makes: only a run of the first one is short.
    once = {**params, **({"restarts": 1} if "restarts" in params else {})}
    short = evaluate(lenet, digits, name, norm, eps, params={"steps": budget, **once})
    within = whole.records["fooled"] & (whole.records["queries"] <= budget)
    assert within.tolist() == short.records["fooled"].tolist()
    both = within.to_numpy()
    assert (whole.records["queries"][both] == short.records["queries"][both]).all()


@pytest.mark.parametrize(("name", "norm"), [(a[0], a[1]) for a in ATTACKS if a[0] != "square"])
def test_the_distance_within_a_budget_is_that_of_a_run_with_as_many_queries(
    name: str, norm: Norm, lenet: nn.Module, digits: Any
) -> None:
    whole = evaluate(
        lenet, digits, name, norm, [0.1, 0.3], params={"steps": 150}, budgets=[20, 90, 150]
    )
    for at, budget in enumerate((20, 90, 150)):
        short = evaluate(lenet, digits, name, norm, [0.1], params={"steps": budget})
        attacked = short.records["attacked"].to_numpy()
        recorded = [values[at] for values in whole.records["distance_within"][:N][attacked]]
        assert recorded == pytest.approx(short.records["distance"][attacked].tolist(), abs=1e-5)
    assert np.isfinite(recorded).any()


@every
def test_every_fooled_example_and_no_other_fell_at_a_query(
    name: str, norm: Norm, eps: float, params: dict[str, Any], lenet: nn.Module, digits: Any
) -> None:
    found = evaluate(lenet, digits, name, norm, [eps / 2, eps], params={"steps": 120, **params})
    rows = found.records[found.records["attacked"]]
    assert (np.isfinite(rows["queries"]) == rows["fooled"]).all()
    assert rows["fooled"].any()
    most = 120 * params.get("restarts", 1)
    assert rows.loc[rows["fooled"], "queries"].between(1, most).all()
    assert found.records.loc[~found.records["attacked"], "queries"].isna().all()


def test_an_attack_with_gradients_has_no_queries(lenet: nn.Module, digits: Any) -> None:
    found = evaluate(lenet, digits, "pgd", "linf", 0.1)
    assert found.records["queries"].isna().all()
    assert found.queries.empty


def test_a_transfer_asks_the_judged_model_nothing(lenet: nn.Module, digits: Any) -> None:
    other = registry.find("models", "lenet").build().eval()
    other.load_state_dict(lenet.state_dict())
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    found = evaluate(lenet, digits, "square", "linf", 0.2, params={"steps": 20}, source=other)
    assert found.records["queries"].isna().all()


# ------------------------------------------------------------------- attacks with their own loop


def guess(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Asks about darker and darker images, five at a time, and returns the first that fools."""
    for first in range(0, 20, 5):
        steps = torch.arange(first + 1, first + 6).view(-1, 1, 1, 1, 1) / 40
        tried = (x - steps).clamp(0, 1)
        with torch.no_grad():
            wrong = model(tried.flatten(0, 1)).argmax(1).view(5, len(x)) != y
        for at in range(5):
            if wrong[at].all():
                return tried[at]
    return x


GUESS = bench.Attack(
    summary="darker images", source="this test", params=registry.find("attacks", "noise").params,
    norms=("linf",), goals=("untargeted",), needs="labels",
    run=lambda model, x, y, threat, params, noise: guess(model, x, y),
)  # fmt: skip


def test_an_attack_with_a_loop_of_its_own_is_counted_one_example_at_a_time(
    lenet: nn.Module, digits: Any
) -> None:
    found = evaluate(lenet, digits, GUESS, "linf", 0.5, batch_size=1, budgets=[5, 20])
    rows = found.records[found.records["attacked"]]
    assert rows["fooled"].any()
    won = rows[rows["fooled"]]
    # The k-th image of the series is k / 40 darker: the distance says which one it was.
    assert (won["queries"] == (won["linf"] * 40).round()).all()
    assert found.queries["budget"].tolist() == [5, 20]
    assert found.queries["robust_correct"].iloc[1] == found.table["robust_correct"].iloc[0]


def test_on_larger_batches_its_queries_are_unknown_and_no_number(
    lenet: nn.Module, digits: Any
) -> None:
    found = evaluate(lenet, digits, GUESS, "linf", 0.5, batch_size=4)
    assert found.records["queries"].isna().all()
    assert found.queries["status"].tolist() == ["unknown"]
    assert "batch_size = 1" in found.queries["reason"].iloc[0]
    assert found.queries["robust_correct"].isna().all()


def test_an_observed_query_counts_only_in_ball_and_box() -> None:
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    observer = QueryObserver(x, y, "untargeted", "linf", [0.1, 0.3], [2, 4])
    wrong = torch.tensor([[0.0, 1.0]])
    for value in (0.9, 1.2, 0.7, 0.55):
        observer.record(torch.full((1, 1, 1, 1), value), wrong)
    assert observer.queries == 4
    assert observer.fell == [4, 3]
    assert observer.nearest == pytest.approx([0.4, 0.05])


def test_an_image_that_was_not_asked_about_takes_one_query_more() -> None:
    inf, nan = torch.inf, torch.nan
    settled = chunk_records.settle_queries(
        torch.tensor([3.0, inf, 5.0, nan]),
        torch.tensor([9.0, 9.0, 9.0, 9.0]),
        torch.tensor([True, True, False, True]),
    )
    assert settled[:3].tolist() == [3, 10, inf]
    assert settled[3].isnan()


# --------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("attack", "settings", "part"),
    [
        ("pgd", {"budgets": [10]}, "does not search by the model's scores or labels"),
        ("square", {"budgets": [10, 5]}, "expected ascending numbers of queries"),
        ("square", {"budgets": []}, "expected at least one number of queries"),
        ("square", {"budgets": [10, 500], "params": {"steps": 100}}, "expected at most 100"),
        ("square", {"budgets": [0]}, "budgets"),
        ("square", {"budgets": [10], "samples": 2}, "expected samples = 1"),
        (GUESS, {"budgets": [10]}, "expected batch_size = 1 beside budgets"),
    ],
)
def test_a_mistake_in_the_budgets_is_one_sentence(
    attack: Any, settings: dict[str, Any], part: str, lenet: nn.Module, digits: Any
) -> None:
    with pytest.raises(SuiteError) as error:
        evaluate(lenet, digits, attack, "linf", 0.1, **settings)
    assert len(error.value.problems) == 1
    assert part in error.value.problems[0]


# ------------------------------------------------------------------------------------------ table


def test_the_table_counts_from_the_records(lenet: nn.Module, digits: Any) -> None:
    found = evaluate(
        lenet, digits, "square", "linf", [0.1, 0.2], params={"steps": 150}, budgets=[20, 150]
    )
    assert list(found.queries) == list(queries.COLUMNS)
    for row in found.queries.to_dict("records"):
        cell = found.records[found.records["eps"] == row["eps"]]
        fell = cell[cell["queries"] <= row["budget"]]
        assert row["fooled"] == len(fell)
        assert row["robust_correct"] == cell["clean_correct"].sum() - len(fell)
        assert row["robust_low"] < row["robust_accuracy"] < row["robust_high"]
        if len(fell):
            assert row["median_queries"] == fell["queries"].median()
            assert row["mean_queries"] == pytest.approx(fell["queries"].mean())
    full = found.queries[found.queries["budget"] == 150]
    assert full["robust_correct"].tolist() == found.table["robust_correct"].tolist()


def test_a_targeted_attack_has_success_rates_and_no_robust_accuracy(
    lenet: nn.Module, digits: Any
) -> None:
    found = evaluate(
        lenet, digits, "square", "linf", 0.3, goal="targeted", target="next",
        params={"steps": 100}, budgets=[50, 100],
    )  # fmt: skip
    assert found.queries["robust_correct"].isna().all()
    last = found.queries.iloc[-1]
    assert last["attack_success_rate"] == found.table["attack_success_rate"].iloc[0]


def test_the_curve_starts_at_clean_accuracy_and_ends_at_robust_accuracy() -> None:
    records = pd.DataFrame(
        {
            "clean_correct": [True, True, True, False],
            "fooled": [True, False, True, False],
            "queries": [7.0, np.inf, 3.0, np.nan],
        }
    )
    steps = queries.accuracy_steps(records)
    assert steps.queries.tolist() == [0, 3, 7]
    assert steps.share.tolist() == [0.75, 0.5, 0.25]
    rates = [metrics.rate(k, 4) for k in (3, 2, 1)]
    assert steps.low.tolist() == [rate.low for rate in rates]
    assert steps.high.tolist() == [rate.high for rate in rates]
