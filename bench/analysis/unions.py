"""Count the examples that are robust to several threat models together.

An example is robust to a union if it is classified correctly without attack and under every attack
of every threat model in it. Balls of one norm are nested, so the attacks at smaller eps count, too.
A threat model with no finished attack at its largest eps leaves the union without a number: the
count would be that of other threat models. Any other cell without a number is named beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.analysis.tables import count_certified
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.suite.labels import ALL_THREATS
from bench.suite.unions import ThreatUnion

COLUMNS = (
    "model", "dataset", "label", "goal", "threats", "largest_eps", "status", "reason", "n",
    "clean_correct", "robust_correct", "robust_accuracy", "robust_low", "robust_high", "cells",
    "cells_planned", "absent", "broken_by", "broken_only_by",
)  # fmt: skip
_COUNTS = ["n", "clean_correct", "robust_correct", "cells", "cells_planned"]
_RATES = ["robust_accuracy", "robust_low", "robust_high"]


class Threat(NamedTuple):
    """A ball of a union."""

    norm: str
    eps: float
    """Radius: attacks in the norm at an eps of at most this count."""
    eps_text: str


def union_table(
    table: pd.DataFrame, robust: Mapping[str, Outcomes], unions: Sequence[ThreatUnion] = ()
) -> pd.DataFrame:
    """Count the examples of each model that are robust to each union of threat models.

    Args:
        table: That of `tables.cell_table`.
        robust: Identity of a cell -> which examples are robust, indexed by example.
        unions: Those of the suite, beside that of all its threat models.

    Returns:
        One row per model, goal and union of at least two norms, columns COLUMNS. `threats` holds
        the radii, `largest_eps` the largest eps that was run within each; `absent` names the
        planned cells without a number; `broken_by` counts for each norm the examples that lose
        their correct class, `broken_only_by` those that lose it under this norm alone. Where
        attacks left certified examples out, `certified` counts them for each norm at its largest
        eps.
    """
    above = table[table["eps"] > 0]
    rows = []
    for keys, cells in above.groupby(["model", "dataset", "goal"], sort=False):
        model, dataset, goal = keys
        for label, threats in list_unions(cells, unions):
            about = {"model": model, "dataset": dataset, "label": label, "goal": goal}
            rows.append({**about, **_count_union(threats, cells, robust)})
    present = ["certified"] if any(row.get("certified") for row in rows) else []
    frame = pd.DataFrame(rows, columns=[*COLUMNS, *present])
    counts = {name: frame[name].astype("Int64") for name in _COUNTS}
    return frame.assign(**counts, **{name: frame[name].astype(float) for name in _RATES})


def find_threats(cells: pd.DataFrame) -> list[Threat]:
    """Find the threat models of cells: each norm at its largest eps above 0.

    Args:
        cells: Rows with the columns norm, eps and eps_text.

    Returns:
        One threat model per norm, in order of first appearance.
    """
    largest = cells[cells["eps"] > 0].sort_values("eps", ascending=False, kind="stable")
    by_norm = {str(row["norm"]): row for row in reversed(largest.to_dict("records"))}
    order = dict.fromkeys(str(norm) for norm in cells["norm"])
    return [
        Threat(norm, float(by_norm[norm]["eps"]), str(by_norm[norm]["eps_text"]))
        for norm in order
        if norm in by_norm
    ]


def list_unions(
    cells: pd.DataFrame, unions: Sequence[ThreatUnion]
) -> Iterator[tuple[str, list[Threat]]]:
    """List the unions that cells have attacks for: that of all threat models, and those of a suite.

    Args:
        cells: Rows with the columns norm, eps and eps_text, of one model and goal.
        unions: Those of the suite.

    Yields:
        Label and threat models of each union of at least two norms.
    """
    every = find_threats(cells)
    if len(every) > 1:
        yield ALL_THREATS, every
    for union in unions:
        threats = [Threat(each.norm, each.eps, each.eps_text) for each in union.threats]
        if len(threats) > 1 and all(len(select_cells(cells, threat)) for threat in threats):
            yield union.label, threats


def select_cells(cells: pd.DataFrame, threat: Threat) -> pd.DataFrame:
    """Select the cells above eps 0 whose ball lies in that of a threat model.

    Args:
        cells: Rows with the columns norm and eps.
        threat: The threat model.

    Returns:
        The rows.
    """
    inside = (cells["eps"] > 0) & (cells["eps"] <= threat.eps)
    return cells[(cells["norm"] == threat.norm) & inside]


def _count_union(
    threats: Sequence[Threat], cells: pd.DataFrame, robust: Mapping[str, Outcomes]
) -> dict[str, Any]:
    members = {threat.norm: select_cells(cells, threat) for threat in threats}
    planned = pd.concat(list(members.values()))
    done = planned[planned["status"] == "ok"]
    largest = {norm: find_threats(rows)[0] for norm, rows in members.items()}
    summary: dict[str, Any] = {
        "threats": _join((threat.norm, threat.eps_text) for threat in threats),
        "largest_eps": _join((threat.norm, threat.eps_text) for threat in largest.values()),
        "cells": len(done),
        "cells_planned": len(planned),
        "absent": "; ".join(describe_absent(planned)),
    }
    unrun = [
        f"{threat.norm} {threat.eps_text}"
        for norm, threat in largest.items()
        if not ((done["norm"] == norm) & (done["eps"] == threat.eps)).any()
    ]
    if unrun:
        reason = f"no finished attack at {', '.join(unrun)}"
        return {**summary, "status": "incomplete", "reason": reason}
    left = {
        norm: metrics.worst_case([robust[cell] for cell in rows["cell"][rows["status"] == "ok"]])
        for norm, rows in members.items()
    }
    counted = metrics.worst_case(list(left.values()))
    rate = metrics.rate(int(counted.sum()), len(counted))
    clean = int(done["clean_correct"].iloc[0])
    without = {norm: [left[other] for other in left if other != norm] for norm in left}
    alone = {
        norm: int(metrics.worst_case(others).sum()) - rate.k for norm, others in without.items()
    }
    return {
        **summary,
        "status": "ok",
        "reason": "",
        "n": rate.n,
        "clean_correct": clean,
        "robust_correct": rate.k,
        "robust_accuracy": rate.value,
        "robust_low": rate.low,
        "robust_high": rate.high,
        "broken_by": _join((f"{norm}:", clean - int(left[norm].sum())) for norm in left),
        "broken_only_by": _join((f"{norm}:", alone[norm]) for norm in left),
        "certified": _join(_count_left_out(done, list(largest.values()))),
    }


def _count_left_out(done: pd.DataFrame, threats: Sequence[Threat]) -> Iterator[tuple[str, int]]:
    """Count the certified examples that attacks left out, for each threat model with any."""
    for threat in threats:
        cells = done[(done["norm"] == threat.norm) & (done["eps"] == threat.eps)]
        if count := count_certified(cells):
            yield f"{threat.norm}:", count


def describe_absent(cells: pd.DataFrame) -> list[str]:
    """Name the cells without a number, the eps of one attack together.

    Args:
        cells: Rows of the table of cells, of one model and goal.

    Returns:
        A phrase per attack, norm and status, such as "PGD at linf 0.1, 0.3: failed".
    """
    absent = cells[cells["status"] != "ok"]
    groups = absent.groupby(["attack", "norm", "status"], sort=False)
    return [
        f"{attack} at {norm} {', '.join(rows['eps_text'])}: {status}"
        for (attack, norm, status), rows in groups
    ]


def _join(pairs: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in pairs)
