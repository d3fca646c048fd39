"""The rows of a check that join cells: the worst case at each eps, and all cells of a model."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import pytest

from bench.analysis.snapshot import Snapshot
from bench.core.validation import Validator
from bench.evaluation import metrics
from bench.suite import thresholds
from bench.workflows.gate.check import check_against_baseline
from bench.workflows.gate.verdicts import Check, Verdict

Make = Callable[..., Snapshot]
N = 200
WALK, JUMP = ("net", "walk", 0.1), ("net", "jump", 0.1)


def lose(*examples: int) -> list[bool]:
    """Every example is robust but these."""
    return [example not in examples for example in range(N)]


def check(
    before: Snapshot, now: Snapshot, *texts: str, toml: Iterable[dict[str, object]] = ()
) -> Check:
    raw = {"gate": {"cells": list(toml)}}
    radii = {"walk": {0.1: "0.1"}, "jump": {0.1: "0.1"}}
    read = thresholds.read_thresholds(Validator(""), raw, ["net"], radii)
    return check_against_baseline(before, now, thresholds.override_thresholds(texts, read))


def find(result: Check, attack: str) -> Verdict:
    robust = [each for each in result.verdicts if each.gate == "robust accuracy"]
    (verdict,) = [each for each in robust if each.attack.startswith(attack)]
    return verdict


def test_losses_that_no_attack_proves_are_proven_by_the_worst_case(make: Make) -> None:
    before = make(dict.fromkeys((WALK, JUMP), lose()), n=N)
    now = make({WALK: lose(*range(7)), JUMP: lose(*range(7, 14))}, n=N)
    result = check(before, now)
    assert [find(result, name).outcome for name in ("walk", "jump")] == ["lost, not proven"] * 2
    worst = find(result, "worst case (linf, 2 attacks)")
    assert (worst.outcome, worst.eps) == ("regressed", "0.1")
    assert worst.change is not None
    assert (worst.change.before, worst.change.after, worst.change.n) == (N, N - 14, N)
    assert worst.change.lost == tuple(range(14))


def test_the_worst_case_is_over_the_shared_cells_of_untargeted_attacks(make: Make) -> None:
    third = ("net", "aim", 0.1)
    made = make(dict.fromkeys((WALK, JUMP, third), lose()), n=N)
    tasks = [
        dataclasses.replace(task, settings={**task.settings, "goal": "targeted"})
        if task.attack == "aim" else task for task in made.tasks
    ]  # fmt: skip
    targeted = dataclasses.replace(made, tasks=tasks)
    assert find(check(targeted, targeted), "worst case").attack == "worst case (linf, 2 attacks)"
    failed = make({WALK: lose(), JUMP: lose(), third: "failed"}, n=N)
    attack = find(check(made, failed), "worst case").attack
    assert attack == "worst case (linf, 2 of 3 attacks)"


def test_all_cells_are_those_that_both_sides_have(make: Make) -> None:
    third = ("net", "walk", 0.2)
    before = make(dict.fromkeys((WALK, JUMP, third), lose()), n=N)
    now = make({WALK: lose(), JUMP: lose(), third: "failed"}, n=N)
    assert find(check(before, before), "all 3 cells").outcome == "passed"
    assert find(check(before, now), "2 of 3 cells").outcome == "passed"


def test_one_attack_has_no_worst_case_and_one_cell_no_row_of_all_cells(make: Make) -> None:
    single = make({WALK: lose()}, n=N)
    assert {verdict.attack for verdict in check(single, single).verdicts} == {"", "walk"}


def test_a_worst_case_may_lose_what_one_of_its_attacks_may_lose(make: Make) -> None:
    before = make(dict.fromkeys((WALK, JUMP), lose()), n=N)
    now = make({WALK: lose(*range(30)), JUMP: lose()}, n=N)
    assert check(before, now).exit_code == 1
    lenient = {"attack": "walk", "fail": ["robust_accuracy:-20pp"]}
    result = check(before, now, toml=[lenient])
    assert result.exit_code == 0
    assert "within the 20 pp allowed" in find(result, "worst case").sentence
    assert "within the 10.5 pp allowed" in find(result, "all 2 cells").sentence


def test_all_cells_together_state_the_mean_and_the_examples_that_changed(make: Make) -> None:
    before = make({WALK: lose(0, 1), JUMP: lose()}, n=N)
    now = make({WALK: lose(*range(2, 12)), JUMP: lose(*range(2, 32))}, n=N)
    pooled = find(check(before, now), "all 2 cells")
    assert pooled.outcome == "regressed"
    assert pooled.sentence.startswith(
        "mean 99.5 % → 90.0 % (-9.5 pp): of 200 examples 30 are robust in fewer cells, 2 in more, "
        "more than the 1 pp allowed and beyond chance"
    )
    assert pooled.change is not None
    assert pooled.change.lost == tuple(range(2, 32))
    assert pooled.change.gained == (0, 1)
    assert (pooled.change.before, pooled.change.after, pooled.change.n) == (398, 360, 400)


def test_an_example_lost_in_one_cell_and_gained_in_another_did_not_change(make: Make) -> None:
    before = make({WALK: lose(*range(20)), JUMP: lose()}, n=N)
    now = make({WALK: lose(), JUMP: lose(*range(20))}, n=N)
    pooled = find(check(before, now), "all 2 cells")
    assert pooled.sentence == "every example is robust in as many cells as before"


def test_a_loss_of_all_cells_within_the_mean_of_their_thresholds_passes(make: Make) -> None:
    before = make(dict.fromkeys((WALK, JUMP), lose()), n=N)
    now = make({WALK: lose(*range(20)), JUMP: lose(*range(20, 40))}, n=N)
    assert find(check(before, now), "all 2 cells").outcome == "regressed"
    assert find(check(before, now, "robust_accuracy:-10pp"), "all 2 cells").outcome == "passed"


def test_models_are_pooled_apart(make: Make) -> None:
    keys = [(model, "walk", eps) for model in ("a", "b") for eps in (0.1, 0.2)]
    before = make(dict.fromkeys(keys, lose()), n=N)
    now = make({key: lose(*range(30)) if key[0] == "a" else lose() for key in keys}, n=N)
    pooled = [each for each in check(before, now).verdicts if each.attack == "all 2 cells"]
    assert [(each.model, each.outcome) for each in pooled] == [("a", "regressed"), ("b", "passed")]


@pytest.mark.parametrize("seed", range(3))
def test_the_sign_test_of_zeros_and_ones_is_the_mcnemar_test(seed: int) -> None:
    generator = np.random.default_rng(seed)
    was, now = (pd.Series(generator.random(50) < 0.6) for _ in range(2))
    expected = metrics.one_sided_mcnemar_test(was, now)
    assert expected.lost == tuple(np.flatnonzero(was & ~now))
    assert metrics.one_sided_sign_test(3 * was.astype(int), 3 * now.astype(int)) == expected
