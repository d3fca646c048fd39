"""Tables of a run from its records: one row per cell, and the worst case over attacks at each eps.

Every figure is derived from per-example records by the definitions of `metrics`. A cell that
failed, was skipped or is not finished has its status and reason, and no numbers. A cell most of
whose attacked images are violations counts as failed, too. `columns` declares the columns.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.analysis import columns
from bench.analysis.victim_queries import summarize_victim_queries
from bench.evaluation import metrics
from bench.storage.reader import StoredRecords
from bench.suite.plan import CERTIFIED_TRAIT, Cell

COLUMNS = tuple(column.name for column in columns.MAIN)
ADDITIONAL_COLUMNS = tuple(column.name for column in columns.ADDITIONAL)
NONFINITE_COLUMNS = tuple(column.name for column in columns.NONFINITE)
OPTIONAL_COLUMNS = (
    tuple(column.name for column in columns.VICTIM_QUERIES),
    NONFINITE_COLUMNS,
    tuple(column.name for column in columns.CERTIFIED),
)
"""Groups of columns that a table has if the first of the group has a value above 0."""
COUNTS = columns.select_names("count")
WORST_CASE_COLUMNS = (
    "model", "dataset", "norm", "goal", "eps", "eps_text", "n", "clean_correct", "robust_correct",
    "robust_accuracy", "robust_low", "robust_high", "attacks", "broken_by",
)  # fmt: skip


def cell_table(
    plan: Sequence[Cell], stored: StoredRecords, suite: str, dataset: str, n: int
) -> pd.DataFrame:
    """Summarize the records of each cell.

    Args:
        plan: The cells of the suite.
        stored: Their records.
        suite: Name of the suite.
        dataset: Name of the data set.
        n: Examples that a finished cell has.

    Returns:
        One row per cell, in the order of the plan: COLUMNS, ADDITIONAL_COLUMNS, and those groups
        of OPTIONAL_COLUMNS that any cell has.
    """
    positions = stored.row_positions()
    rows = [
        {"suite": suite, "dataset": dataset, **_row(cell, stored, positions.get(cell.identity), n)}
        for cell in plan
    ]
    present = [group for group in OPTIONAL_COLUMNS if any(row.get(group[0]) for row in rows)]
    more = [name for group in present for name in group]
    table = pd.DataFrame(rows, columns=[*COLUMNS, *ADDITIONAL_COLUMNS, *more])
    counts = [*COUNTS, *(name for name in more if columns.BY_NAME[name].type == "count")]
    table[counts] = table[counts].astype("Int64")
    return table


def outcomes_by_cell(
    plan: Sequence[Cell],
    stored: StoredRecords,
    outcome: Callable[[pd.DataFrame], metrics.Outcomes] = metrics.robust_examples,
) -> dict[str, metrics.Outcomes]:
    """Compute one outcome of every example of every cell.

    Args:
        plan: The cells of the suite.
        stored: Their records.
        outcome: Records -> outcome of each row.

    Returns:
        Identity of a cell with records -> outcomes (examples of the cell,), indexed by example.
    """
    outcomes = outcome(stored.frame)
    outcomes.index = pd.Index(stored.frame["example"])
    planned = {cell.identity for cell in plan}
    positions = stored.row_positions().items()
    return {cell: outcomes.iloc[at] for cell, at in positions if cell in planned}


def worst_case_table(
    plan: Sequence[Cell], table: pd.DataFrame, robust: Mapping[str, metrics.Outcomes]
) -> pd.DataFrame:
    """Count the examples that are robust under every finished attack.

    Where an attack left certified examples out, the last column is their number, `certified`.

    Args:
        plan: The cells of the suite.
        table: That of `cell_table`.
        robust: Identity of a cell -> which examples are robust, indexed by example.

    Returns:
        One row per (model, norm, goal, eps), columns WORST_CASE_COLUMNS; `broken_by` counts for
        each attack, in the suite's order, the examples that it broke first. Where attacks left
        certified examples out, `certified` counts them, and where others attacked them all the
        same, `certified_by` names the former.
    """
    rows = []
    done = table[table["status"] == "ok"]
    texts = {cell.identity: cell.eps_text for cell in plan}
    for keys, group in done.groupby(["model", "dataset", "norm", "goal", "eps"], sort=False):
        left = metrics.worst_case([robust[cell] for cell in group["cell"]])
        standing = pd.Series(True, index=left.index)
        broken: list[str] = []
        for cell, attack in zip(group["cell"], group["attack"], strict=True):
            new = int((standing & ~robust[cell]).sum()) - (
                int(group["n"].iloc[0] - group["clean_correct"].iloc[0]) if not broken else 0
            )
            standing &= robust[cell]
            broken.append(f"{attack}: {new}")
        counted = metrics.rate(int(left.sum()), len(left))
        first = group.iloc[0]
        rows.append(
            {
                **dict(zip(("model", "dataset", "norm", "goal", "eps"), keys, strict=True)),
                "eps_text": texts[first["cell"]],
                "n": counted.n,
                "clean_correct": first["clean_correct"],
                "robust_correct": counted.k,
                "robust_accuracy": counted.value,
                "robust_low": counted.low,
                "robust_high": counted.high,
                "attacks": len(group),
                "broken_by": ", ".join(broken) if first["eps"] > 0 else "",
                "certified": count_certified(group),
                "certified_by": _name_sparing_attacks(group),
            }
        )
    present = [name for name in ("certified", "certified_by") if any(row[name] for row in rows)]
    return pd.DataFrame(rows, columns=[*WORST_CASE_COLUMNS, *present])


def _name_sparing_attacks(cells: pd.DataFrame) -> str:
    """Name the attacks that left certified examples out, where another one attacked them."""
    if not count_certified(cells):
        return ""
    sparing = cells.loc[cells["certified"] > 0, "attack"]
    return ", ".join(sparing) if len(sparing) < len(cells) else ""


def count_certified(cells: pd.DataFrame) -> int:
    """Count the certified examples that an attack on one model at one eps left out.

    Args:
        cells: Rows of the table of cells, of one model, norm, goal and eps.

    Returns:
        The number; 0 if all were attacked. Attacks that leave any out leave the same ones out.
    """
    known = cells["certified"].dropna() if "certified" in cells else pd.Series(dtype=int)
    return int(known.max()) if len(known) else 0


def describe_certified(table: pd.DataFrame) -> list[str]:
    """Say how many examples of a run attacks left out because they are certified.

    Args:
        table: That of `cell_table`.

    Returns:
        A sentence for each model and norm.
    """
    if "certified" not in table:
        return []
    sentences = []
    some = table[table["certified"] > 0]
    for (model, norm), cells in some.groupby(["model", "norm"], sort=False):
        by_eps = cells.sort_values("eps").groupby("eps_text", sort=False)
        counts = ", ".join(
            f"{count_certified(own)} of {own['n'].iloc[0]} at eps {eps}" for eps, own in by_eps
        )
        attacks = ", ".join(dict.fromkeys(cells["attack"]))
        sentences.append(
            f"{model}, {norm}: certified examples were not attacked by {attacks} and count as "
            f"robust in every number, {counts}."
        )
    return sentences


def describe_split_votes(table: pd.DataFrame) -> list[str]:
    """Say how often the predictions of a randomized model were not unanimous.

    Args:
        table: That of `cell_table`.

    Returns:
        A sentence for each model whose predictions vote.
    """
    voted = table[(table["status"] == "ok") & (table["predictions"] > 1)]
    return [
        f"{model}: its {cells['predictions'].iloc[0]} predictions of an image were not unanimous "
        f"on {cells['unstable'].sum()} of {cells['n'].sum()} images, all cells taken together."
        for model, cells in voted.groupby("model", sort=False)
    ]


def violation_table(stored: StoredRecords) -> pd.DataFrame:
    """Select the returned images that break their threat model.

    Args:
        stored: Records of the run.

    Returns:
        One row per image, columns model, attack, norm, eps, example, violation.
    """
    names = ["model", "attack", "norm", "eps", "example", "violation"]
    broken = stored.frame[stored.frame["violation"] != ""]
    return broken[names].reset_index(drop=True)


def _describe_cell(cell: Cell) -> dict[str, object]:
    """Return the columns that a cell has before it is run."""
    return {
        "model": cell.model,
        "attack": cell.attack,
        "implementation": cell.implementation,
        "norm": cell.norm,
        "eps": cell.eps,
        "goal": cell.goal,
        "status": "ok",
        "reason": "",
        "eps_text": cell.eps_text,
        "target": cell.target,
        "stop": cell.stop,
        "caveats": " ".join(cell.caveats),
        "threat_model": cell.threat_model,
        "source": cell.source,
        "family": cell.family or cell.attack,
        "varied": cell.varied,
        "value": cell.value,
        "seed": cell.seed,
        "precision": cell.precision,
        "samples": cell.samples,
        "predictions": cell.predictions,
        "cell": cell.identity,
    }


def _row(cell: Cell, stored: StoredRecords, positions: Any, n: int) -> dict[str, object]:
    about = _describe_cell(cell)
    pieces = [piece for piece in stored.pieces if piece.cell == cell.identity]
    done = sum(piece.last - piece.first for piece in pieces)
    if cell.reason:
        return {**about, "status": "skipped", "reason": cell.reason}
    if cell.identity in stored.failures:
        return {**about, "status": "failed", "reason": stored.failures[cell.identity]}
    if done < n:
        reason = f"{done} of {n} examples are done; run the suite again to go on"
        return {**about, "status": "missing", "reason": reason}
    records = stored.frame.iloc[positions]
    attacked = sum(piece.attacked for piece in pieces)
    if reason := _mostly_violations(records, attacked):
        return {**about, "status": "failed", "reason": reason}
    counted = _counts(records)
    seconds = sum(piece.seconds for piece in pieces)
    timed = all(piece.floor_seconds for piece in pieces if piece.attacked)
    floor = sum(piece.floor_seconds for piece in pieces) if timed else 0.0
    fooled = records[records["fooled"]]
    parts = [name for name in cell.traits.get("parts", "").split(", ") if name]
    passes = records[["forwards", "backwards"]].sum()
    return {
        **about,
        **counted,
        **summarize_victim_queries(cell, records),
        **_describe_certified(cell, records),
        "mean_confidence_fooled": fooled["confidence"].mean(),
        **{f"mean_{norm}": fooled[norm].mean() for norm in ("linf", "l2", "l1", "l0")},
        "mean_target_cross_entropy": _target_cross_entropy(cell, fooled),
        "attacked": attacked,
        "forwards_per_example": passes["forwards"] / attacked if attacked else 0.0,
        "backwards_per_example": passes["backwards"] / attacked if attacked else 0.0,
        "seconds": seconds,
        "examples_per_second": attacked / seconds if seconds else None,
        "floor_ratio": seconds / floor if floor else None,
        "device": pieces[0].device,
        "verify_seconds": sum(piece.verify_seconds for piece in pieces),
        "rows_per_pass": pieces[0].rows,
        **{name: sum(getattr(piece, name) for piece in pieces) for name in NONFINITE_COLUMNS},
        "parts": ", ".join(f"{name}: {int((fooled['part'] == name).sum())}" for name in parts),
    }


def _describe_certified(cell: Cell, records: pd.DataFrame) -> dict[str, object]:
    """Count the certified examples that were not attacked, and say so among the caveats."""
    if CERTIFIED_TRAIT not in cell.traits:
        return {}
    count, n = int(records["certified"].sum()), len(records)
    caveat = (
        f"{count} of {n} examples are certified at this eps: they were not attacked and count as "
        "robust."
        if count
        else f"None of {n} examples is certified at this eps, so that none was left out."
    )
    return {"certified": count, "caveats": " ".join([*cell.caveats, caveat])}


def _mostly_violations(records: pd.DataFrame, attacked: int) -> str:
    """Give the reason if more than half of the attacked images are violations, else "".

    Each counts as a failed attack, so that such a cell would show a robust model.
    """
    broken = records[records["violation"] != ""]
    if 2 * len(broken) <= attacked:
        return ""
    first = broken.iloc[0]
    return (
        f"{len(broken)} of {attacked} attacked images are violations, the first of them example "
        f"{first['example']}: {first['violation']}; no robustness can be read from an attack that "
        "mostly breaks its threat model"
    )


def _target_cross_entropy(cell: Cell, fooled: pd.DataFrame) -> float | None:
    """Average the cross-entropy -ln p(target) over the fooled examples."""
    if cell.goal != "targeted" or fooled.empty:
        return None
    return float(-np.log(fooled["confidence"].astype(float)).mean())


def _counts(records: pd.DataFrame) -> dict[str, object]:
    n = len(records)
    clean = metrics.rate(int(records["clean_correct"].sum()), n)
    robust = metrics.rate(int(metrics.robust_examples(records).sum()), n)
    robust_8bit = metrics.rate(int(metrics.robust_examples_8bit(records).sum()), n)
    eligible, fooled = int(metrics.eligible_examples(records).sum()), int(records["fooled"].sum())
    success = metrics.rate(fooled, eligible) if eligible else None
    return {
        "reason": "" if success else "no example is classified correctly, so no attack can succeed",
        "n": n,
        "clean_correct": clean.k,
        "robust_correct": robust.k,
        "clean_accuracy": clean.value,
        "robust_accuracy": robust.value,
        "robust_low": robust.low,
        "robust_high": robust.high,
        "attack_success_rate": success.value if success else None,
        "success_low": success.low if success else None,
        "success_high": success.high if success else None,
        "robust_accuracy_8bit": robust_8bit.value,
        "violations": int((records["violation"] != "").sum()),
        "eligible": eligible,
        "fooled": fooled,
        "robust_correct_8bit": robust_8bit.k,
        "unstable": int((records["agreement"] < 1).sum()),
    }
