"""Compare certified robust accuracy with what attacks left: the truth lies between the two.

No attack can break the certified examples; other attacks may break some of those that the attacks
of the run left. A certified example that an attack broke is a contradiction: either the certificate
or the verdict on the attack is wrong.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.core.errors import RecordError
from bench.evaluation import crafting, metrics
from bench.evaluation.certification import store
from bench.suite import plan

METHODS = {"ibp": "IBP", "crown": "CROWN"}
"""Method -> its spelling in reports."""
COLUMNS = (
    "suite", "model", "dataset", "norm", "eps", "method", "status", "reason", "n",
    "clean_correct", "certified_correct", "clean_accuracy", "certified_accuracy", "certified_low",
    "certified_high", "attacked_robust_correct", "undecided", "seconds", "eps_text",
)  # fmt: skip
COUNTS = ("n", "clean_correct", "certified_correct", "attacked_robust_correct", "undecided")
CONTRADICTIONS = ("model", "method", "eps", "example", "attack", "attack_eps", "norm")


class CertifiedResults(NamedTuple):
    """Certificates of a run's models."""

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
    """Read the certificates of a run, and compare them with its attacks.

    Args:
        folder: Folder of the run.
        provenance: Its manifest.
        worst: That of `tables.worst_case_table`.
        records: Per-example records of the attacks.

    Returns:
        Certified accuracy, and contradictions to attacks.

    Raises:
        RecordError: A file is damaged, has certificates for other eps than the manifest, or
            examples count as certified that are not.
    """
    tasks = [plan.CertificationTask.from_manifest(each) for each in provenance.get("certify", [])]
    wanted = [task for task in tasks if task.smoothing is None]
    stored = store.read_certificates(folder) if wanted else []
    suite, data = provenance["suite"]["name"], provenance["data"]
    rows, finished = [], []
    for task in wanted:
        mine = [
            (about, frame)
            for about, frame in stored
            if about["identity"] == task.identity and not store.is_smoothed(about)
        ]
        if any(len(about["seconds"]) != len(task.eps) for about, _ in mine):
            raise RecordError(
                f"{folder}: certificates of {task.model} of other eps than were asked for; "
                "run the suite again with --fresh"
            )
        own = pd.concat([frame for _, frame in mine], ignore_index=True) if mine else None
        seconds = np.sum([about["seconds"] for about, _ in mine], axis=0) if mine else None
        for place, eps in enumerate(task.eps):
            about = {
                "suite": suite, "model": task.model, "dataset": data["name"], "norm": task.norm,
                "eps": eps, "method": task.method, "eps_text": task.eps_texts[place],
            }  # fmt: skip
            if task.reason:
                rows.append({**about, "status": "skipped", "reason": task.reason})
                continue
            done = 0 if own is None else int((own["eps"] == eps).sum())
            if own is None or seconds is None or done < data["n"]:
                reason = f"{done} of {data['n']} examples are done; run the suite again to go on"
                rows.append({**about, "status": "missing", "reason": reason})
                continue
            outcomes = own[own["eps"] == eps]
            finished.append(outcomes.assign(model=task.model, norm=task.norm))
            left = _count_left(worst, task.model, task.norm, eps)
            rows.append({**about, **_count(outcomes, left), "seconds": seconds[place]})
    _check_left_out(folder, finished, records)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table[list(COUNTS)] = table[list(COUNTS)].astype("Int64")
    return CertifiedResults(table, find_contradictions(finished, records))


def _check_left_out(folder: Path, finished: Sequence[pd.DataFrame], records: pd.DataFrame) -> None:
    """Raise RecordError if an example was left out as certified and no certificate says so.

    Where certificates are missing, the run is not finished and says so.
    """
    if not finished:
        return
    keys = ["model", "norm", "eps", "example"]
    left_out = records.loc[records["certified"].astype(bool), keys]
    proofs = pd.concat([frame[[*keys, "certified"]] for frame in finished])
    known = proofs.groupby(keys)["certified"].any().reset_index(name="proven")
    texts = {"model": str, "norm": str}
    joined = left_out.astype(texts).merge(known.astype(texts), on=keys, how="inner")
    if not joined["proven"].all():
        row = joined[~joined["proven"]].iloc[0]
        raise RecordError(
            f"{folder}: example {row['example']} of {row['model']} at eps {row['eps']:g} was not "
            "attacked as certified, and no certificate proves it; run the suite again with --fresh"
        )


def _count_left(worst: pd.DataFrame, model: str, norm: str, eps: float) -> int | None:
    """Count the examples that every untargeted attack in the norm left correct; None if none."""
    at = worst[(worst["model"] == model) & (worst["norm"] == norm) & (worst["eps"] == eps)]
    at = at[at["goal"] == "untargeted"]
    return int(at["robust_correct"].iloc[0]) if len(at) else None


def _count(outcomes: pd.DataFrame, left: int | None) -> dict[str, Any]:
    """Compute the figures of one row; `left` is that of `_count_left`."""
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
    """Find certified examples with a misclassified image within the certified distance.

    Attacks of every norm and goal are considered, since the distance is measured in the norm of
    the certificate.

    Args:
        outcomes: Certificates of a model, norm and eps: columns model, method, norm, eps, example,
            certified.
        records: Per-example records of the attacks.

    Returns:
        One row per example and attack, columns CONTRADICTIONS.
    """
    wrong = ~metrics.accepted_answers(records) & records["clean_correct"].astype(bool)
    sound = records["violation"].astype(str) == ""
    broken = records.loc[wrong & sound, ["model", "attack", "eps", "example", "linf", "l2"]]
    broken = broken.rename(columns={"eps": "attack_eps"}).astype({"model": str, "attack": str})
    contradictions = [pd.DataFrame(columns=list(CONTRADICTIONS))]
    for frame in outcomes:
        certified = frame.loc[frame["certified"], ["model", "method", "norm", "eps", "example"]]
        both = certified.merge(broken, on=["model", "example"])
        distance = both["linf"].where(both["norm"] == "linf", both["l2"]).astype(float)
        within = distance <= both["eps"].map(crafting.allowed_distance)
        if within.any():
            contradictions.append(both.loc[within, list(CONTRADICTIONS)])
    return pd.concat(contradictions[1:] or contradictions, ignore_index=True)
