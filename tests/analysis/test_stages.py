"""Robust accuracy after each part of an ensemble: counts by hand, and those of a run."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import bench
from bench.analysis import stages, tables
from bench.reporting.report import stage_view
from bench.reporting.run_output import write_run_output
from bench.storage.reader import StoredRecords
from bench.storage.schema import COLUMNS, Piece
from bench.suite.plan import Cell

EPS_TEXTS = {0.3: "0.3"}
# clean_pred, adv_pred, part, violation; the label is 0
OUTCOMES = [
    (0, 0, "", ""),  # robust
    (0, 1, "b", ""),
    (0, 2, "a", ""),
    (0, 1, "b", ""),
    (1, 1, "", ""),  # wrong without attack
    (0, 3, "", "linf distance 1, allowed 0.3"),  # a violation: robust
]


def ensemble(identity: str = "c", parts: str = "a, b, c", **keys: Any) -> Cell:
    given: dict[str, Any] = {
        "model": "net", "attack": "all", "implementation": "bench", "norm": "linf", "eps": 0.3,
        "eps_text": "0.3", "goal": "untargeted", "target": "", "stop": "never", "reason": "",
        "passes": 1.0, "gradients": 1.0, "traits": {"parts": parts} if parts else {}, "caveats": (),
    }  # fmt: skip
    return Cell(identity=identity, **{**given, **keys})


def records(identity: str = "c") -> StoredRecords:
    frame = pd.DataFrame(OUTCOMES, columns=["clean_pred", "adv_pred", "part", "violation"])
    frame = frame.assign(
        label=0, target=-1, example=range(len(frame)), cell=identity, goal="untargeted",
        clean_correct=frame["clean_pred"] == 0, adv_pred_8bit=frame["adv_pred"],
        fooled=frame["part"] != "", attacked=frame["clean_pred"] == 0, rejection=-1,
        rejected_is_robust=False, certified=False,
    )  # fmt: skip
    for column in COLUMNS:
        if column not in frame:
            frame[column] = 0.5
    piece = Piece(
        identity, 0, len(frame), rows=4, device="cpu", attacked=5, seconds=1.0, verify_seconds=0.0,
        floor_seconds=1.0,
    )  # fmt: skip
    return StoredRecords(frame, [piece], {})


def tabulate(cell: Cell) -> pd.DataFrame:
    stored = records()
    return stages.stage_table([cell], tables.cell_table([cell], stored, "s", "d", 6), stored)


def test_each_part_lowers_the_count_by_what_it_broke() -> None:
    table = tabulate(ensemble())
    assert table["part"].tolist() == ["a", "b", "c"]
    assert table["broken"].tolist() == [1, 2, 0]
    assert table["robust_correct"].tolist() == [4, 2, 2]
    assert table["n"].tolist() == [6, 6, 6]
    assert table["robust_accuracy"].tolist() == pytest.approx([4 / 6, 2 / 6, 2 / 6])
    assert (table["robust_low"] < table["robust_accuracy"]).all()
    assert (table["robust_accuracy"] < table["robust_high"]).all()


def test_the_count_after_the_last_part_is_that_of_the_cell() -> None:
    stored, cell = records(), ensemble()
    row = tables.cell_table([cell], stored, "s", "d", 6).iloc[0]
    assert tabulate(cell)["robust_correct"].iloc[-1] == row["robust_correct"]


@pytest.mark.parametrize("keys", [{"parts": ""}, {"goal": "targeted"}, {"eps": 0.0}])
def test_only_untargeted_ensembles_at_a_positive_eps_have_stages(keys: dict[str, Any]) -> None:
    assert tabulate(ensemble(**keys)).empty


def test_a_cell_that_is_not_finished_has_no_stages() -> None:
    stored, cell = records(), ensemble()
    table = tables.cell_table([cell], stored, "s", "d", 7)
    assert table["status"].tolist() == ["missing"]
    assert stages.stage_table([cell], table, stored).empty


def test_a_sentence_names_the_part_that_broke_an_example_last() -> None:
    (sentence,) = stage_view.summarize_stages(tabulate(ensemble()), EPS_TEXTS)
    assert "part 2 of 3, b, was the last to break any (2 examples); 2 of 6" in sentence
    (sentence,) = stage_view.summarize_stages(tabulate(ensemble(parts="a, b")), EPS_TEXTS)
    assert "so that a further part may break more" in sentence
    (sentence,) = stage_view.summarize_stages(tabulate(ensemble(parts="d, e")), EPS_TEXTS)
    assert "no part broke an example" in sentence


def test_a_run_writes_the_stages_of_its_ensemble(tmp_path: Path) -> None:
    suite = tmp_path / "suite.toml"
    suite.write_text(
        """
        schema = 1
        name = "stages"
        [data]
        name = "digits"
        limit = 20
        [[models]]
        name = "lenet"
        weights = "digits"
        [[attacks]]
        name = "rigorous"
        norm = "linf"
        eps = [0, 0.05]
        params = { steps = 4, targets = 2, queries = 10, restarts = 1 }
        """,
        encoding="utf-8",
    )
    found = bench.run(str(suite), tmp_path / "run")
    write_run_output(found, tmp_path / "run")
    written = pd.read_csv(tmp_path / "run" / "stages.csv")
    row = found.table[found.table["eps"] > 0].iloc[0]
    assert ", ".join(f"{a.part}: {a.broken}" for a in written.itertuples()) == row["parts"]
    assert written["robust_correct"].iloc[-1] == row["robust_correct"]
    assert written["broken"].sum() == row["clean_correct"] - row["robust_correct"] > 0
    for page in ("report.html", "report.md"):
        text = (tmp_path / "run" / page).read_text(encoding="utf-8")
        assert "Part by part" in text
        assert "apgd-malt" in text
