"""Render a check as workflow commands of GitHub Actions, shown on the pull request's page.

Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands; the
escapes are those of the runner's toolkit, packages/core/src/command.ts. GitHub shows ten commands
of each kind per step, so no more are written.
"""

from collections.abc import Sequence
from typing import Literal

from bench.workflows.gate.grouping import group_verdicts
from bench.workflows.gate.verdicts import Check, Outcome, Verdict

MAX_COMMANDS = 10


def render_annotations(check: Check) -> list[str]:
    """Render an error for each cause of failure, a warning for each other that needs attention.

    Args:
        check: The finished check.

    Returns:
        Workflow commands, at most MAX_COMMANDS of each kind.
    """
    failing = check.failing_outcomes
    attention: tuple[Outcome, ...] = ("lost, not proven", "not compared")
    return [
        *_lines("error", check.select(*failing)),
        *_lines("warning", check.select(*(each for each in attention if each not in failing))),
    ]


def _lines(kind: Literal["error", "warning"], verdicts: Sequence[Verdict]) -> list[str]:
    groups = group_verdicts(verdicts)
    shown = groups if len(groups) <= MAX_COMMANDS else groups[: MAX_COMMANDS - 1]
    lines = [
        render_command(kind, f"{each.gates} {each.outcome}", f"{each.where}: {each.sentence}")
        for each in shown
    ]
    if len(shown) < len(groups):
        more = f"{len(groups) - len(shown)} more, see the summary"
        lines.append(render_command(kind, "bench check", more))
    return lines


def render_command(kind: Literal["error", "warning"], title: str, message: str) -> str:
    r"""Render one workflow command.

    Args:
        kind: How GitHub shows it.
        title: Its title.
        message: Its text, which may have several lines.

    Returns:
        One line.

    >>> render_command("error", "a, b: c", "50 % less\n::set-output")
    '::error title=a%2C b%3A c::50 %25 less%0A::set-output'
    """
    title = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={title}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
