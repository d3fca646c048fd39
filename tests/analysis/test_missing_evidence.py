"""Evidence that is missing never improves a verdict."""

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch

from bench.analysis import crosscheck, snapshot, snapshot_file
from bench.analysis.crosscheck import CrosscheckPair
from bench.analysis.results import read_results
from bench.analysis.snapshot import ModelSnapshot, Snapshot
from bench.core.validation import Validator
from bench.evaluation.audit import findings
from bench.evaluation.audit.findings import Audit, UnauditedAttack, UncheckedSymptom
from bench.evaluation.audit.symptoms import SYMPTOMS
from bench.reporting.report.audit_view import summarize_audit
from bench.suite import thresholds
from bench.suite.plan import Cell
from bench.workflows.gate import quality
from bench.workflows.leaderboard import admission

QUICKSTART = Path(__file__).parents[2] / "results" / "quickstart"
FROM_BEST_TO_WORST = [crosscheck.IDENTICAL, crosscheck.EQUAL, crosscheck.DIFFERENT]
LIMITS = thresholds.read_thresholds(Validator(""), {}, [], {})
N = 20


def cell(identity: str) -> Cell:
    return Cell(
        model="net", attack=identity, implementation="bench", norm="linf", eps=0.1, eps_text="0.1",
        goal="untargeted", target="", stop="never", identity=identity, reason="", passes=1.0,
        gradients=1.0, traits={}, caveats=(),
    )  # fmt: skip


def compare(lost: int, images: dict[str, torch.Tensor]) -> dict[str, object]:
    """The row of two attacks, the second of which breaks `lost` examples more."""
    numbers = {"robust_correct": 1, "robust_accuracy": 0.5, "robust_low": 0.1, "robust_high": 0.9}
    table = pd.DataFrame([{"cell": c, "status": "ok", "seconds": 1.0, **numbers} for c in "ab"])
    robust = {"a": pd.Series([True] * N), "b": pd.Series([False] * lost + [True] * (N - lost))}
    sure = dict.fromkeys("ab", pd.Series([0.9] * N))
    rows = crosscheck.compare_implementations(
        [CrosscheckPair(cell("a"), cell("b"))], table, robust, sure, images
    )
    return {str(key): value for key, value in rows.iloc[0].items()}


def rank(row: dict[str, object]) -> int:
    return FROM_BEST_TO_WORST.index(str(row["verdict"]))


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("lost", [0, 3, 10])
@pytest.mark.parametrize("present", ["", "a", "b"])
def test_a_cross_check_without_images_never_reads_better_than_with_them(
    lost: int, apart: float, present: str
) -> None:
    images = {"a": torch.zeros(2, 1, 2, 2), "b": torch.full((2, 1, 2, 2), apart)}
    full, partial = compare(lost, images), compare(lost, {name: images[name] for name in present})
    assert rank(partial) >= rank(full)
    assert "images were not compared" in str(partial["cause"])
    assert "images were not compared" not in str(full["cause"])


def test_equal_outcomes_without_images_are_not_blamed_on_rounding() -> None:
    row = compare(0, {})
    assert row["verdict"] == crosscheck.EQUAL
    assert row["cause"] == crosscheck.NO_IMAGES


def test_the_published_quickstart_reads_no_better_on_a_clone_without_its_images() -> None:
    published = pd.read_csv(QUICKSTART / "crosscheck.csv")
    read = read_results(QUICKSTART).crosschecks
    places = ["model", "ours", "reference", "norm", "eps"]
    assert read[places].values.tolist() == published[places].values.tolist()
    ranks = [[FROM_BEST_TO_WORST.index(each) for each in side["verdict"]]
             for side in (published, read)]  # fmt: skip
    assert all(now >= before for before, now in zip(*ranks, strict=True))


def run(n: int = N, signs: tuple[str, ...] = (), unchecked: tuple[str, ...] = ()) -> Snapshot:
    return Snapshot(
        schema=1, suite="s", seed=0,
        data=snapshot.DataSnapshot(name="d", n=n, fingerprint="f"),
        machine=snapshot.MachineSnapshot(device="cpu", processor="p", threads=1), provenance={},
        models=[ModelSnapshot(
            model="net", fingerprint="f", clean_correct=n, signs=list(signs), unchecked=unchecked,
            clean=snapshot.pack_outcomes(pd.Series([True] * n)),
        )],
        tasks=[], cells=[],
    )  # fmt: skip


def judge_audit(before: Snapshot, now: Snapshot) -> tuple[str, str]:
    (verdict,) = [
        each for each in quality.judge_quality(before, now, LIMITS) if each.gate == "audit"
    ]
    return verdict.outcome, verdict.sentence


def test_a_symptom_that_the_gate_could_not_check_is_not_gone() -> None:
    before = run(signs=("zero gradient",))
    assert judge_audit(before, run())[0] == "improved"
    outcome, sentence = judge_audit(before, run(unchecked=("zero gradient",)))
    assert outcome == "not compared"
    assert "zero gradient" in sentence


def test_a_passed_audit_states_how_many_symptoms_were_not_checked() -> None:
    outcome, sentence = judge_audit(run(), run(unchecked=("zero gradient", "random")))
    assert outcome == "passed"
    assert sentence == "no symptom of a failed attack; 2 not checked"


def test_a_new_symptom_fails_the_gate_even_if_others_were_not_checked() -> None:
    before, now = run(signs=("a",)), run(signs=("b",), unchecked=("a",))
    assert judge_audit(before, now)[0] == "regressed"


def test_a_claimed_symptom_leaves_the_leaderboard_only_if_it_was_checked_again() -> None:
    claimed = run(signs=("a", "b"))
    merged = admission.merge_symptoms(claimed, run(signs=("c",), unchecked=("a",)))
    assert merged.models[0].signs == ["a", "c"]


def test_a_claimed_symptom_survives_a_run_of_fewer_examples() -> None:
    claimed = run(signs=("a",))
    merged = admission.merge_symptoms(claimed, run(n=N // 2, signs=("c",)))
    assert merged.models[0].signs == ["a", "c"]
    assert merged.data.n == N


def test_an_audit_that_checked_nothing_does_not_say_that_nothing_was_found() -> None:
    nothing = Audit(["net"], [], [UncheckedSymptom("net", name, "why") for name in SYMPTOMS])
    assert summarize_audit(nothing, "net") == "Nothing could be audited."
    one = nothing._replace(unchecked=nothing.unchecked[1:])
    assert summarize_audit(one, "net") == "No symptom of a failed attack, of 1 symptom checked."


def test_an_attack_whose_cells_all_crashed_is_not_said_to_show_no_symptom() -> None:
    statuses = {("pgd", 0.1): "failed", ("pgd", 0.2): "failed", ("fgsm", 0.1): "failed",
                ("fgsm", 0.2): "ok", ("eot", 0.1): "skipped"}  # fmt: skip
    table = pd.DataFrame(
        {"model": "net", "attack": attack, "eps": eps, "status": status}
        for (attack, eps), status in statuses.items()
    )
    assert findings.find_unaudited(table) == [("net", "pgd")]
    audit = Audit(["net"], [], [], [UnauditedAttack("net", "pgd")])
    assert summarize_audit(audit, "net") == (
        f"No symptom, of {len(SYMPTOMS)} symptoms checked. "
        "Not audited, as no cell is finished: pgd."
    )


def test_the_gate_judges_no_audit_that_checked_nothing_and_names_what_crashed() -> None:
    assert judge_audit(run(), run(unchecked=tuple(SYMPTOMS))) == (
        "not judged", "nothing could be audited",
    )  # fmt: skip
    crashed = dataclasses.replace(
        run(),
        cells=[
            snapshot.CellSnapshot(
                model="net", attack="pgd", eps=0.1, eps_text="0.1", status="failed", reason="r"
            )
        ],
    )
    outcome, sentence = judge_audit(run(), crashed)
    assert (outcome, sentence) == ("passed", "no symptom; not audited, as no cell is finished: pgd")
    outcome, sentence = judge_audit(run(signs=("zero gradient",)), crashed)
    assert outcome == "not compared"
    assert "zero gradient; not audited" in sentence


def test_what_was_not_checked_is_no_part_of_a_stored_baseline(tmp_path: Path) -> None:
    made = run(signs=("a",), unchecked=("b",))
    snapshot_file.write_snapshot(made, tmp_path / "baseline.json")
    assert snapshot_file.read_snapshot(tmp_path / "baseline.json") == made
    assert "unchecked" not in (tmp_path / "baseline.json").read_text(encoding="utf-8")
