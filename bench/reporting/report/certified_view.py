"""Certificates → what the report and the terminal say: the truth between two counts of examples."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from bench.analysis.certified import METHODS, CertifiedResults
from bench.reporting.formats import DASH, absent, count, many, percent, rate, words
from bench.reporting.report.views import Footnotes, Row, View, eps_name, groups, records


def method_name(method: object) -> str:
    return METHODS.get(str(method), str(method))


class Told(NamedTuple):
    """All that is said of a run's certificates."""

    alarm: View | None
    """Certified examples that an attack has broken; None where there is none."""
    sentences: list[str]
    table: View


def told(
    certified: CertifiedResults, worst: pd.DataFrame, names: Mapping[float, str]
) -> Told | None:
    """What the report says; None for a suite that certifies nothing. `names` spell eps."""
    if certified.table.empty:
        return None
    return Told(
        _alarm(certified.contradictions, names), sentences(certified, worst), _table(certified)
    )


def best(certified: CertifiedResults) -> list[Row]:
    """The row of each model and eps whose method certifies most; of equals, the first."""
    rows = [row for row in records(certified.table) if row["status"] == "ok"]
    found = groups(rows, "model", "eps").values()
    return [max(some, key=lambda row: int(row["certified_correct"])) for some in found]


def sentences(certified: CertifiedResults, worst: pd.DataFrame) -> list[str]:
    """The bracket of each model at each eps."""
    untargeted = worst[(worst["norm"] == "linf") & (worst["goal"] == "untargeted")]
    ran = {(row["model"], row["eps"]): row for row in records(untargeted)}
    return [_sentence(row, ran.get((row["model"], row["eps"]))) for row in best(certified)]


def _sentence(row: Row, worst: Row | None) -> str:
    low = _share(row["certified_accuracy"], row["certified_low"], row["certified_high"])
    method = method_name(row["method"])
    where = f"{words(row['model'])}, eps {words(row['eps_text'])}"
    if worst is None:
        return f"{where}: at least {low} (certified, {method}) of examples are robust."
    high = _share(worst["robust_accuracy"], worst["robust_low"], worst["robust_high"])
    attacks = many(int(worst["attacks"]), "attack")
    return (
        f"{where}: between {low} (certified, {method}) and {high} (worst case of {attacks}) of "
        "examples are robust."
    )


def _share(value: float, low: float, high: float) -> str:
    return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"


def _table(certified: CertifiedResults) -> View:
    """A line per model and eps: what each method certifies, what attacks left, what is open."""
    methods = list(dict.fromkeys(certified.table["method"]))
    notes, lines = Footnotes(), []
    for (model, _), rows in groups(records(certified.table), "model", "eps").items():
        by_method = {row["method"]: row for row in rows}
        done = [row for row in rows if row["status"] == "ok"]
        most = max(done, key=lambda row: int(row["certified_correct"]), default=None)
        left, open_ = (
            [DASH if most is None or absent(most[name]) else count(most[name], most["n"])
             for name in ("attacked_robust_correct", "undecided")]
        )  # fmt: skip
        lines.append(
            [words(model), words(rows[0]["eps_text"]),
             *(_cell(by_method[method], notes) for method in methods), left, open_]
        )  # fmt: skip
    columns = ["model", "eps", *(f"certified by {method_name(m)}" for m in methods)]
    return View("", [*columns, "left by all attacks", "undecided"], lines, notes.texts)


def _cell(row: Row, notes: Footnotes) -> str:
    if row["status"] != "ok":
        reason = f"{row['status']}: {words(row['reason'])}"
        return f"{DASH} {notes.mark(reason)}"
    return rate(row["certified_correct"], row["n"], row["certified_low"], row["certified_high"])


def _alarm(contradictions: pd.DataFrame, names: Mapping[float, str]) -> View | None:
    lines = [
        [words(row["model"]), method_name(row["method"]),
         eps_name(row["eps"], names), words(row["example"]), words(row["attack"]),
         eps_name(row["attack_eps"], names)]
        for row in records(contradictions)
    ]  # fmt: skip
    columns = ["model", "certified by", "at eps", "example", "broken by", "run at eps"]
    return View("", columns, lines) if lines else None


def shouted(contradictions: pd.DataFrame) -> Sequence[str]:
    """A sentence for the terminal on each method, eps and attack that cannot both be right."""
    return [
        f"{words(model)}: {method_name(method)} certified at eps {eps:g} "
        f"what {words(attack)} broke within it: {many(len(rows), 'example')} "
        f"({', '.join(words(row['example']) for row in rows[:5])}"
        f"{', ...' if len(rows) > 5 else ''}); one of the two is wrong"
        for (model, method, eps, attack), rows in groups(
            records(contradictions), "model", "method", "eps", "attack"
        ).items()
    ]
