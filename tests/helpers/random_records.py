"""Plans, tables and records of runs that never were: every outcome is drawn at random."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.analysis import tables
from bench.evaluation import metrics
from bench.storage.reader import StoredRecords
from bench.storage.schema import COLUMNS, Piece
from bench.suite.plan import Cell


class DrawnRun(NamedTuple):
    """What the tables of a run are computed from."""

    plan: list[Cell]
    table: pd.DataFrame
    stored: StoredRecords
    robust: dict[str, metrics.Outcomes]


def make_cell(identity: str, **keys: Any) -> Cell:
    """A planned cell of the model "net"; the attack's label is the identity unless given."""
    given = {
        "model": "net", "attack": identity, "implementation": "bench", "norm": "linf", "eps": 0.3,
        "eps_text": f"{keys.get('eps', 0.3):g}", "goal": "untargeted", "target": "",
        "stop": "never", "reason": "", "passes": 1.0, "gradients": 1.0, "traits": {},
        "caveats": (),
    }  # fmt: skip
    return Cell(identity=identity, **{**given, **keys})


def draw_records(
    cells: Sequence[Cell],
    n: int,
    n_classes: int,
    generator: np.random.Generator,
    broken: float = 0.05,
) -> pd.DataFrame:
    """Records of consistent outcomes: the clean predictions of a model are the same in all cells.

    A share of the attacked examples are violations, a share predictions of no class (-1).
    """
    labels = generator.integers(n_classes, size=n)
    frames = []
    clean = {
        model: np.where(generator.random(n) < 0.8, labels, generator.integers(n_classes, size=n))
        for model in dict.fromkeys(cell.model for cell in cells)
    }
    for cell in cells:
        before = clean[cell.model]
        is_targeted = cell.goal == "targeted"
        targets = (labels + 1) % n_classes if is_targeted else np.full(n, -1)
        moved = generator.integers(-1, n_classes, size=n)
        after = np.where((generator.random(n) < 0.5) & (cell.eps > 0), moved, before)
        right = before == labels
        after = np.where(right, after, before)
        violation = np.where(right & (generator.random(n) < broken) & (cell.eps > 0), "far", "")
        fooled = right & (violation == "") & (labels != targets)
        fooled &= (after == targets) if is_targeted else (after != labels)
        frames.append(
            pd.DataFrame(
                {
                    "suite": "s",
                    "model": cell.model,
                    "attack": cell.attack,
                    "norm": cell.norm,
                    "eps": cell.eps,
                    "goal": cell.goal,
                    "example": np.arange(n),
                    "label": labels,
                    "target": targets,
                    "clean_pred": before,
                    "adv_pred": after,
                    "adv_pred_8bit": after,
                    "clean_correct": right,
                    "fooled": fooled,
                    "violation": violation,
                    "confidence": 0.5,
                    "linf": 0.1,
                    "l2": 0.2,
                    "l1": 0.3,
                    "l0": 4.0,
                    "forwards": 1.0,
                    "backwards": 1.0,
                    "first_success_step": -1,
                    "clean_confidence": 0.9,
                    "attacked": right,
                    "cell": cell.identity,
                    "part": "",
                    "agreement": 1.0,
                    "distance": math.nan,
                    "queries": math.nan,
                    "distance_within": None,
                    "parameters": "",
                    "rejection": -1,
                    "rejected_is_robust": False,
                    "victim_queries": math.nan,
                    "certified": False,
                }
            )[list(COLUMNS)]
        )
    return pd.concat(frames, ignore_index=True)


def build_run(
    plan: Sequence[Cell], records: pd.DataFrame, n: int, failures: dict[str, str] | None = None
) -> DrawnRun:
    """The tables of cells with these records; a planned cell without records is missing."""
    pieces = [
        Piece(identity, 0, len(rows), int(rows["attacked"].sum()), 2.0, 0.5, 1.6, 64, "cpu")
        for identity, rows in records.groupby("cell", sort=False)
    ]
    stored = StoredRecords(records, pieces, failures or {})
    table = tables.cell_table(plan, stored, "s", "digits", n)
    return DrawnRun([*plan], table, stored, tables.outcomes_by_cell(plan, stored))
