"""Render a check as Markdown, for a job's summary on GitHub or a comment on a pull request.

Neither shows local images or data: URLs, so robust accuracy is drawn as text bars in a folded
section, and the page names the folder of the plots. GitHub drops a summary above 1 MiB and a
comment above 65,536 characters: sections that do not fit are omitted and counted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import CellSnapshot, Snapshot
from bench.reporting.formats import markdown, numbers
from bench.workflows.gate.grouping import group_verdicts
from bench.workflows.gate.verdicts import (
    Check,
    Verdict,
    format_accept_command,
    list_flipped_examples,
    select_flipped,
    summarize_check,
)

MAX_CHARACTERS = 60_000
"""Of a page, so that it fits a comment."""
MAX_ROWS = 50
"""Of a table."""
_COLUMNS = ["verdict", "of", "where", "what changed"]
_WIDTH = 30
_MARKS = {"regressed": "🔴", "failed": "🔴", "lost, not proven": "🟠", "not compared": "⚠️",
          "improved": "🟢"}  # fmt: skip


def render_summary(check: Check, before: Snapshot, now: Snapshot, run: Path, baseline: Path) -> str:
    """Render the page.

    Args:
        check: The finished check.
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        run: Folder of the run.
        baseline: File of the baseline.

    Returns:
        Markdown, at most MAX_CHARACTERS long.
    """
    unproven = check.select("lost, not proven")
    mark = {0: "🟠" if unproven else "✅", 1: "🔴", 3: "⚠️"}[check.exit_code]
    conclusion = markdown.escape(summarize_check(check))
    parts = [f"### {mark} Robustness of {markdown.escape(now.suite)}", f"**{conclusion}.**"]
    wrong = check.select("regressed", "failed", "lost, not proven", "not compared")
    if wrong:
        parts.append(_table(wrong))
    better = check.select("improved")
    if better:
        parts += [_table(better)]
    parts.append(f"{markdown.escape(check.power)}")
    if check.can_be_accepted:
        command = format_accept_command(run, baseline)
        parts.append(
            f"To accept this run as the baseline:\n\n{markdown.format_code_block(command)}"
        )
    parts += [f"- {markdown.escape(note)}" for note in check.notes]
    parts += _folded("Examples that flipped", _flips(wrong + better))
    parts += _folded("Robust accuracy by eps, baseline and now", _draw_accuracies(before, now))
    rest = check.select("passed", "new", "not judged")
    parts += _folded("All other verdicts", [_table(rest)] if rest else [])
    parts.append(f"Plots, tables and the report: `{run.as_posix()}/report.html` of this job.")
    return _fitting(parts)


def _fitting(parts: Sequence[str]) -> str:
    """Join the parts that fit, in their order."""
    shown: list[str] = []
    room = MAX_CHARACTERS
    for part in parts:
        if len(part) + 2 <= room:
            shown.append(part)
            room -= len(part) + 2
    if len(shown) < len(parts):
        shown.append(f"{len(parts) - len(shown)} sections did not fit this page.")
    return "\n\n".join(shown) + "\n"


def _table(verdicts: Sequence[Verdict]) -> str:
    groups = group_verdicts(verdicts)
    rows = [
        [f"{_MARKS.get(each.outcome, '')} {each.outcome}".strip(), each.gates, each.where,
         each.sentence]
        for each in groups[:MAX_ROWS]
    ]  # fmt: skip
    table = markdown.render_table(pd.DataFrame(rows, columns=_COLUMNS))
    rest = len(groups) - len(rows)
    more = f"\n\n{rest} more of these verdicts are in the terminal's output." if rest else ""
    return f"{table}{more}"


def _folded(title: str, blocks: Sequence[str]) -> list[str]:
    if not blocks:
        return []
    body = "\n\n".join(blocks)
    return [f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"]


def _flips(verdicts: Sequence[Verdict]) -> list[str]:
    return [
        f"- {markdown.escape(verdict.where)}: "
        f"{markdown.escape('; '.join(list_flipped_examples(verdict, most=100)))}"
        for verdict in select_flipped(verdicts)
    ]


# --------------------------------------------------------------------------------- text bars


def _draw_accuracies(before: Snapshot, now: Snapshot) -> list[str]:
    """Draw robust accuracy at each eps as bars for each attack on a model, the baseline first.

    Nothing is drawn of other examples than the baseline's: their figures are not comparable.
    """
    if snapshot_matching.describe_data_change(before, now):
        return []
    tasks = [(task.model, task.attack) for task in now.tasks]
    blocks = []
    for model, attack in tasks:
        lines = [*_bars(before, now, model, attack)]
        if lines:
            title = f"{markdown.escape(model)}, {markdown.escape(attack)}"
            fence = "```text"
            blocks.append("\n".join([f"**{title}**", "", fence, *lines, "```"]))
    return blocks


def _bars(before: Snapshot, now: Snapshot, model: str, attack: str) -> Iterator[str]:
    earlier, later = (
        {
            cell.eps: cell
            for cell in side.cells
            if (cell.model, cell.attack, cell.status) == (model, attack, "ok")
        }
        for side in (before, now)
    )
    for eps in sorted({*earlier, *later}):
        pair = (("was", earlier.get(eps), before), ("now", later.get(eps), now))
        for word, cell, side in pair:
            if cell is not None:
                yield f"eps {_eps(cell):>8} {word} {render_bar(cell.robust_correct, side.data.n)}"


def _eps(cell: CellSnapshot) -> str:
    return numbers.format_text(cell.eps_text)


def render_bar(k: int, n: int) -> str:
    """Draw a rate as a bar with eighths of a character, followed by the percentage.

    Args:
        k: Count.
        n: Total, above 0.

    Returns:
        One line of text.

    >>> render_bar(1, 2)
    '███████████████                50.0 %'
    """
    eighths = round(8 * _WIDTH * k / n)
    whole, part = divmod(eighths, 8)
    drawn = "█" * whole + ("" if not part else "▏▎▍▌▋▊▉"[part - 1])
    return f"{drawn:<{_WIDTH}} {numbers.format_percent(k / n):>6}"
