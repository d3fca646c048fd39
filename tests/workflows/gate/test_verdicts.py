"""Verdicts: every row of the table of outcomes, on snapshots of runs that never were."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from bench.analysis import snapshot
from bench.analysis.snapshot import Snapshot
from bench.core.validation import Validator
from bench.evaluation import metrics
from bench.suite import thresholds
from bench.workflows.gate import check as comparison
from bench.workflows.gate import proof
from bench.workflows.gate.verdicts import Check, Verdict, summarize_check

Make = Callable[..., Snapshot]
CELL = ("net", "walk", 0.1)


def limits(*texts: str) -> thresholds.Thresholds:
    return thresholds.override_thresholds(
        texts, thresholds.read_thresholds(Validator(""), {}, [], {})
    )


def check(before: Snapshot, now: Snapshot, *texts: str) -> Check:
    return comparison.check_against_baseline(before, now, limits(*texts))


def only(result: Check, gate: str) -> Verdict:
    (verdict,) = [verdict for verdict in result.verdicts if verdict.gate == gate]
    return verdict


def first(k: int, n: int = 100) -> list[bool]:
    """Outcomes of n examples: the first k are robust."""
    return [example < k for example in range(n)]


# ----------------------------------------------------------------------------------- accuracies


def test_a_loss_beyond_threshold_and_chance_is_red_and_names_its_examples(make: Make) -> None:
    result = check(make({CELL: first(80)}), make({CELL: first(60)}))
    verdict = only(result, "robust accuracy")
    assert (verdict.outcome, result.exit_code) == ("regressed", 1)
    assert verdict.change is not None
    assert verdict.change.lost == tuple(range(60, 80))
    assert verdict.change.gained == ()
    assert "80 → 60 of 100 (-20.0 pp)" in verdict.sentence


def test_a_loss_beyond_the_threshold_that_is_not_proven_has_a_verdict_of_its_own(
    make: Make,
) -> None:
    result = check(make({CELL: first(80)}), make({CELL: first(76)}))
    verdict = only(result, "robust accuracy")
    assert (verdict.outcome, result.exit_code) == ("lost, not proven", 0)
    assert verdict.sentence == (
        "80 → 76 of 100 (-4.0 pp): lost 4, gained 0, more than the 1 pp allowed, but not proven "
        "(p = 0.12, corrected; at these rates about 190 examples would prove it)"
    )
    assert summarize_check(result) == (
        "LOST, NOT PROVEN: 2 accuracies compared, 1 lost more than allowed, not proven"
    )


def test_a_strict_check_is_red_for_a_loss_that_is_not_proven(make: Make) -> None:
    before, now = make({CELL: first(80)}), make({CELL: first(76)})
    strict = comparison.check_against_baseline(before, now, limits(), strict=True)
    assert strict.exit_code == 1
    assert "1 of 5 verdicts red" in summarize_check(strict)
    same = comparison.check_against_baseline(before, before, limits(), strict=True)
    assert same.exit_code == 0


@pytest.mark.parametrize(("lost", "gained", "tests"), [(4, 0, 2), (9, 3, 8), (25, 16, 40)])
def test_as_many_examples_as_are_announced_prove_a_loss_at_its_rates_and_half_do_not(
    make: Make, lost: int, gained: int, tests: int
) -> None:
    size = proof.find_proving_size(lost, gained, 100, tests, 0.01)
    assert size is not None
    for n, is_proven in ((size, True), (size // 2, False)):
        fell, rose = (round(count * n / 100) for count in (lost, gained))
        p_value = metrics.one_sided_p_value(fell, fell + rose)
        assert (p_value * tests <= 0.01) == is_proven


def test_a_loss_that_the_threshold_allows_is_not_red_however_sure(make: Make) -> None:
    before, now = make({CELL: first(80)}), make({CELL: first(60)})
    assert check(before, now, "robust_accuracy:-20pp").exit_code == 0
    assert check(before, now, "robust_accuracy:-19.9pp").exit_code == 1
    assert check(before, now, "robust_accuracy:-25%").exit_code == 0


def test_as_many_lost_as_gained_is_no_loss(make: Make) -> None:
    swapped = [*[False] * 20, *[True] * 60, *[True] * 20]
    result = check(make({CELL: first(80)}), make({CELL: swapped}))
    assert only(result, "robust accuracy").outcome == "passed"
    assert result.exit_code == 0


def test_a_gain_is_reported_and_not_red(make: Make) -> None:
    result = check(make({CELL: first(60)}), make({CELL: first(80)}))
    assert only(result, "robust accuracy").outcome == "improved"
    assert result.exit_code == 0


def test_clean_accuracy_is_judged_once_for_a_model(make: Make) -> None:
    cells = {("net", attack, eps): first(0) for attack in ("a", "b") for eps in (0.1, 0.2)}
    result = check(make(cells), make(cells, clean={"net": first(80)}))
    assert only(result, "clean accuracy").outcome == "regressed"
    assert result.exit_code == 1


def test_more_comparisons_ask_for_more_evidence(make: Make) -> None:
    """Eight of eight lost: 1 in 256 by chance, enough for one or two comparisons and not for
    many."""
    alone = {CELL: first(80)}
    many = {("net", "walk", eps / 100): first(80) for eps in range(1, 30)}
    assert check(make(alone), make({CELL: first(72)})).exit_code == 1
    fewer = {**many, ("net", "walk", 0.1): first(72)}
    assert check(make(many), make(fewer)).exit_code == 0


# ------------------------------------------------------------------------ what cannot be compared


def other_data(snap: Snapshot, **fields: Any) -> Snapshot:
    return dataclasses.replace(snap, data=dataclasses.replace(snap.data, **fields))


@pytest.mark.parametrize(
    ("status", "outcome", "code"),
    [("failed", "failed", 1), ("missing", "not compared", 3), ("skipped", "not compared", 3)],
)
def test_a_cell_that_was_finished_and_is_not_any_more(
    make: Make, status: str, outcome: str, code: int
) -> None:
    other = {("net", "walk", 0.2): first(50)}
    result = check(make({CELL: first(80), **other}), make({CELL: status, **other}))
    assert [v.outcome for v in result.verdicts if v.where == "net, walk, eps 0.1"] == [outcome]
    assert f"was {status}" in str(result.verdicts)
    assert result.exit_code == code


def test_a_cell_that_failed_before_and_fails_again_is_still_red(make: Make) -> None:
    other = {("net", "walk", 0.2): first(50)}
    result = check(make({CELL: "failed", **other}), make({CELL: "failed", **other}))
    (verdict,) = result.select("failed")
    assert "it failed before, too" in verdict.sentence
    assert result.exit_code == 1


def test_a_cell_that_the_suite_no_longer_has_is_not_passed_over(make: Make) -> None:
    other = {("net", "walk", 0.2): first(50)}
    result = check(make({CELL: first(80), **other}), make(other))
    (verdict,) = result.select("not compared")
    assert (verdict.where, result.exit_code) == ("net, walk, eps 0.1", 3)
    assert "no longer has this cell" in verdict.sentence


@pytest.mark.parametrize("status", ["failed", "skipped", None])
def test_a_cell_that_the_baseline_has_no_numbers_of_is_new(make: Make, status: str | None) -> None:
    other = {("net", "walk", 0.2): first(50)}
    before = {**other} if status is None else {CELL: status, **other}
    result = check(make(before), make({CELL: first(80), **other}))
    (verdict,) = result.select("new")
    assert (verdict.where, result.exit_code) == ("net, walk, eps 0.1", 0)


def test_a_cell_skipped_both_times_is_not_judged(make: Make) -> None:
    other = {("net", "walk", 0.2): first(50)}
    result = check(make({CELL: "skipped", **other}), make({CELL: "skipped", **other}))
    assert "net, walk, eps 0.1" in [verdict.where for verdict in result.select("not judged")]
    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"fingerprint": "g"}, "of other content"),
        ({"name": "mnist", "fingerprint": "g"}, "the run 100 of mnist"),
    ],
)
def test_another_data_set_is_named_and_nothing_is_compared(
    make: Make, fields: dict[str, Any], expected: str
) -> None:
    snap = make({CELL: first(80)})
    result = check(snap, other_data(snap, **fields))
    assert (result.compared, result.exit_code) == (0, 3)
    assert all(expected in verdict.sentence for verdict in result.select("not compared"))
    assert result.power == "No accuracy was compared."


def test_fewer_examples_are_other_examples(make: Make) -> None:
    result = check(make({CELL: first(80)}), make({CELL: first(40, 50)}, n=50))
    assert result.exit_code == 3
    assert "the baseline has 100 examples" in result.select("not compared")[0].sentence


def test_a_changed_parameter_is_named_with_what_it_was(make: Make) -> None:
    settings = {"attack": "walk", "code": "1", "norm": "linf", "params.steps": 40}
    cells = {CELL: first(80)}
    result = check(make(cells), make({CELL: first(10)}, settings=settings))
    verdict = only(result, "robust accuracy")
    assert (verdict.outcome, result.exit_code) == ("not compared", 3)
    assert verdict.sentence == "other settings: params.steps 20 → 40"
    assert only(result, "throughput").outcome == "not judged"


def test_a_regression_elsewhere_outweighs_what_could_not_be_compared(make: Make) -> None:
    other = ("net", "walk", 0.2)
    result = check(make({CELL: first(80), other: first(80)}), make({CELL: first(50)}))
    assert result.select("not compared")
    assert result.exit_code == 1


def test_runs_with_nothing_in_common_are_never_0(make: Make) -> None:
    assert check(make({CELL: first(80)}), make({("b", "c", 0.1): first(80)})).exit_code == 3
    assert check(make({CELL: "skipped"}, clean={}), make({("b", "c", 0.1): first(3)})).exit_code


def test_another_seed_code_suite_and_model_are_noted_and_compared(make: Make) -> None:
    before = make({CELL: first(80)})
    settings = {"attack": "walk", "code": "2", "norm": "linf", "params.steps": 20}
    now = make({CELL: first(80)}, settings=settings, seed=7, suite="t")
    (model,) = now.models
    now = dataclasses.replace(now, models=[dataclasses.replace(model, fingerprint="other")])
    result = check(before, now)
    assert result.exit_code == 0
    assert len(result.notes) == 4
    for each in ("suite was called s and is t", "seed was 0 and is 7", "another model", "the code"):
        assert any(each in note for note in result.notes)


# -------------------------------------------------------------- validity, throughput and the audit


def test_more_violations_are_red_on_their_own(make: Make) -> None:
    result = check(make({CELL: first(80)}), make({CELL: first(80)}, violations=2))
    assert only(result, "validity").outcome == "regressed"
    assert result.exit_code == 1
    allowed = check(make({CELL: first(80)}), make({CELL: first(80)}, violations=2), "violations:+2")
    assert allowed.exit_code == 0


def test_a_new_kind_of_sign_is_red_and_an_old_one_is_not(make: Make) -> None:
    cells = {CELL: first(80)}
    result = check(make(cells, signs=["flat"]), make(cells, signs=["flat", "saturated loss"]))
    assert only(result, "audit").outcome == "regressed"
    assert "saturated loss" in only(result, "audit").sentence
    assert check(make(cells, signs=["flat"]), make(cells, signs=["flat"])).exit_code == 0
    assert only(check(make(cells, signs=["flat"]), make(cells)), "audit").outcome == "improved"


@pytest.mark.parametrize(
    ("ratio", "outcome"), [(0.4, "passed"), (0.53, "passed"), (0.54, "regressed"),
                           (0.31, "passed"), (0.29, "improved")],
)  # fmt: skip
def test_throughput_is_judged_by_the_floor_ratio(make: Make, ratio: float, outcome: str) -> None:
    """A quarter fewer examples per second is allowed: 0.4 / 0.75 = 0.533."""
    cells = {CELL: first(80)}
    result = check(make(cells), make(cells, ratio=ratio))
    assert only(result, "throughput").outcome == outcome
    assert result.exit_code == (outcome == "regressed")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"seconds": 0.5}, "too short to judge: 500 ms of 2.0 s"),
        ({"ratio": None}, "no attack was timed both times"),
        ({"clock": 7.5}, "the run had the processor for 67% of its time"),
        (
            {"machine": snapshot.MachineSnapshot(device="cpu", processor="b", threads=1)},
            "another machine",
        ),
    ],
)
def test_a_throughput_that_says_nothing_is_not_judged(
    make: Make, changed: dict[str, Any], expected: str
) -> None:
    cells = {CELL: first(80)}
    result = check(make(cells), make(cells, **{"ratio": 9.0} | changed))
    assert only(result, "throughput").outcome == "not judged"
    assert expected in only(result, "throughput").sentence
    assert result.exit_code == 0


def test_a_throughput_over_other_cells_is_not_judged(make: Make) -> None:
    more = {CELL: first(80), ("net", "walk", 0.2): first(10)}
    result = check(make({CELL: first(80)}), make(more, ratio=9.0))
    assert "over the same cells" in only(result, "throughput").sentence


def test_a_mixture_of_attacks_that_changed_is_no_slower_engine(make: Make) -> None:
    """The attack with the higher ratio takes most of the time now, and neither is slower."""
    cells = {CELL: first(80), ("net", "jump", 0.1): first(80)}

    def timed(walk: float, jump: float) -> Snapshot:
        snap = make(cells)
        walked, jumped = snap.tasks
        walked = dataclasses.replace(walked, floor_ratio=0.4, seconds=walk, clock_seconds=walk)
        jumped = dataclasses.replace(jumped, floor_ratio=1.2, seconds=jump, clock_seconds=jump)
        return dataclasses.replace(snap, tasks=[walked, jumped])

    result = check(timed(9.0, 1.0), timed(1.0, 9.0))
    assert "+0%" in only(result, "throughput").sentence
    assert only(result, "throughput").outcome == "passed"


# ------------------------------------------------------------------------------- whatever is given


def test_a_run_held_against_itself_is_all_well(make: Make) -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        outcomes: Sequence[bool] = generator.random(100) < generator.random()
        snap = make({CELL: outcomes}, violations=3, signs=["flat"])
        result = check(snap, snap)
        assert result.exit_code == 0
        assert {verdict.outcome for verdict in result.verdicts} == {"passed"}
