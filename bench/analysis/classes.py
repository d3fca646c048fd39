"""Break a run down by class: each cell, and the worst case over the attacks at each eps.

Only classes that occur have rows, so that the size follows the examples. Every figure is counted
from the per-example records by the definitions of `metrics`, as those of all classes together.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.evaluation import metrics
from bench.storage.reader import StoredRecords
from bench.suite.labels import WORST_CASE

COLUMNS = (
    "model", "dataset", "attack", "norm", "goal", "eps", "eps_text", "class", "class_name", "n",
    "clean_correct", "eligible", "fooled", "robust_correct", "robust_accuracy", "robust_low",
    "robust_high", "attack_success_rate", "success_low", "success_high", "wrong_class",
    "wrong_class_name", "wrong_count",
)  # fmt: skip
WORST_CLASS_COLUMNS = (
    "model", "dataset", "norm", "goal", "eps", "eps_text", "classes", "unattacked", "worst_class",
    "worst_class_name", "ties", "n", "robust_correct", "robust_accuracy", "robust_low",
    "robust_high", "wrong_class_name", "wrong_count", "best_class_name", "best_robust_correct",
    "best_n", "spread",
)  # fmt: skip
REJECTED = -2
"""Stands for a rejection, where that counts as an error, in place of the wrong class."""
MAX_ROWS = 100_000
"""Most rows of classes.csv, some 20 MB: a larger breakdown has the worst case alone."""
MAX_SHOWN, LOWEST_SHOWN = 20, 10
"""Most classes that a page shows, and how many it shows of a data set with more."""
_COUNTED = ["clean_correct", "eligible", "fooled", "robust_correct"]
_PLACE = ["model", "dataset", "norm", "goal", "eps"]


def class_table(
    table: pd.DataFrame, stored: StoredRecords, class_names: Sequence[str] | None
) -> pd.DataFrame:
    """Count outcomes by true class, in every finished cell and in the worst case at each eps.

    Under the worst case an example is fooled if an attack fools it, and its wrong class is the
    prediction under the first such attack in the suite's order.

    Args:
        table: That of `tables.cell_table`.
        stored: Records of the run.
        class_names: Name of each class; None if there are none.

    Returns:
        One row per cell and class that occurs, columns COLUMNS; `attack` is WORST_CASE for the
        worst case, whose rows come first within each model, norm, goal and eps. `wrong_class` is
        the most frequent prediction of the fooled examples, the smallest of equally frequent ones;
        -1 stands for logits that are not finite, REJECTED for a rejection. With more than MAX_ROWS
        rows, the cells are left out.
    """
    done = table[table["status"] == "ok"]
    outcomes = _collect_outcomes(stored)
    positions = stored.row_positions()
    worst: list[pd.DataFrame] = []
    cells: list[pd.DataFrame] = []
    for at, (_, group) in enumerate(done.groupby(_PLACE, sort=False)):
        sides = [_by_example(outcomes.iloc[positions[cell]]) for cell in group["cell"]]
        about = {name: group[name].iloc[0] for name in (*_PLACE, "eps_text")}
        joined = _count_classes(_join_attacks(sides))
        worst.append(joined.assign(**about, attack=WORST_CASE, order=at))
        for attack, side in zip(group["attack"], sides, strict=True):
            cells.append(_count_classes(side).assign(**about, attack=attack, order=at))
    n_rows = sum(map(len, [*worst, *cells]))
    chosen = [*worst, *cells] if n_rows <= MAX_ROWS else worst
    if not chosen:
        return pd.DataFrame(columns=list(COLUMNS))
    counted = pd.concat(chosen, ignore_index=True).sort_values("order", kind="stable")
    return _add_rates(counted, class_names).reset_index(drop=True)


def _collect_outcomes(stored: StoredRecords) -> pd.DataFrame:
    """Compute what is counted of every record."""
    records = stored.frame
    return pd.DataFrame(
        {
            "example": records["example"].to_numpy(),
            "class": records["label"].to_numpy(),
            "clean_correct": records["clean_correct"].to_numpy(dtype=bool),
            "eligible": metrics.eligible_examples(records).to_numpy(),
            "fooled": metrics.fooled_examples(records).to_numpy(),
            "robust_correct": metrics.robust_examples(records).to_numpy(),
            "wrong_class": np.where(
                metrics.rejected_examples(records), REJECTED, records["adv_pred"]
            ),
        }
    )


def _by_example(outcomes: pd.DataFrame) -> pd.DataFrame:
    return outcomes.set_index("example").sort_index()


def _join_attacks(sides: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the outcomes of several attacks on the same examples to those of the worst case."""
    first = sides[0]
    robust = metrics.worst_case([side["robust_correct"] for side in sides])
    eligible, fooled = (
        np.logical_or.reduce([side[name].to_numpy() for side in sides])
        for name in ("eligible", "fooled")
    )
    wrong = first["wrong_class"].to_numpy().copy()
    unset = ~first["fooled"].to_numpy()
    for side in sides[1:]:
        new = unset & side["fooled"].to_numpy()
        wrong[new] = side["wrong_class"].to_numpy()[new]
        unset &= ~new
    return first.assign(robust_correct=robust, eligible=eligible, fooled=fooled, wrong_class=wrong)


def _count_classes(outcomes: pd.DataFrame) -> pd.DataFrame:
    """Count the outcomes of one cell by class, with the most frequent wrong class."""
    labels, places = np.unique(outcomes["class"].to_numpy(), return_inverse=True)
    counts = {
        name: np.bincount(places[outcomes[name].to_numpy()], minlength=len(labels))
        for name in _COUNTED
    }
    fooled = outcomes.loc[outcomes["fooled"], ["class", "wrong_class"]]
    wrong = fooled.groupby(["class", "wrong_class"]).size().rename("wrong_count").reset_index()
    # Sorted by class and prediction: of equally frequent predictions the smallest comes first.
    ranked = wrong.sort_values("wrong_count", ascending=False, kind="stable")
    most = ranked.drop_duplicates("class").set_index("class").reindex(labels)
    return pd.DataFrame(
        {
            "class": labels,
            "n": np.bincount(places),
            **counts,
            **{name: most[name].to_numpy() for name in ("wrong_class", "wrong_count")},
        }
    )


def _add_rates(counted: pd.DataFrame, class_names: Sequence[str] | None) -> pd.DataFrame:
    robust = [
        metrics.rate(k, n) for k, n in zip(counted["robust_correct"], counted["n"], strict=True)
    ]
    success = [
        metrics.rate(k, n) if n else None
        for k, n in zip(counted["fooled"], counted["eligible"], strict=True)
    ]
    frame = counted.assign(
        class_name=[name_class(index, class_names) for index in counted["class"]],
        wrong_class_name=[name_class(index, class_names) for index in counted["wrong_class"]],
        robust_accuracy=[rate.value for rate in robust],
        robust_low=[rate.low for rate in robust],
        robust_high=[rate.high for rate in robust],
        attack_success_rate=[rate.value if rate else np.nan for rate in success],
        success_low=[rate.low if rate else np.nan for rate in success],
        success_high=[rate.high if rate else np.nan for rate in success],
    )
    counts = {name: frame[name].astype("Int64") for name in ("wrong_class", "wrong_count")}
    return frame.assign(**counts)[list(COLUMNS)]


def name_class(index: Any, class_names: Sequence[str] | None) -> str:
    """Name a class.

    Args:
        index: Its index; missing where there is none, -1 for logits that are not finite, REJECTED
            for a rejected image.
        class_names: Name of each class; None if there are none.

    Returns:
        The name, else the index as text; empty where there is none.
    """
    if pd.isna(index):
        return ""
    if index < 0:
        return "rejected" if index == REJECTED else "not finite"
    return class_names[int(index)] if class_names and index < len(class_names) else str(int(index))


def find_worst_classes(classes: pd.DataFrame) -> pd.DataFrame:
    """Find the class with the lowest robust accuracy under the worst case at each eps.

    A class is considered if an attack could succeed on one of its examples. Of equally low classes
    the one with the most examples is named, whose interval is the narrowest.

    Args:
        classes: That of `class_table`.

    Returns:
        One row per model, norm, goal and eps, columns WORST_CLASS_COLUMNS: `classes` that occur,
        `unattacked` ones without an example to attack, `ties` others as low as the worst, `spread`
        between the highest and the lowest robust accuracy.
    """
    worst = classes[classes["attack"] == WORST_CASE]
    rows = [
        {**dict(zip(_PLACE, keys, strict=True)), **_compare_classes(group)}
        for keys, group in worst.groupby(_PLACE, sort=False)
        if (group["eligible"] > 0).any()
    ]
    return pd.DataFrame(rows, columns=list(WORST_CLASS_COLUMNS))


def _compare_classes(group: pd.DataFrame) -> dict[str, Any]:
    able = group[group["eligible"] > 0]
    ranked = able.sort_values(["robust_accuracy", "n"], ascending=[True, False], kind="stable")
    lowest, highest = ranked.iloc[0], ranked.iloc[-1]
    return {
        "eps_text": lowest["eps_text"],
        "classes": len(group),
        "unattacked": len(group) - len(able),
        "worst_class": lowest["class"],
        "worst_class_name": lowest["class_name"],
        "ties": int((able["robust_accuracy"] == lowest["robust_accuracy"]).sum()) - 1,
        **{
            name: lowest[name]
            for name in (
                "n", "robust_correct", "robust_accuracy", "robust_low", "robust_high",
                "wrong_class_name", "wrong_count",
            )
        },
        "best_class_name": highest["class_name"],
        "best_robust_correct": highest["robust_correct"],
        "best_n": highest["n"],
        "spread": highest["robust_accuracy"] - lowest["robust_accuracy"],
    }  # fmt: skip


def select_shown_classes(classes: pd.DataFrame) -> list[int]:
    """Select the classes that pages show: all, or of many those with the lowest robust accuracy.

    The robust accuracy is that of all eps above 0 together; classes without an example to attack
    come last.

    Args:
        classes: Rows of one model, norm and goal under the worst case, at several eps.

    Returns:
        Up to MAX_SHOWN classes in ascending order; of more, the LOWEST_SHOWN lowest ones, the
        lowest first.
    """
    every = sorted(int(index) for index in classes["class"].unique())
    if len(every) <= MAX_SHOWN:
        return every
    above = classes[classes["eps"] > 0]
    sums = above.groupby("class")[["robust_correct", "n", "eligible"]].sum()
    keys = {"idle": sums["eligible"] == 0, "share": sums["robust_correct"] / sums["n"]}
    order = pd.DataFrame({**keys, "n": -sums["n"]}).sort_values([*keys, "n"], kind="stable")
    return [int(index) for index in order.index[:LOWEST_SHOWN]]
