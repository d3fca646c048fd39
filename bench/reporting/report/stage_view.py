"""Show what each part of an ensemble gained, and whether its number still moved at the end."""

from collections.abc import Mapping

import pandas as pd

from bench.reporting.formats.numbers import (
    format_count,
    format_eps,
    format_norm,
    format_plural,
    format_rate,
    format_text,
)
from bench.reporting.report.views import Row, View, group_rows, to_rows


def tabulate_stages(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[View]:
    """Tabulate the robust accuracy after each part of each ensemble.

    Args:
        frame: The rows of stages.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One view per model, attack and norm, with one line per eps and part.
    """
    found = []
    for (model, attack, norm), rows in group_rows(
        to_rows(frame), "model", "attack", "norm"
    ).items():
        lines = [
            [format_eps(row["eps"], eps_texts), f"{row['stage']}. {format_text(row['part'])}",
             str(row["broken"]), format_count(row["robust_correct"], row["n"]),
             format_rate(row["robust_correct"], row["n"], row["robust_low"], row["robust_high"])]
            for row in rows
        ]  # fmt: skip
        columns = ["eps", "part", "examples broken", "robust after it", "robust accuracy after it"]
        caption = f"{format_text(model)}, {format_text(attack)}, {format_norm(norm)}"
        found.append(View(caption, columns, lines))
    return found


def summarize_stages(frame: pd.DataFrame, eps_texts: Mapping[float, str]) -> list[str]:
    """State for each ensemble and eps which part broke an example last.

    Args:
        frame: The rows of stages.csv.
        eps_texts: Text of each eps, from `map_eps_texts`.

    Returns:
        One sentence per model, attack, norm and eps.
    """
    groups = group_rows(to_rows(frame), "model", "attack", "norm", "eps").values()
    return [_summarize_cell(rows, eps_texts) for rows in groups]


def _summarize_cell(rows: list[Row], eps_texts: Mapping[float, str]) -> str:
    """State which part broke an example last, and whether it was the last part."""
    first, final = rows[0], rows[-1]
    place = (
        f"{format_text(first['model'])}, {format_text(first['attack'])}, "
        f"{format_norm(first['norm'])}, eps {format_eps(first['eps'], eps_texts)}"
    )
    count = f"{final['robust_correct']} of {final['n']} are robust"
    last = next((row for row in reversed(rows) if row["broken"]), None)
    if last is None:
        return f"{place}: no part broke an example; {count}."
    broke = (
        f"part {last['stage']} of {last['stages']}, {format_text(last['part'])}, was the last to "
        f"break any ({format_plural(int(last['broken']), 'example')})"
    )
    moves = "" if last is not final else ", so that a further part may break more"
    return f"{place}: {broke}{moves}; {count}."
