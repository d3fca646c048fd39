"""The breakdown by class: equal to a pivot over the records, and adding up to the cells."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_records import DrawnRun, build_run, draw_records, make_cell

from bench.analysis import classes
from bench.evaluation import metrics
from bench.suite.labels import WORST_CASE

PLAN = [
    make_cell("a 0", attack="A", eps=0.0),
    *(make_cell(f"{attack} {eps}", attack=attack.upper(), eps=eps)
      for attack in "ab" for eps in (0.1, 0.3)),
    make_cell("t", attack="T", goal="targeted"),
    make_cell("l2", attack="A", norm="l2", eps=2.0),
]  # fmt: skip
NAMES = ["zero", "one", "two", "three", "four", "five", "six"]
KEYS = ["attack", "norm", "goal", "eps", "class"]


def draw(seed: int, n: int = 60, n_classes: int = 7, violations: float = 0.05) -> DrawnRun:
    generator = np.random.default_rng(seed)
    return build_run(PLAN, draw_records(PLAN, n, n_classes, generator, violations), n)


def tabulate(run: DrawnRun, names: list[str] | None = NAMES) -> pd.DataFrame:
    return classes.class_table(run.table, run.stored, names)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 80))
def test_the_counts_of_the_cells_are_those_of_a_pivot_over_the_records(seed: int, n: int) -> None:
    run = draw(seed, n)
    records = run.stored.frame.assign(
        robust_correct=metrics.robust_examples(run.stored.frame),
        eligible=metrics.eligible_examples(run.stored.frame),
        n=1,
    )
    records = records[records["cell"].isin(run.table["cell"][run.table["status"] == "ok"])]
    names = ["n", "clean_correct", "eligible", "fooled", "robust_correct"]
    pivot = records.pivot_table(
        values=names, index=["attack", "norm", "goal", "eps", "label"], aggfunc="sum"
    )
    got = tabulate(run)
    own = got[got["attack"] != WORST_CASE].set_index(KEYS)[names].sort_index()
    assert own.index.equals(pivot.index.set_names(KEYS))
    assert (own.to_numpy() == pivot[names].to_numpy()).all()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_counts_of_all_classes_add_up_to_the_cell_and_to_the_worst_case(seed: int) -> None:
    run = draw(seed)
    got = tabulate(run)
    names = ["n", "clean_correct", "eligible", "fooled", "robust_correct"]
    sums = got.groupby(KEYS[:-1])[names].sum()
    for row in run.table[run.table["status"] == "ok"].to_dict("records"):
        there = sums.loc[tuple(row[key] for key in KEYS[:-1])]
        assert there.to_dict() == {name: row[name] for name in names}
    assert sums.loc[WORST_CASE, "n"].tolist() == [60] * 5
    joined = metrics.worst_case([run.robust["a 0.3"], run.robust["b 0.3"]])
    assert sums.loc[(WORST_CASE, "linf", "untargeted", 0.3), "robust_correct"] == joined.sum()


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_wrong_class_is_the_most_frequent_of_the_fooled_and_the_first_of_a_tie(
    seed: int,
) -> None:
    run = draw(seed)
    for row in tabulate(run).query("attack == 'T' or norm == 'l2'").to_dict("records"):
        records = run.stored.frame
        there = records[
            (records["attack"] == (row["attack"] if row["attack"] != WORST_CASE else "A"))
            & (records["norm"] == row["norm"]) & (records["goal"] == row["goal"])
            & (records["label"] == row["class"]) & records["fooled"]
        ]  # fmt: skip
        counts = there["adv_pred"].value_counts()
        if counts.empty:
            assert pd.isna(row["wrong_class"])
            assert row["wrong_class_name"] == ""
            continue
        assert row["wrong_count"] == counts.max()
        assert row["wrong_class"] == min(counts.index[counts == counts.max()])
        expected = "not finite" if row["wrong_class"] < 0 else NAMES[row["wrong_class"]]
        assert row["wrong_class_name"] == expected


def test_the_worst_case_takes_the_wrong_class_of_the_first_attack_that_fools_an_example() -> None:
    run = draw(3, n=300, n_classes=2, violations=0.0)
    got = tabulate(run)
    worst = got[(got["attack"] == WORST_CASE) & (got["norm"] == "linf") & (got["eps"] == 0.3)]
    frame = run.stored.frame
    a, b = (frame[frame["cell"] == cell].set_index("example") for cell in ("a 0.3", "b 0.3"))
    fooled = a["fooled"] | b["fooled"]
    first = a["adv_pred"].where(a["fooled"], b["adv_pred"])[fooled]
    for row in worst[worst["goal"] == "untargeted"].to_dict("records"):
        there = first[a.loc[first.index, "label"] == row["class"]]
        assert row["fooled"] == len(there)
        assert row["wrong_count"] == there.value_counts().max()


def test_every_rate_is_that_of_its_counts_and_has_its_wilson_interval() -> None:
    for row in tabulate(draw(1)).to_dict("records"):
        rate = metrics.rate(row["robust_correct"], row["n"])
        got = [row["robust_accuracy"], row["robust_low"], row["robust_high"]]
        assert got == [rate.value, rate.low, rate.high]
        if row["eligible"]:
            success = metrics.rate(row["fooled"], row["eligible"])
            got = [row["attack_success_rate"], row["success_low"], row["success_high"]]
            assert got == [success.value, success.low, success.high]
        else:
            assert pd.isna(row["attack_success_rate"])


def test_classes_without_names_are_named_by_their_index() -> None:
    got = tabulate(draw(1), None)
    assert got["class_name"].tolist() == [str(index) for index in got["class"]]


def test_only_classes_that_occur_have_rows() -> None:
    run = build_run(PLAN, draw_records(PLAN, 12, 1000, np.random.default_rng(0)), 12)
    got = tabulate(run, None)
    assert len(got) == 12 * got.groupby(KEYS[:-1]).ngroups


def test_a_cell_without_a_number_has_no_rows() -> None:
    records = draw_records(PLAN, 20, 3, np.random.default_rng(0))
    run = build_run(PLAN, records[records["cell"] != "l2"], 20)
    assert set(tabulate(run)["norm"]) == {"linf"}
    assert tabulate(build_run(PLAN[:1], records[records["cell"] == "t"], 20)).empty


def test_above_the_limit_the_worst_case_alone_is_broken_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = tabulate(draw(0))
    monkeypatch.setattr(classes, "MAX_ROWS", len(whole) - 1)
    got = tabulate(draw(0))
    expected = whole[whole["attack"] == WORST_CASE].reset_index(drop=True)
    pd.testing.assert_frame_equal(got, expected)


# ---------------------------------------------------------------------------------- the worst class


def make_row(index: int, k: int, n: int, eligible: int | None = None, **keys: Any) -> Any:
    rate = metrics.rate(k, n)
    return {
        "model": "net", "dataset": "d", "attack": WORST_CASE, "norm": "linf", "goal": "untargeted",
        "eps": 0.1, "eps_text": "0.1", "class": index, "class_name": NAMES[index], "n": n,
        "eligible": n if eligible is None else eligible, "robust_correct": k,
        "robust_accuracy": rate.value, "robust_low": rate.low, "robust_high": rate.high,
        "wrong_class_name": "six", "wrong_count": 2, **keys,
    }  # fmt: skip


def find(*rows: Any) -> list[dict[Any, Any]]:
    return classes.find_worst_classes(pd.DataFrame(rows)).to_dict("records")


def test_the_worst_class_has_the_lowest_robust_accuracy_with_its_interval_and_the_spread() -> None:
    (worst,) = find(make_row(0, 5, 10), make_row(1, 2, 10), make_row(2, 9, 10))
    assert (worst["worst_class_name"], worst["robust_correct"], worst["n"]) == ("one", 2, 10)
    rate = metrics.rate(2, 10)
    assert (worst["robust_low"], worst["robust_high"]) == (rate.low, rate.high)
    assert (worst["best_class_name"], worst["ties"], worst["classes"]) == ("two", 0, 3)
    assert worst["spread"] == pytest.approx(0.7)


def test_a_class_without_an_example_to_attack_is_never_the_worst() -> None:
    (worst,) = find(make_row(0, 0, 10, eligible=0), make_row(1, 3, 10))
    assert (worst["worst_class_name"], worst["unattacked"]) == ("one", 1)
    assert find(make_row(0, 0, 10, eligible=0)) == []


def test_of_equally_low_classes_the_one_with_most_examples_is_named_and_the_rest_counted() -> None:
    (worst,) = find(make_row(0, 0, 3), make_row(1, 0, 30), make_row(2, 0, 3), make_row(3, 1, 3))
    assert (worst["worst_class_name"], worst["ties"]) == ("one", 2)


def test_single_cells_do_not_decide_on_the_worst_class() -> None:
    rows = [make_row(0, 5, 10), make_row(1, 6, 10), make_row(1, 0, 10, attack="A")]
    assert [worst["worst_class_name"] for worst in find(*rows)] == ["zero"]


def test_of_many_classes_the_lowest_over_all_eps_above_0_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [make_row(k, 10, 10, eps=0.0) for k in range(4)]
    rows += [make_row(k, robust, 10) for k, robust in enumerate((5, 1, 0, 3))]
    rows += [make_row(k, robust, 10, eps=0.2) for k, robust in enumerate((4, 1, 0, 0))]
    frame = pd.DataFrame(rows)
    frame.loc[frame["class"] == 2, "eligible"] = 0
    assert classes.select_shown_classes(frame) == [0, 1, 2, 3]
    monkeypatch.setattr(classes, "MAX_SHOWN", 3)
    monkeypatch.setattr(classes, "LOWEST_SHOWN", 3)
    assert classes.select_shown_classes(frame) == [1, 3, 0]
