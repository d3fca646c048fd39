"""The audit → what the report and the terminal say of it, model by model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.evaluation.audit.findings import Audit
from bench.evaluation.audit.symptoms import SYMPTOMS, ObservedSymptom
from bench.reporting.formats import many
from bench.reporting.report.views import Footnotes, View, eps_name, norm_name

SHOWN = 5
"""Example ids that are shown of a sign; audit.csv has them all."""
EVERY = "every gradient attack"


class Told(NamedTuple):
    """What is said of one model."""

    model: str
    signs: View | None
    verdict: str
    unchecked: View | None


def told(audit: Audit, names: Mapping[float, str]) -> list[Told]:
    """The signs of each model as a table, and those that were not looked for; `names` spell eps."""
    return [
        Told(
            model,
            _signs([sign for sign in audit.signs if sign.model == model], names),
            verdict(audit, model),
            _unchecked(audit, model),
        )
        for model in audit.models
    ]


def verdict(audit: Audit, model: str) -> str:
    """One sentence: how many kinds of signs there are, of those that were looked for."""
    found = {sign.name for sign in audit.signs if sign.model == model}
    looked = len(SYMPTOMS) - sum(each.model == model for each in audit.unchecked)
    if not found:
        return f"No sign that an attack failed, of {many(looked, 'sign')} looked for."
    return f"{len(found)} of {many(looked, 'sign')} looked for: {', '.join(sorted(found))}."


def _signs(signs: Sequence[ObservedSymptom], names: Mapping[float, str]) -> View | None:
    """One line for each sign against an attack, that at the eps with most examples."""
    groups: dict[tuple[str, str, str], list[ObservedSymptom]] = {}
    for sign in signs:
        groups.setdefault((sign.name, sign.attack, sign.norm), []).append(sign)
    notes, lines = Footnotes(), []
    for (name, attack, norm), group in groups.items():
        most, kind = max(group, key=lambda sign: sign.count), SYMPTOMS[name]
        note = f"{kind.meaning} What to do: {kind.remedy} Source: {kind.source}."
        radii = dict.fromkeys(eps_name(sign.eps, names) for sign in group)
        ids = ", ".join(map(str, most.examples[:SHOWN]))
        more = ", ..." if most.count > SHOWN else ""
        lines.append(
            [
                f"{name} {notes.mark(note)}",
                attack or EVERY,
                norm_name(norm) if norm else "",
                ", ".join(radii),
                f"{most.count} of {most.n}",
                f"{ids}{more}",
                most.evidence,
                most.threshold,
            ]
        )
    columns = ["sign", "against", "norm", "eps", "examples", "ids", "seen", "a sign from"]
    return View("", columns, lines, notes.texts) if lines else None


def _unchecked(audit: Audit, model: str) -> View | None:
    lines = [[each.name, each.why] for each in audit.unchecked if each.model == model]
    return View("", ["not looked for", "why"], lines) if lines else None
