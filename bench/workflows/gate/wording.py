"""Words that every output of a check shares: which examples flipped, and what it comes to."""

import shlex
from pathlib import Path

from bench.workflows.gate.verdicts import RED, Check, Verdict

SHOWN = 20
"""Ids of flipped examples that a line for people holds."""


def flipped(verdict: Verdict, most: int | None = SHOWN) -> list[str]:
    """A line of the examples lost, one of those gained, `most` ids each; none if none flipped."""
    change = verdict.change
    if change is None:
        return []
    sides = (("lost", change.lost), ("gained", change.gained))
    return [f"{word}: {_ids(ids, most)}" for word, ids in sides if ids]


def _ids(ids: tuple[int, ...], most: int | None) -> str:
    shown = ids if most is None else ids[:most]
    more = len(ids) - len(shown)
    return " ".join(map(str, shown)) + (f" and {more} more" if more else "")


def conclusion(check: Check) -> str:
    """What a check comes to, in a sentence."""
    red, blind, better = (
        len(check.among(*outcomes)) for outcomes in (RED, ("not compared",), ("improved",))
    )
    parts = [f"{check.compared} accuracies compared" if check.compared else "nothing compared"]
    if red:
        parts.append(f"{red} of {len(check.verdicts)} verdicts red")
    if blind:
        parts.append(f"{blind} not compared")
    if better:
        parts.append(f"{better} improved")
    word = {0: "passed", 1: "REGRESSED", 3: "COULD NOT COMPARE"}[check.exit_code]
    return f"{word}: {', '.join(parts)}"


def accepting(run: Path, baseline: Path) -> str:
    """The command that makes the run the baseline."""
    return shlex.join(["bench", "baseline", str(run), "-o", str(baseline)])
