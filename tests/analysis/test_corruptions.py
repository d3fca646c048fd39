"""Errors under common corruptions, counted from records that are written here by hand."""

import dataclasses
import itertools

import pandas as pd
import pytest

from bench.analysis.corruptions import COUNTS, CorruptionResults, summarize_corruptions
from bench.engine.threats.corruption import CORRUPTIONS, SEVERITIES
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

LABELS = [0, 0, 1, 1]
CLEAN = [0, 0, 1, 0]
"""The last example is misclassified without corruption."""


def make_cell(model: str, corruption: str, severity: int) -> Cell:
    identity = f"{model}-{corruption}-{severity}"
    return Cell(
        model=model, attack=f"corruptions, {corruption}", family="corruptions", implementation="a",
        norm="corruption", eps=float(severity), eps_text=str(severity), goal="untargeted",
        target="", stop="never", identity=identity, reason="", passes=0.0, gradients=0.0,
        traits={"corruption": corruption}, caveats=(),
    )  # fmt: skip


def summarize(
    answers: dict[str, list[int]], baseline: str = "", missing: str = "", violated: str = ""
) -> CorruptionResults:
    """The errors of models that give the same answers under every corruption."""
    places = itertools.product(answers, CORRUPTIONS, SEVERITIES)
    plan = [make_cell(*place) for place in places]
    frame = pd.concat(
        [
            pd.DataFrame(
                {"cell": cell.identity, "label": LABELS, "adv_pred": answers[cell.model],
                 "clean_correct": [a == b for a, b in zip(LABELS, CLEAN, strict=True)]}
            )
            for cell in plan
        ],
        ignore_index=True,
    )  # fmt: skip
    identities = [cell.identity for cell in plan]
    table = pd.DataFrame(
        {"cell": identities,
         "status": ["failed" if name == missing else "ok" for name in identities],
         "violations": [int(name == violated) for name in identities]}
    )  # fmt: skip
    return summarize_corruptions(plan, table, StoredRecords(frame, [], {}), baseline)


def test_an_image_that_only_its_corruption_makes_right_is_no_error() -> None:
    found = summarize({"net": [0, 1, 1, 1]})  # wrong on the second alone
    row = found.errors.iloc[0]
    assert [row[name] for name in COUNTS] == [4, 1, 1, 1, 1, 1, 1]
    assert row["mean_error"] == 0.25


def test_the_mean_is_over_all_corruptions_and_severities() -> None:
    (row,) = summarize({"net": [0, 1, 1, 1]}).means.to_dict("records")
    assert (row["cells"], row["wrong"], row["mean_error"]) == (75, 75, 0.25)


@pytest.mark.parametrize("why", ["missing", "violated"])
def test_a_cell_without_a_number_leaves_no_mean(why: str) -> None:
    found = summarize({"net": [0, 1, 1, 1]}, **{why: "net-fog-3"})
    fog = found.errors.set_index("corruption").loc["fog"]
    assert pd.isna(fog["wrong_3"])
    assert pd.isna(fog["mean_error"])
    (row,) = found.means.to_dict("records")
    assert row["cells"] == 74
    assert pd.isna(row["mean_error"])


def test_without_a_baseline_nothing_is_normalised() -> None:
    found = summarize({"net": [0, 1, 1, 1]})
    assert found.means["mce"].isna().all()
    assert found.errors["corruption_error"].isna().all()


def test_a_baseline_normalises_the_error_of_each_corruption() -> None:
    answers = {"net": [0, 1, 1, 1], "old": [1, 1, 1, 1]}
    found = summarize(answers, baseline="old").means.set_index("model")
    assert found.loc["net", "mce"] == pytest.approx(0.5)
    assert found.loc["old", "mce"] == pytest.approx(1.0)


def test_a_baseline_without_errors_normalises_nothing() -> None:
    found = summarize({"net": [0, 1, 1, 1], "old": LABELS}, baseline="old")
    assert found.means["mce"].isna().all()


def test_cells_of_other_threats_make_no_row() -> None:
    cell = dataclasses.replace(make_cell("net", "fog", 1), traits={"steps": "10"})
    table = pd.DataFrame({"cell": [cell.identity], "status": ["ok"], "violations": [0]})
    stored = StoredRecords(pd.DataFrame({"cell": []}), [], {})
    found = summarize_corruptions([cell], table, stored)
    assert found.errors.empty
    assert found.means.empty
