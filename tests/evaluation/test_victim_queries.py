"""Queries of the victim by an attack on a source: counted where it is called, capped, recorded."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import bench
from bench.analysis import results
from bench.core import registry
from bench.core.contracts.attack import AttackSpec
from bench.evaluation import crafting, make_evaluator
from bench.evaluation.victim import CountedVictim
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.reporting.report import victim_query_view, writer
from bench.suite import plan, reader
from bench.suite.identity import ModelFacts

N = 16
EPS = 0.2


class Watched(nn.Module):
    """A model that notes which example each image that it is shown is of: the nearest one."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.net, self.x = net, x.flatten(1)
        self.shown: Counter[int] = Counter()

    def forward(self, images: Tensor) -> Tensor:
        self.shown.update(torch.cdist(images.flatten(1), self.x).argmin(1).tolist())
        logits: Tensor = self.net(images)
        return logits


@pytest.fixture
def few(digits: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return digits[0][:N], digits[1][:N]


@pytest.fixture
def victim(lenet: nn.Module) -> nn.Module:
    return lenet.requires_grad_(False)


@pytest.fixture
def source(linear: Callable[..., nn.Module], digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A linear model that knows the digits a little: the mean image of each class."""
    x, y = digits[0].flatten(1), digits[1]
    means = torch.stack([x[y == label].mean(0) for label in range(10)])
    return linear(means, -means.square().sum(1) / 2).requires_grad_(False)


def evaluate(
    victim: Any, source: nn.Module | None, few: tuple[Tensor, Tensor], **settings: Any
) -> bench.Evaluation:
    chosen = {
        "attack": "bim", "eps": EPS, "params": {"steps": 12, "alpha": 0.02}, "device": "cpu",
        "audit": False,
    } | settings  # fmt: skip
    return bench.evaluate(victim, *few, source=source, **chosen)


# ----------------------------------------------------------------------------- counted and capped


@pytest.mark.parametrize(("budget", "rows"), [(1, 64), (5, 5), (7, 1), (50, 64)])
def test_the_victim_is_shown_as_many_images_as_are_counted_and_no_more_than_the_budget(
    budget: int, rows: int, victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    x, y = few
    watched, record = Watched(victim, x), registry.find("attacks", "pgd")
    spec = AttackSpec(
        name="pgd", attack=record, params=record.params(steps=9), norm="linf", eps=(0.05,),
        stop="never", victim_queries=budget,
    )  # fmt: skip
    none = torch.full((N,), -1)
    chosen = crafting.Examples(torch.arange(N), x, y, none, y, torch.ones(N), torch.ones(N))
    counted = CountedVictim(watched, y, "untargeted", budget, 1, rows)
    output = crafting.craft(source, spec, chosen, rows, victim=counted)
    assert output.victim_queries is not None
    assert [watched.shown[example] for example in range(N)] == output.victim_queries[0].tolist()
    assert 1 <= output.victim_queries.min() <= output.victim_queries.max() <= min(budget, 9)


def test_nothing_is_answered_beyond_the_budget(few: tuple[Tensor, Tensor]) -> None:
    x, y = few[0][:2], few[1][:2]
    always_wrong = Watched(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), x)
    with torch.no_grad():
        always_wrong.net[1].weight.zero_()
        always_wrong.net[1].bias.copy_(-nn.functional.one_hot(y[0], 10).float())
    counted = CountedVictim(always_wrong, y[:1].repeat(2), "untargeted", 3, 2, 1)
    place, zero = torch.tensor([0, 1]), torch.tensor([0, 0])
    answers = [counted.ask(zero, place, x).tolist() for _ in range(5)]
    assert answers == [[True, True]] * 3 + [[False, False]] * 2
    assert dict(always_wrong.shown) == {0: 3, 1: 3}
    assert counted.ask(zero + 1, place, x).all()  # another eps
    assert counted.queries.tolist() == [[3, 3], [1, 1]]


def test_an_answer_that_is_not_finite_is_no_success(few: tuple[Tensor, Tensor]) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 10), torch.nan)

    counted = CountedVictim(Broken(), few[1], "untargeted", 3, 1, 64)
    at = torch.arange(N)
    assert not counted.ask(torch.zeros_like(at), at, few[0]).any()


# ------------------------------------------------------------------------- what is found is judged


@pytest.mark.parametrize("goal", ["untargeted", "targeted"])
def test_an_example_falls_at_the_first_step_that_a_classic_transfer_of_as_many_ends_with(
    goal: str, victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    aim = {"goal": goal, "eps": 0.35} | ({"target": "next"} if goal == "targeted" else {})
    found = evaluate(victim, source, few, victim_queries=4, **aim).records  # each third step
    fell = np.full(N, np.inf)
    for query in (4, 3, 2, 1):
        params = {"steps": 3 * query, "alpha": 0.02}
        classic = evaluate(victim, source, few, params=params, **aim).records
        fell[classic["fooled"].to_numpy()] = query
        assert classic["victim_queries"].isna().all()
    attacked = found["attacked"].to_numpy()
    assert found["fooled"].tolist() == np.isfinite(fell).tolist()
    assert found["victim_queries"][attacked].tolist() == np.minimum(fell, 4)[attacked].tolist()
    assert found["victim_queries"][~attacked].isna().all()
    assert 0 < found["fooled"].sum() < attacked.sum()
    if goal == "targeted":
        assert (found["adv_pred"] == found["target"])[found["fooled"]].all()


def test_a_budget_of_one_query_has_the_outcome_of_the_classic_transfer(
    victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    asked, classic = (
        evaluate(victim, source, few, victim_queries=budget, copied=False).records
        for budget in (1, None)
    )
    columns = [name for name in classic if name not in ("cell", "victim_queries")]
    pd.testing.assert_frame_equal(asked[columns], classic[columns])
    assert asked["victim_queries"].dropna().unique().tolist() == [1.0]


def test_queries_break_every_example_that_the_classic_transfer_breaks_and_more(
    victim: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    many = digits[0][:80], digits[1][:80]
    params = {"steps": 2, "restarts": 10, "alpha": "eps/4"}
    asked, classic = (
        evaluate(
            victim, source, many, attack="pgd", eps=0.25, params=params, copied=False,
            victim_queries=budget,
        ).records["fooled"]
        for budget in (20, None)
    )  # fmt: skip
    assert classic.any()
    assert not (classic & ~asked).any()
    assert (asked & ~classic).sum() >= 5  # by a restart that the classic transfer does not judge


@pytest.mark.parametrize("batch_size", [1, 7])
def test_records_do_not_depend_on_the_batch(
    batch_size: int, victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    settings = {"attack": "pgd", "params": {"steps": 6, "restarts": 2}, "victim_queries": 5}
    one, other = (
        evaluate(victim, source, few, batch_size=size, eps=[0.1, EPS], **settings).records
        for size in (N, batch_size)
    )
    for name in ("fooled", "adv_pred", "victim_queries"):
        pd.testing.assert_series_equal(one[name], other[name])
    assert one["victim_queries"].max() == 5


def test_each_eps_has_a_budget_of_its_own_under_a_nested_sweep_too(
    victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    both = evaluate(victim, source, few, eps=[0.1, EPS], victim_queries=True).records
    alone = evaluate(victim, source, few, eps=EPS, victim_queries=True).records
    larger = both[both["eps"] == EPS].reset_index(drop=True)
    assert larger["victim_queries"].equals(alone["victim_queries"])
    text = TEXT.replace("seed = 0", 'sweep = "nested"')
    (entry,) = {e.label: e for e in reader.parse_suite(text, "t.toml", Path()).attacks}.values()
    facts = ModelFacts(10, (1, 28, 28), 8, "model", "data")
    task = plan.plan_task("a", entry, facts, 0, "nested", facts._replace(model_fingerprint="b"))
    assert task.spec.sweep == "independent"


def test_labels_of_the_victim_are_enough(
    victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    def labels(x: Tensor) -> Tensor:
        return victim(x).argmax(1)

    open_, closed = (
        evaluate(model, source, few, victim_queries=6, access=access, classes=classes).records
        for model, access, classes in ((victim, "gradient", None), (labels, "labels", 10))
    )
    assert closed["fooled"].tolist() == open_["fooled"].tolist()
    assert closed["victim_queries"].equals(open_["victim_queries"])


def test_an_example_that_falls_costs_fewer_steps(
    victim: nn.Module, source: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    many = digits[0][:60], digits[1][:60]
    found = evaluate(victim, source, many, victim_queries=True, batch_size=2)
    rows = found.records[found.records["attacked"]]
    assert (rows["forwards"] == rows["victim_queries"]).all()  # one query each step
    assert rows["forwards"][rows["fooled"]].min() < 12
    assert found.table["floor_ratio"].item() > 0


def test_the_table_holds_median_and_maximum_of_the_records(
    victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    found = evaluate(victim, source, few, eps=[0, 0.1, EPS], victim_queries=6)
    for row in found.table.to_dict("records"):
        mine = found.records[found.records["eps"] == row["eps"]]
        if row["eps"] == 0:
            assert pd.isna(row["victim_query_budget"])
            assert mine["victim_queries"].isna().all()
            continue
        fooled = mine.loc[mine["fooled"], "victim_queries"]
        assert row["victim_query_budget"] == 6
        assert row["max_victim_queries"] == mine["victim_queries"].max() <= 6
        assert row["median_victim_queries"] == np.median(fooled)
        low, high = (row[f"median_victim_queries_{end}"] for end in ("low", "high"))
        if len(fooled) < 6:
            assert pd.isna([low, high]).all()
        else:
            assert fooled.min() <= low <= row["median_victim_queries"] <= high <= fooled.max()
        assert row["threat_model"] == "black-box, transfer with at most 6 label queries"
        assert "shows the evaluated model 6 images of an example at most" in row["caveats"]
    assert "victim_query_budget" not in evaluate(victim, source, few).table


# ------------------------------------------------------------------------------- plan and refusals

TEXT = """
schema = 1
name = "queries"
seed = 0
[data]
name = "digits"
limit = 16
[[models]]
name = "lenet"
label = "a"
weights = "digits"
[[models]]
name = "lenet"
label = "b"
weights = "random"
[[attacks]]
name = "bim"
norm = "linf"
eps = [0.2]
source = "b"
victim_queries = true
params = { steps = 8 }
"""


def test_true_means_the_budget_of_transferbench() -> None:
    (entry,) = reader.parse_suite(TEXT, "t.toml", Path()).attacks
    assert (entry.victim_queries, entry.stop) == (50, "never")


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("= true", "= 0", "expected the most queries per example, at least 1, or true for 50"),
        ("= true", "= false", "or true for 50, got false"),
        ("= true", '= "many"', "or true for 50, got 'many'"),
        ("= true", "= 2.5", "or true for 50, got 2.5"),
        ("victim_queries", "victim_querys", "did you mean 'victim_queries'"),
        ('source = "b"', "", "expected a source beside it"),
        ('"bim"', '"square"', "only iterative attacks that follow gradients within a ball"),
        ('"bim"', '"fmn"', "only iterative attacks that follow gradients within a ball"),
        ('"bim"', '"torchattacks:PGD"', "only iterative attacks that follow gradients within"),
        ('"bim"', '"autoattack"', "only iterative attacks that follow gradients within"),
        ("= true", '= true\nstop = "first-success"', "the victim, and not the source, ends the"),
        ("= true", '= true\nprecision = "bfloat16"', "expected float32 or tf32 beside it"),
        ("= true", '= 2\nlabel = "x"\nvary = { restarts = [1, 3] }', "expected at least 3, one"),
    ],
)
def test_a_budget_that_cannot_be_spent_is_the_users_mistake(
    old: str, new: str, sentence: str
) -> None:
    text = TEXT.replace(old, new)
    if "restarts" in new:
        text = text.replace('"bim"', '"pgd"')
    if "params" in text and "torchattacks" in new:
        text = text.replace("params = { steps = 8 }", "")
    with pytest.raises(bench.SuiteError) as found:
        reader.parse_suite(text, "t.toml", Path())
    assert sentence in str(found.value)
    assert "attacks[0].victim_quer" in str(found.value)


def test_a_call_without_a_source_is_refused(victim: nn.Module, few: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(bench.SuiteError, match=r"evaluate: victim_queries: expected a source"):
        evaluate(victim, None, few, victim_queries=5)


def test_a_victim_that_answers_at_random_is_refused(
    victim: nn.Module, source: nn.Module, few: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(bench.SuiteError, match="one answer to a query does not show whether"):
        evaluate(victim, source, few, victim_queries=5, predictions=3)


def test_the_budget_belongs_to_the_identity_where_it_is_given() -> None:
    facts = {
        label: ModelFacts(10, (1, 28, 28), 8, f"model {label}", "data") for label in ("a", "b")
    }

    def cell(budget: str) -> plan.Cell:
        text = TEXT.replace("victim_queries = true\n", budget)
        return plan.plan_tasks(reader.parse_suite(text, "t.toml", Path()), facts)[0].cells[0]

    budgets = ("", "victim_queries = 50\n", "victim_queries = true\n", "victim_queries = 9\n")
    classic, fifty, same, nine = map(cell, budgets)
    assert fifty.identity == same.identity
    assert len({classic.identity, fifty.identity, nine.identity}) == 3
    assert "victim_queries" not in classic.settings
    assert (fifty.settings["victim_queries"], fifty.traits["victim queries"]) == (50, "50")


def test_the_source_is_not_accelerated_so_that_no_attack_is_repeated(tmp_path: Path) -> None:
    suite = reader.parse_suite(TEXT, "t.toml", tmp_path)
    evaluator = make_evaluator.from_suite(suite, torch.device("cpu"), tmp_path)
    facts = {label: evaluator.model_facts(label) for label in evaluator.models}
    assert evaluator.pool.accelerate(plan.plan_tasks(suite, facts)[0]) is None
    assert any("query the victim again" in sentence for sentence in evaluator.decisions)


# ------------------------------------------------------------------------------------ whole runs


def run(text: str, folder: Path, **options: Any) -> results.RunResults:
    suite = reader.parse_suite(text, "t.toml", Path())
    runner.run_suite(suite, folder, RunOptions(device="cpu", **options))
    return results.read_results(folder)


def test_a_run_is_resumed_and_reported_with_its_queries(tmp_path: Path) -> None:
    text = TEXT.replace('"random"', '"digits"').replace('label = "b"', 'label = "b"\n', 1)
    classic = text.replace("victim_queries = true", 'label = "classic"').partition("[[attacks]]")
    text += f"[[attacks]]{classic[2]}"
    found = run(text, tmp_path / "run")
    frame = found.stored.frame
    next((tmp_path / "run" / "records").glob("a-bim*.parquet")).unlink()
    pd.testing.assert_frame_equal(run(text, tmp_path / "run").stored.frame, frame)
    plain = frame["attack"].astype(str).str.startswith("classic")
    assert frame.loc[plain, "victim_queries"].isna().all()
    (view,) = victim_query_view.tabulate_victim_queries(found.table, {0.2: "0.2"})
    assert [line[:2] for line in view.rows] == [["a", "bim from b"], ["b", "bim from b"]]
    row = found.table[found.table["victim_query_budget"].notna()].iloc[0]
    assert view.rows[0][5] == "50"
    assert view.rows[0][6].startswith(f"{100 * row['fooled'] / row['eligible']:.1f} %")
    assert view.rows[0][8] == str(row["max_victim_queries"])
    page, markdown = writer.write_report(found, tmp_path, notes=[], provenance={}, plots=[])
    assert "Queries of the evaluated model" in page.read_text(encoding="utf-8")
    assert "Queries of the evaluated model" in markdown.read_text(encoding="utf-8")
