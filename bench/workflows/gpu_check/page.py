"""Summarise the results of a GPU check on a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = ("part", "job", "seconds_spent", "where")
"""Entries of a line that have a column of their own, or are too long for the page."""


def format_page(lines: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Format the results as one table for each part.

    Args:
        lines: Results, as `check.run_check` returns them.
        titles: Part -> title, in order.

    Returns:
        Markdown.
    """
    blocks = ["# GPU check", _count(lines)]
    for name, title in titles.items():
        own = [line for line in lines if line["part"] == name]
        if own:
            rows = [
                f"| {line['job']} | {_describe(line)} | {line.get('seconds_spent', '')} |"
                for line in own
            ]
            head = "| measurement | result | seconds |\n|---|---|---|\n"
            blocks += [f"## {title}", head + "\n".join(rows)]
    return "\n\n".join(blocks) + "\n"


def _count(lines: Sequence[Mapping[str, Any]]) -> str:
    """Say in one sentence how much was measured and captured."""
    failed, skipped = (sum(key in line for line in lines) for key in ("failed", "skipped"))
    rules = [line for line in lines if "captured" in line and "repeats" in line]
    captured = sum(line["captured"] for line in rules)
    equal = sum(line["equal"] for line in rules)
    return (
        f"{len(lines)} measurements, of which {failed} failed and {skipped} were skipped. "
        f"Of {len(rules)} rules and norms, {captured} were captured and {equal} gave the same bits "
        "as single launches."
    )


def _describe(line: Mapping[str, Any]) -> str:
    """Write the entries of a line one after another."""
    shown = [f"{key} {_format(value)}" for key, value in line.items() if key not in HIDDEN]
    return ", ".join(shown).replace("|", "\\|").replace("\n", " ")


def _format(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{key} {_format(each)}" for key, each in value.items()) + ")"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_format, value)) + "]"
    return str(value)
