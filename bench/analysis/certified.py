"""Certificates laid beside what attacks left: the truth lies between the two.

It lies between two counts of examples: those certified, which nothing can break, and those that the
attacks left, some of which something else may break. A certified example that an attack has broken
is a contradiction: either the certificate or the verdict on the attack is wrong.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import RecordError
from bench.evaluation import crafting, metrics
from bench.evaluation.certification import store
from bench.storage import manifest
from bench.suite import plan

METHODS = {"ibp": "IBP", "crown": "CROWN"}
"""Each method as it is written."""
COLUMNS = (
    "suite", "model", "dataset", "norm", "eps", "method", "status", "reason", "n",
    "clean_correct", "certified_correct", "clean_accuracy", "certified_accuracy", "certified_low",
    "certified_high", "attacked_robust_correct", "undecided", "seconds", "eps_text",
)  # fmt: skip
COUNTS = ("n", "clean_correct", "certified_correct", "attacked_robust_correct", "undecided")
CONTRADICTIONS = ("model", "method", "eps", "example", "attack", "attack_eps")


class CertifiedResults(NamedTuple):
    """What a run knows of its models' certificates."""

    table: pd.DataFrame
    """One row per model, eps and method, columns COLUMNS; empty unless the suite certifies."""
    contradictions: pd.DataFrame
    """Certified examples that an attack has broken, columns CONTRADICTIONS."""


def read_certified(
    folder: Path,
    provenance: Mapping[str, Any],
    worst: pd.DataFrame,
    records: pd.DataFrame,
) -> CertifiedResults:
    """What a run's folder holds of certificates, beside what its attacks left.

    `worst` is that of `tables.worst_case`, `records` are the attacks' per-example records.
    Raises: RecordError naming a file that is damaged.
    """
    tasks = manifest.select_known_fields(plan.CertificationTask, provenance.get("certify", []))
    wanted = [_task(each) for each in tasks]
    stored = store.stored(folder) if wanted else []
    suite, data = provenance["suite"]["name"], provenance["data"]
    rows, kept = [], []
    for task in wanted:
        mine = [(about, frame) for about, frame in stored if about["identity"] == task.identity]
        if any(len(about["seconds"]) != len(task.eps) for about, _ in mine):
            raise RecordError(
                f"{folder}: certificates of {task.model} of other eps than were asked for; "
                "run the suite again with --fresh"
            )
        own = pd.concat([frame for _, frame in mine], ignore_index=True) if mine else None
        seconds = np.sum([about["seconds"] for about, _ in mine], axis=0) if mine else None
        for place, eps in enumerate(task.eps):
            about = {
                "suite": suite, "model": task.model, "dataset": data["name"], "norm": "linf",
                "eps": eps, "method": task.method, "eps_text": task.eps_texts[place],
            }  # fmt: skip
            if task.reason:
                rows.append({**about, "status": "skipped", "reason": task.reason})
                continue
            there = 0 if own is None else int((own["eps"] == eps).sum())
            if own is None or seconds is None or there < data["n"]:
                reason = f"{there} of {data['n']} examples are done; run the suite again to go on"
                rows.append({**about, "status": "missing", "reason": reason})
                continue
            outcomes = own[own["eps"] == eps]
            kept.append(outcomes.assign(model=task.model))
            left = _left(worst, task.model, eps)
            rows.append({**about, **_counted(outcomes, left), "seconds": seconds[place]})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table[list(COUNTS)] = table[list(COUNTS)].astype("Int64")
    return CertifiedResults(table, find_contradictions(kept, records))


def _task(raw: Mapping[str, Any]) -> plan.CertificationTask:
    return plan.CertificationTask(
        **{**raw, "eps": tuple(raw["eps"]), "eps_texts": tuple(raw["eps_texts"])}
    )


def _left(worst: pd.DataFrame, model: str, eps: float) -> int | None:
    """Examples that every untargeted L-inf attack at this eps left correct; None if none ran."""
    at = worst[(worst["model"] == model) & (worst["norm"] == "linf") & (worst["eps"] == eps)]
    at = at[at["goal"] == "untargeted"]
    return int(at["robust_correct"].iloc[0]) if len(at) else None


def _counted(outcomes: pd.DataFrame, left: int | None) -> dict[str, Any]:
    n = len(outcomes)
    clean = metrics.rate(int(outcomes["clean_correct"].sum()), n)
    rate = metrics.rate(int(outcomes["certified"].sum()), n)
    return {
        "status": "ok",
        "reason": "",
        "n": n,
        "clean_correct": clean.k,
        "certified_correct": rate.k,
        "clean_accuracy": clean.value,
        "certified_accuracy": rate.value,
        "certified_low": rate.low,
        "certified_high": rate.high,
        "attacked_robust_correct": left,
        "undecided": None if left is None else left - rate.k,
    }


def find_contradictions(outcomes: Iterable[pd.DataFrame], records: pd.DataFrame) -> pd.DataFrame:
    """Certified examples beside an image that was judged wrong, within the certified distance.

    Every attack counts, whatever its norm and goal, since the distance is measured in L-inf.
    """
    wrong = (records["adv_pred"] != records["label"]) & records["clean_correct"].astype(bool)
    sound = records["violation"].astype(str) == ""
    broken = records.loc[wrong & sound, ["model", "attack", "eps", "example", "linf"]]
    broken = broken.rename(columns={"eps": "attack_eps"}).astype({"model": str, "attack": str})
    found = [pd.DataFrame(columns=list(CONTRADICTIONS))]
    for frame in outcomes:
        held = frame.loc[frame["certified"], ["model", "method", "eps", "example"]]
        both = held.merge(broken, on=["model", "example"])
        within = both["linf"].astype(float) <= both["eps"].map(crafting.allowed)
        if within.any():
            found.append(both.loc[within, list(CONTRADICTIONS)])
    return pd.concat(found[1:] or found, ignore_index=True)
