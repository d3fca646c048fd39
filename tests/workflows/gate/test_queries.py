"""The gate on budgets of queries: outcomes as the records have them, and what turns red."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from query_suite import SUITE

from bench.analysis import results, snapshot, snapshot_file
from bench.analysis.snapshot import Snapshot
from bench.core.errors import RecordError
from bench.core.validation import Validator
from bench.execution import options, runner
from bench.suite import reader, thresholds
from bench.workflows.gate.check import check_against_baseline
from bench.workflows.gate.verdicts import Check, Verdict

N, CELL = 100, ("net", "walk", 0.1)
GATE = "robust accuracy within queries"


@pytest.fixture
def take(make: Callable[..., Snapshot]) -> Callable[..., Snapshot]:
    """(budget -> number of robust examples) -> a snapshot with ten robust examples at the end."""

    def build(within: Mapping[int, int]) -> Snapshot:
        made = make({CELL: first(10)}, n=N)
        packed = {
            str(budget): snapshot.pack_outcomes(pd.Series(first(k))) for budget, k in within.items()
        }
        cells = [dataclasses.replace(cell, robust_within=packed) for cell in made.cells]
        return dataclasses.replace(made, cells=cells)

    return build


def first(k: int) -> list[bool]:
    return [example < k for example in range(N)]


def check(before: Snapshot, now: Snapshot, *texts: str, gate: Sequence[Any] = ()) -> Check:
    reading = Validator("")
    raw = {"gate": {"cells": [*gate]}}
    limits = thresholds.read_thresholds(
        reading, raw, ["net"], {"walk": {0.1: "0.1"}}, {"walk": [50, 100]}
    )
    reading.stop_if_wrong()
    return check_against_baseline(before, now, thresholds.override_thresholds(texts, limits))


def select(result: Check) -> list[Verdict]:
    return [verdict for verdict in result.verdicts if verdict.gate == GATE]


def test_a_fall_at_one_budget_is_red_though_the_final_result_is_the_same(
    take: Callable[..., Snapshot],
) -> None:
    before, now = take({50: 80, 100: 40}), take({50: 50, 100: 40})
    result = check(before, now, "query_robust_accuracy:-2pp")
    early, late = select(result)
    assert (early.outcome, late.outcome, result.exit_code) == ("regressed", "passed", 1)
    assert early.where == "net, walk, 50 queries, eps 0.1"
    assert "80 → 50 of 100 (-30.0 pp)" in early.sentence
    assert early.change is not None
    assert early.change.lost == tuple(range(50, 80))
    assert check(before, now).exit_code == 0


def test_a_threshold_for_one_budget_leaves_the_others_alone(take: Callable[..., Snapshot]) -> None:
    before, now = take({50: 80, 100: 40}), take({50: 50, 100: 40})
    gate = [{"queries": 100, "fail": ["query_robust_accuracy:-2pp"]}]
    result = check(before, now, gate=gate)
    (verdict,) = select(result)
    assert (verdict.where, verdict.outcome) == ("net, walk, 100 queries, eps 0.1", "passed")
    gate = [{"attack": "walk", "queries": 50, "fail": ["query_robust_accuracy:-40pp"]}]
    assert [verdict.outcome for verdict in select(check(before, now, gate=gate))] == ["passed"]


@pytest.mark.parametrize(
    ("before", "now", "outcome", "code"),
    [({}, {50: 30}, "new", 0), ({50: 30}, {}, "not compared", 3)],
)
def test_a_budget_that_one_side_lacks_is_no_number(
    take: Callable[..., Snapshot],
    before: Mapping[int, int],
    now: Mapping[int, int],
    outcome: str,
    code: int,
) -> None:
    result = check(take(before), take(now), "query_robust_accuracy:-2pp")
    assert [verdict.outcome for verdict in select(result)] == [outcome]
    assert result.exit_code == code


def test_without_any_budget_nothing_is_judged(take: Callable[..., Snapshot]) -> None:
    (verdict,) = select(check(take({}), take({}), "query_robust_accuracy:-2pp"))
    assert (verdict.where, verdict.outcome) == ("net", "not judged")


# ------------------------------------------------------------------------------- from a real run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> results.RunResults:
    out = tmp_path_factory.mktemp("run")
    suite = reader.parse_suite(SUITE, "asked.toml", out)
    runner.run_suite(suite, out, options.RunOptions(device="cpu"))
    return results.read_results(out)


def test_a_snapshot_has_the_outcomes_within_each_budget_as_the_table_counts_them(
    run: results.RunResults,
) -> None:
    taken = snapshot.take_snapshot(run)
    square, targeted, fgsm = taken.cells
    assert (targeted.robust_within, fgsm.robust_within) == ({}, {})
    assert list(square.robust_within) == ["20", "60", "150"]
    table = run.queries.query("attack == 'Square'").set_index("budget")
    frame = run.stored.frame.query("attack == 'Square'").sort_values("example")
    for text, packed in square.robust_within.items():
        within = snapshot.unpack_outcomes(packed, 40)
        assert within.sum() == table.loc[int(text), "robust_correct"]
        fell = frame["queries"].where(frame["fooled"], np.inf).to_numpy() <= int(text)
        assert within.tolist() == (frame["clean_correct"].to_numpy(dtype=bool) & ~fell).tolist()
    assert square.robust_within["150"] == square.robust


def test_a_baseline_with_budgets_is_read_as_it_was_written(
    run: results.RunResults, tmp_path: Path
) -> None:
    taken = snapshot.take_snapshot(run)
    snapshot_file.write_snapshot(taken, tmp_path / "b.json")
    again = snapshot_file.read_snapshot(tmp_path / "b.json")
    assert again == taken
    lines = (tmp_path / "b.json").read_text(encoding="utf-8").splitlines()
    assert sum("robust_within" in line for line in lines) == 1
    result = check(taken, again, "query_robust_accuracy:-1pp")
    assert [verdict.outcome for verdict in select(result)] == ["passed"] * 3


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        ({"20": "////", "60": "//8A"}, "outcomes within 20 queries: expected 5 bytes"),
        ({"20": "AAAAAAA=", "60": "//////8="}, "robust within 20 queries and not within fewer"),
        ({"few": "AAAAAAA="}, "invalid literal"),
    ],
)
def test_outcomes_that_contradict_each_other_are_damage(
    run: results.RunResults, tmp_path: Path, budgets: dict[str, str], expected: str
) -> None:
    path = tmp_path / "b.json"
    snapshot_file.write_snapshot(snapshot.take_snapshot(run), path)
    raw = json.loads(path.read_text(encoding="utf-8"))
    raw["cells"][0]["robust_within"] = budgets
    path.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(RecordError, match="damaged baseline") as caught:
        snapshot_file.read_snapshot(path)
    assert expected in str(caught.value)
