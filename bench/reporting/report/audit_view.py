"""The audit → what the report and the terminal say of it, model by model."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.evaluation.audit.findings import Audit
from bench.evaluation.audit.symptoms import KINDS, Sign
from bench.reporting.formats.numbers import format_eps, format_norm, format_plural
from bench.reporting.report.views import Footnotes, View

IDS_SHOWN = 5
"""Example ids that are shown of a sign; audit.csv has them all."""
EVERY_GRADIENT_ATTACK = "every gradient attack"


class ModelAuditView(NamedTuple):
    """What is said of one model."""

    model: str
    signs: View | None
    verdict: str
    unchecked: View | None


def build_audit_views(audit: Audit, names: Mapping[float, str]) -> list[ModelAuditView]:
    """The signs of each model as a table, and those that were not looked for; `names` spell eps."""
    return [
        ModelAuditView(
            model,
            _signs([sign for sign in audit.signs if sign.model == model], names),
            summarize_audit(audit, model),
            _unchecked(audit, model),
        )
        for model in audit.models
    ]


def summarize_audit(audit: Audit, model: str) -> str:
    """One sentence: how many kinds of signs there are, of those that were looked for."""
    found = {sign.name for sign in audit.signs if sign.model == model}
    looked = len(KINDS) - sum(each.model == model for each in audit.unchecked)
    if not found:
        return f"No sign that an attack failed, of {format_plural(looked, 'sign')} looked for."
    return (
        f"{len(found)} of {format_plural(looked, 'sign')} looked for: {', '.join(sorted(found))}."
    )


def _signs(signs: Sequence[Sign], names: Mapping[float, str]) -> View | None:
    """One line for each sign against an attack, that at the eps with most examples."""
    groups: dict[tuple[str, str, str], list[Sign]] = {}
    for sign in signs:
        groups.setdefault((sign.name, sign.attack, sign.norm), []).append(sign)
    notes, lines = Footnotes(), []
    for (name, attack, norm), group in groups.items():
        most, kind = max(group, key=lambda sign: sign.count), KINDS[name]
        note = f"{kind.meaning} What to do: {kind.remedy} Source: {kind.source}."
        radii = dict.fromkeys(format_eps(sign.eps, names) for sign in group)
        ids = ", ".join(map(str, most.examples[:IDS_SHOWN]))
        more = ", ..." if most.count > IDS_SHOWN else ""
        lines.append(
            [
                f"{name} {notes.mark(note)}",
                attack or EVERY_GRADIENT_ATTACK,
                format_norm(norm) if norm else "",
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
