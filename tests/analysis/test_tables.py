"""Tables from a handful of records whose figures were worked out by hand."""

import math
from typing import Any

import pandas as pd
import pytest

from bench.analysis import tables
from bench.storage.reader import StoredRecords
from bench.storage.schema import COLUMNS, Piece
from bench.suite.plan import Cell

WORDS = (
    "suite, model, dataset, attack, implementation, norm, eps, goal, status, reason, n, "
    "clean_correct, robust_correct, clean_accuracy, robust_accuracy, robust_low, robust_high, "
    "attack_success_rate, success_low, success_high, robust_accuracy_8bit, violations, "
    "mean_confidence_fooled, mean_linf, mean_l2, mean_l1, mean_l0, forwards_per_example, "
    "backwards_per_example, seconds, examples_per_second, floor_ratio, device"
)
DESIGN = WORDS.split(", ")

# label, clean_pred, adv_pred, adv_pred_8bit, fooled, violation, confidence, distance
UNTARGETED = [
    (0, 0, 0, 0, False, "", 0.9, 0.1),  # stood
    (1, 1, 2, 2, True, "", 0.6, 0.1),  # fooled
    (2, 2, 3, 2, True, "", 0.8, 0.3),  # fooled, but not once rounded
    (3, 4, 4, 4, False, "", 0.7, 0.0),  # wrong before: not attacked, not robust
    (4, 4, 5, 5, False, "linf distance 1, allowed 0.3", 1.0, 1.0),  # violation: robust
]
TARGETED = [  # the target is class 7
    (0, 0, 7, 7, True, "", 0.9, 0.2),  # reached
    (1, 1, 2, 2, False, "", 0.5, 0.2),  # missed the target, not robust all the same
    (2, 2, 2, 2, False, "", 0.5, 0.2),  # stood
    (7, 7, 7, 7, False, "", 0.9, 0.0),  # its label is the target: not eligible
    (4, 5, 5, 5, False, "", 0.9, 0.0),  # wrong before
]


def cell(identity: str, **keys: Any) -> Cell:
    given = {
        "model": "net", "attack": identity, "implementation": "bench", "norm": "linf", "eps": 0.3,
        "eps_text": "0.3", "goal": "untargeted", "target": "", "stop": "never", "reason": "",
        "passes": 1.0, "gradients": 1.0, "traits": {}, "caveats": ("first.", "second."),
    }  # fmt: skip
    return Cell(identity=identity, **{**given, **keys})


def frame(identity: str, rows: list[tuple[Any, ...]], target: int = -1) -> pd.DataFrame:
    keys = [
        "label", "clean_pred", "adv_pred", "adv_pred_8bit", "fooled", "violation", "confidence",
        "linf",
    ]  # fmt: skip
    values = pd.DataFrame(rows, columns=keys)
    values["clean_correct"] = values["label"] == values["clean_pred"]
    values["attacked"] = values["clean_correct"] & (values["label"] != target)
    values = values.assign(
        suite="s", model="net", attack=identity, norm="linf", eps=0.3, goal="untargeted",
        example=range(len(values)), target=target, l2=2 * values["linf"], l1=4 * values["linf"],
        l0=3.0, forwards=6.0 * values["attacked"], backwards=2.0 * values["attacked"],
        first_success_step=-1, clean_confidence=0.9, cell=identity, part="", agreement=1.0,
        distance=math.nan, queries=math.nan, distance_within=None, parameters="",
        rejection=-1, rejected_is_robust=False,
        victim_queries=math.nan, certified=False,
    )  # fmt: skip
    return values[list(COLUMNS)]


def piece(identity: str, first: int = 0, last: int = 5, attacked: int = 4) -> Piece:
    return Piece(identity, first, last, attacked, 2.0, 0.5, 1.6, 64, "cpu")


def build_table(plan: list[Cell], frames: list[pd.DataFrame], **keys: Any) -> pd.DataFrame:
    values = pd.concat(frames, ignore_index=True)
    pieces = keys.pop("pieces", [piece(identity) for identity in values["cell"].unique()])
    stored = StoredRecords(values, pieces, keys.pop("failures", {}))
    return tables.cell_table(plan, stored, "s", "digits", 5)


def row(table: pd.DataFrame, at: int = 0) -> dict[str, Any]:
    return {str(key): value for key, value in table.iloc[at].to_dict().items()}


def test_the_columns_are_those_of_the_design_in_its_order() -> None:
    table = build_table([cell("a")], [frame("a", UNTARGETED)])
    assert list(table.columns)[: len(DESIGN)] == DESIGN == list(tables.COLUMNS)


def test_an_untargeted_row_is_what_its_records_say() -> None:
    values = row(build_table([cell("a")], [frame("a", UNTARGETED)]))
    assert (values["status"], values["reason"], values["dataset"]) == ("ok", "", "digits")
    assert (values["n"], values["clean_correct"], values["robust_correct"]) == (5, 4, 2)
    assert (values["clean_accuracy"], values["robust_accuracy"]) == (0.8, 0.4)
    assert (values["fooled"], values["eligible"], values["attack_success_rate"]) == (2, 4, 0.5)
    assert (values["robust_correct_8bit"], values["robust_accuracy_8bit"]) == (3, 0.6)
    assert values["violations"] == 1
    assert values["caveats"] == "first. second."


def test_a_targeted_row_counts_only_examples_that_could_reach_the_target() -> None:
    plan = [cell("a", goal="targeted", target="7")]
    values = row(build_table(plan, [frame("a", TARGETED, target=7)]))
    assert (values["clean_correct"], values["robust_correct"]) == (4, 2)
    assert (values["fooled"], values["eligible"]) == (1, 3)
    assert values["attack_success_rate"] == pytest.approx(1 / 3)


def test_intervals_are_wilsons() -> None:
    values = row(
        build_table([cell("a")], [frame("a", UNTARGETED)])
    )  # 2 of 5 and 2 of 4, z = 1.959964
    assert (values["robust_low"], values["robust_high"]) == pytest.approx(
        (0.117621, 0.769276), abs=1e-6
    )
    assert (values["success_low"], values["success_high"]) == pytest.approx(
        (0.150039, 0.849961), abs=1e-6
    )


def test_distances_and_confidence_are_means_over_fooled_examples_alone() -> None:
    values = row(build_table([cell("a")], [frame("a", UNTARGETED)]))
    assert values["mean_confidence_fooled"] == pytest.approx(0.7)
    means = [values[f"mean_{norm}"] for norm in ("linf", "l2", "l1", "l0")]
    assert means == pytest.approx([0.2, 0.4, 0.8, 3.0])


def test_costs_are_per_attacked_example() -> None:
    values = row(build_table([cell("a")], [frame("a", UNTARGETED)]))
    assert (values["forwards_per_example"], values["backwards_per_example"]) == (6.0, 2.0)
    assert (values["seconds"], values["examples_per_second"]) == (2.0, 2.0)
    assert (values["floor_ratio"], values["rows_per_pass"]) == (1.25, 64)


def test_a_floor_that_was_not_timed_for_every_chunk_is_missing() -> None:
    """Chunks without an attacked example have none."""
    timed, clean = piece("a", 0, 3, 4), piece("a", 3, 5, 0)
    clean = clean._replace(seconds=0.0, floor_seconds=0.0)
    untimed = clean._replace(attacked=1, seconds=1.0)
    ratios = []
    for other in (clean, untimed):
        table = build_table([cell("a")], [frame("a", UNTARGETED)], pieces=[timed, other])
        ratios.append(row(table)["floor_ratio"])
    assert ratios == [1.25, None]


def test_nothing_classified_correctly_is_no_success_rate_and_says_so() -> None:
    wrong = [(3, 4, 4, 4, False, "", 0.7, 0.0)] * 5
    values = row(build_table([cell("a")], [frame("a", wrong)], pieces=[piece("a", attacked=0)]))
    assert (values["clean_correct"], values["robust_accuracy"]) == (0, 0.0)
    assert pd.isna(values["attack_success_rate"])
    assert "no example is classified correctly" in values["reason"]


def test_a_row_without_finished_records_has_its_reason_and_no_numbers() -> None:
    plan = [cell("a", reason="3 channels"), cell("b"), cell("c"), cell("d")]
    half = frame("c", UNTARGETED[:2])
    table = build_table(
        plan, [half, frame("b", UNTARGETED)], pieces=[piece("c", 0, 2), piece("b")],
        failures={"b": "ValueError: why"},
    )  # fmt: skip
    assert table["status"].tolist() == ["skipped", "failed", "missing", "missing"]
    assert table["reason"].tolist()[:2] == ["3 channels", "ValueError: why"]
    assert table["reason"].tolist()[2] == "2 of 5 examples are done; run the suite again to go on"
    assert table[DESIGN[10:]].isna().all(axis=None)


def test_the_worst_case_is_robust_under_every_attack() -> None:
    second = [list(each) for each in UNTARGETED]
    second[0][2:5], second[1][2:5] = [9, 9, True], [1, 1, False]  # breaks 0, not 1, and 2 again
    plan, stored = (
        [cell("a"), cell("b")],
        [frame("a", UNTARGETED), frame("b", [tuple(r) for r in second])],
    )
    table = build_table(plan, stored)
    robust = tables.outcomes_by_cell(
        plan, StoredRecords(pd.concat(stored, ignore_index=True), [], {})
    )
    worst = row(tables.worst_case_table(plan, table, robust))
    assert [int(robust[name].sum()) for name in "ab"] == [2, 2]
    assert (worst["n"], worst["clean_correct"], worst["robust_correct"]) == (5, 4, 1)
    assert worst["broken_by"] == "a: 2, b: 1"


def test_a_failed_attack_is_left_out_of_the_worst_case() -> None:
    plan, frames = [cell("a"), cell("b")], [frame("a", UNTARGETED)]
    table = build_table(plan, frames, failures={"b": "why"})
    worst = tables.worst_case_table(
        plan, table, tables.outcomes_by_cell(plan, StoredRecords(frames[0], [], {}))
    )
    assert (len(worst), worst["robust_correct"].item()) == (1, 2)


def test_violations_are_listed_with_their_example() -> None:
    values = tables.violation_table(StoredRecords(frame("a", UNTARGETED), [], {}))
    assert values[["attack", "example", "violation"]].to_numpy().tolist() == [
        ["a", 4, "linf distance 1, allowed 0.3"]
    ]


def test_the_targets_cross_entropy_is_that_of_the_fooled_and_only_where_there_is_a_target() -> None:
    aimed = row(build_table([cell("a", goal="targeted")], [frame("a", TARGETED, target=7)]))
    assert aimed["mean_target_cross_entropy"] == pytest.approx(-math.log(0.9))
    free = row(build_table([cell("a")], [frame("a", UNTARGETED)]))
    assert pd.isna(free["mean_target_cross_entropy"])
