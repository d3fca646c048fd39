"""Robustness to several threat models together, from records whose outcomes are known."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_records import DrawnRun, build_run, draw_records, make_cell

from bench.analysis import unions
from bench.evaluation import metrics
from bench.suite.labels import ALL_THREATS
from bench.suite.plan import Cell
from bench.suite.unions import ThreatUnion, UnionThreat

N = 40
CLEAN = make_cell("clean", eps=0.0)
PGD = [make_cell(f"pgd {eps}", attack="PGD", eps=eps) for eps in (0.1, 0.3)]
FMN = [make_cell(f"fmn {eps}", attack="FMN", norm="l2", eps=eps) for eps in (0.5, 2.0)]
L1 = make_cell("apgd", attack="APGD", norm="l1", eps=9.0)
SMALL = ThreatUnion(
    label="small",
    threats=(
        UnionThreat(norm="linf", eps=0.1, eps_text="0.1"),
        UnionThreat(norm="l2", eps=1.5, eps_text="3/2"),
    ),
)


def draw(plan: list[Cell], seed: int = 0, without: tuple[str, ...] = (), **keys: Any) -> DrawnRun:
    records = draw_records(plan, N, 5, np.random.default_rng(seed))
    return build_run(plan, records[~records["cell"].isin(without)], N, **keys)


def tabulate(run: DrawnRun, *chosen: ThreatUnion) -> list[dict[Any, Any]]:
    return unions.union_table(run.table, run.robust, chosen).to_dict("records")


def count(run: DrawnRun, *cells: str) -> int:
    """Examples that no cell breaks, by example in plain Python."""
    rows = run.stored.frame[run.stored.frame["cell"].isin(cells)]
    robust = metrics.robust_examples(rows)
    return sum(bool(robust[rows["example"] == example].all()) for example in range(N))


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_union_counts_the_examples_that_no_attack_of_any_norm_breaks(seed: int) -> None:
    run = draw([CLEAN, *PGD, *FMN, L1], seed)
    everything, small = tabulate(run, SMALL)
    attacked = [cell.identity for cell in run.plan if cell.eps > 0]
    assert everything["robust_correct"] == count(run, *attacked)
    assert small["robust_correct"] == count(run, "pgd 0.1", "fmn 0.5")
    assert everything["clean_correct"] == run.table["clean_correct"].iloc[0]
    assert (everything["cells"], small["cells"]) == (5, 2)
    rate = metrics.rate(everything["robust_correct"], N)
    got = [everything[key] for key in ("robust_accuracy", "robust_low", "robust_high")]
    assert got == [rate.value, rate.low, rate.high]


def test_a_union_names_its_radii_and_the_largest_eps_within_them() -> None:
    everything, small = tabulate(draw([*FMN, *PGD]), SMALL)
    assert (everything["label"], everything["threats"]) == (ALL_THREATS, "l2 2, linf 0.3")
    assert everything["largest_eps"] == everything["threats"]
    assert (small["label"], small["threats"]) == ("small", "linf 0.1, l2 3/2")
    assert small["largest_eps"] == "linf 0.1, l2 0.5"


def test_a_union_says_what_each_norm_breaks_and_what_it_breaks_alone() -> None:
    run = draw([*PGD, *FMN])
    (row,) = tabulate(run)
    clean = int(row["clean_correct"])
    linf, l2 = count(run, "pgd 0.1", "pgd 0.3"), count(run, "fmn 0.5", "fmn 2.0")
    both = int(row["robust_correct"])
    assert row["broken_by"] == f"linf: {clean - linf}, l2: {clean - l2}"
    assert row["broken_only_by"] == f"linf: {l2 - both}, l2: {linf - both}"


def test_one_norm_has_no_union() -> None:
    run = draw([CLEAN, *PGD])
    assert tabulate(run, SMALL) == []
    assert list(unions.union_table(run.table, run.robust).columns) == list(unions.COLUMNS)


def test_eps_0_alone_is_no_threat_model_of_a_union() -> None:
    assert tabulate(draw([*PGD, make_cell("unmoved", norm="l2", eps=0.0)])) == []


def test_an_attack_that_failed_below_the_largest_eps_is_named_beside_the_union() -> None:
    run = draw([*PGD, *FMN], without=("pgd 0.1",), failures={"pgd 0.1": "ValueError: why"})
    (row,) = tabulate(run)
    assert (row["status"], row["cells"], row["cells_planned"]) == ("ok", 3, 4)
    assert row["absent"] == "PGD at linf 0.1: failed"
    assert row["robust_correct"] == count(run, "pgd 0.3", "fmn 0.5", "fmn 2.0")


@pytest.mark.parametrize("status", ["failed", "missing", "skipped"])
def test_a_norm_without_a_finished_attack_at_its_largest_eps_leaves_no_number(status: str) -> None:
    reason = "too few classes" if status == "skipped" else ""
    l1 = make_cell("apgd", attack="APGD", norm="l1", eps=9.0, reason=reason)
    failures = {"apgd": "why"} if status == "failed" else {}
    everything, small = tabulate(
        draw([*PGD, *FMN, l1], without=("apgd",), failures=failures), SMALL
    )
    assert (everything["status"], everything["reason"]) == (
        "incomplete", "no finished attack at l1 9",
    )  # fmt: skip
    assert pd.isna(everything["robust_correct"])
    assert pd.isna(everything["robust_accuracy"])
    assert everything["absent"] == f"APGD at l1 9: {status}"
    assert small["status"] == "ok"


def test_another_attack_at_the_largest_eps_is_enough_for_a_number() -> None:
    second = make_cell("noise", attack="noise", norm="l2", eps=2.0)
    run = draw([*PGD, *FMN, second], without=("fmn 2.0",))
    (row,) = tabulate(run)
    assert (row["status"], row["absent"]) == ("ok", "FMN at l2 2: missing")


def test_models_and_goals_have_unions_of_their_own() -> None:
    plan = [
        make_cell(f"{model} {goal} {norm}", model=model, goal=goal, norm=norm, attack=goal)
        for model in ("a", "b")
        for goal in ("untargeted", "targeted")
        for norm in ("linf", "l2")
    ]
    run = draw(plan)
    rows = tabulate(run)
    assert [(row["model"], row["goal"]) for row in rows] == [
        (model, goal) for model in ("a", "b") for goal in ("untargeted", "targeted")
    ]
    for row in rows:
        own = [f"{row['model']} {row['goal']} {norm}" for norm in ("linf", "l2")]
        assert row["robust_correct"] == count(run, *own)
