"""Tabulate the audit model by model, for the report and the terminal."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.evaluation.audit.findings import Audit
from bench.evaluation.audit.symptoms import SYMPTOMS, ObservedSymptom
from bench.reporting.formats.numbers import format_eps, format_norm, format_plural, format_text
from bench.reporting.report.views import Footnotes, View

IDS_SHOWN = 5
"""Example ids shown per symptom; audit.csv lists all."""
EVERY_GRADIENT_ATTACK = "every gradient attack"


class ModelAuditView(NamedTuple):
    """What a page prints about the audit of one model."""

    model: str
    symptoms: View | None
    verdict: str
    unchecked: View | None


def build_audit_views(audit: Audit, eps_texts: Mapping[float, str]) -> list[ModelAuditView]:
    """Build the audit section: symptoms found and symptoms not checked, model by model.

    Args:
        audit: The audit of a run.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One entry per model.
    """
    return [
        ModelAuditView(
            model,
            _tabulate_symptoms(
                [symptom for symptom in audit.symptoms if symptom.model == model], eps_texts
            ),
            summarize_audit(audit, model),
            _unchecked(audit, model),
        )
        for model in audit.models
    ]


def summarize_audit(audit: Audit, model: str) -> str:
    """State how many kinds of symptom were found, of those checked, and what was not audited.

    Args:
        audit: The audit of a run.
        model: Label of the model.

    Returns:
        The sentence.
    """
    found = {symptom.name for symptom in audit.symptoms if symptom.model == model}
    unaudited = [format_text(each.attack) for each in audit.unaudited if each.model == model]
    checked = len(SYMPTOMS) - sum(each.model == model for each in audit.unchecked)
    missing = f" Not audited, as no cell is finished: {', '.join(unaudited)}." if unaudited else ""
    if not checked and not found:
        return f"Nothing could be audited.{missing}"
    of = f"{format_plural(checked, 'symptom')} checked"
    if not found:
        which = "No symptom" if missing else "No symptom of a failed attack"
        return f"{which}, of {of}.{missing}"
    return f"{len(found)} of {of}: {', '.join(sorted(found))}.{missing}"


def _tabulate_symptoms(
    symptoms: Sequence[ObservedSymptom], eps_texts: Mapping[float, str]
) -> View | None:
    """Tabulate one line per symptom and attack, at the eps with most examples."""
    groups: dict[tuple[str, str, str], list[ObservedSymptom]] = {}
    for symptom in symptoms:
        groups.setdefault((symptom.name, symptom.attack, symptom.norm), []).append(symptom)
    notes, lines = Footnotes(), []
    for (name, attack, norm), group in groups.items():
        most, kind = max(group, key=lambda symptom: symptom.count), SYMPTOMS[name]
        note = f"{kind.meaning} What to do: {kind.remedy} Source: {kind.source}."
        radii = dict.fromkeys(format_eps(symptom.eps, eps_texts) for symptom in group)
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
    columns = ["symptom", "attack", "norm", "eps", "examples", "ids", "observed", "threshold"]
    return View("", columns, lines, notes.texts) if lines else None


def _unchecked(audit: Audit, model: str) -> View | None:
    lines = [[each.name, each.why] for each in audit.unchecked if each.model == model]
    return View("", ["not checked", "reason"], lines) if lines else None
