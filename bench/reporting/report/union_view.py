"""Tabulate robustness to several threat models together."""

from typing import Any

import pandas as pd

from bench.reporting.formats.numbers import (
    DASH,
    format_count,
    format_norm,
    format_rate,
    format_text,
    is_missing,
)
from bench.reporting.report.views import Footnotes, Row, View, to_rows


def tabulate_unions(unions: pd.DataFrame) -> View | None:
    """Tabulate the unions of each model, with counts and what each threat model breaks.

    The threat models share a column, which wraps: with one of their own, as many columns as norms
    would not fit a window.

    Args:
        unions: The rows of unions.csv.

    Returns:
        The view, or None if no model is attacked in two norms.
    """
    notes = Footnotes()
    lines = [
        [format_text(row["model"]), f"{format_text(row['label'])}{_format_goal(row)}",
         format_union(row, notes), format_count(row["robust_correct"], row["n"]),
         f"{row['cells']} of {row['cells_planned']}", _format_broken(row)]
        for row in to_rows(unions)
    ]  # fmt: skip
    columns = ["model", "union", "robust accuracy", "robust", "cells"]
    columns += ["threat model: broken by it (by it alone)"]
    return View("", columns, lines, notes.texts) if lines else None


def _format_goal(row: Row) -> str:
    return "" if row["goal"] == "untargeted" else f", {format_text(row['goal'])}"


def _format_broken(row: Row) -> str:
    """List the threat models, each with the examples that it breaks, and that it alone breaks."""
    if row["status"] != "ok":
        return format_threats(row["threats"])
    broken, alone = (
        dict(part.split(": ") for part in row[name].split(", "))
        for name in ("broken_by", "broken_only_by")
    )
    return ", ".join(
        f"{format_threats(threat)}: {broken[norm]} ({alone[norm]})"
        for threat in row["threats"].split(", ")
        for norm in (threat.partition(" ")[0],)
    )


def format_union(row: Row, notes: Footnotes) -> str:
    """Format the robust accuracy of a union, with a footnote on what it does not cover.

    Args:
        row: A row of unions.csv.
        notes: Footnotes of the table, to which that of the row is added.

    Returns:
        The rate with its interval, or a dash.
    """
    reason = _describe_gaps(row)
    if row["status"] != "ok":
        return f"{DASH} {notes.mark(reason)}"
    text = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    return f"{text} {notes.mark(reason)}" if reason else text


def describe_unions(unions: pd.DataFrame) -> list[str]:
    """Describe each union in a sentence.

    Args:
        unions: The rows of unions.csv.

    Returns:
        Sentences, in the order of the rows.
    """
    return [_sentence(row) for row in to_rows(unions)]


def _sentence(row: Row) -> str:
    threats = f"{format_threats(row['threats'])}{_format_goal(row)}"
    where = f"{format_text(row['label'])} ({threats})"
    reason = _describe_gaps(row)
    if row["status"] != "ok":
        return f"{format_text(row['model'])}, {where}: {DASH}, {reason}"
    rate = format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])
    count = format_count(row["robust_correct"], row["n"])
    text = f"{format_text(row['model'])} is robust to {where} on {rate}, {count}"
    return f"{text}; {reason}" if reason else text


def _describe_gaps(row: Row) -> str:
    """Say what a union does not cover; empty if it covers all that is planned."""
    if row["status"] != "ok":
        return f"{format_text(row['reason'])} ({format_text(row['absent'])})"
    reasons = []
    if row["largest_eps"] != row["threats"]:
        reasons.append(f"attacked up to {format_threats(row['largest_eps'])}")
    if not is_missing(row["absent"]):
        reasons.append(f"without {format_text(row['absent'])}: an upper bound of the union")
    if not is_missing(row.get("certified")) and row["certified"]:
        counts = format_threats(row["certified"])
        reasons.append(f"certified, not attacked ({counts} of {int(row['n'])})")
    return "; ".join(reasons)


def format_threats(text: Any) -> str:
    """Format pairs of a norm and a value, separated by commas, with the display name of the norm.

    Args:
        text: As in unions.csv, such as "linf 8/255, l2: 3".

    Returns:
        The text, such as "L-inf 8/255, L2: 3".
    """
    if is_missing(text):
        return DASH
    pairs = [part.partition(" ") for part in str(text).split(", ")]
    names = [(name.removesuffix(":"), name.endswith(":"), value) for name, _, value in pairs]
    return ", ".join(
        f"{format_norm(norm)}{':' if colon else ''} {format_text(value)}"
        for norm, colon, value in names
    )
