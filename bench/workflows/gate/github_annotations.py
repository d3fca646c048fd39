"""A check as workflow commands of GitHub Actions, which show on the pull request's page.

Source: https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands; the
escapes are those of the runner's toolkit, packages/core/src/command.ts. It shows ten of each kind
for a step, so no more are written.
"""

from bench.workflows.gate.verdicts import RED, Check, Verdict

MOST = 10


def render(check: Check) -> list[str]:
    """A line for each red verdict, an error, and for each that was not compared, a warning."""
    return [*_lines("error", check.among(*RED)), *_lines("warning", check.among("not compared"))]


def _lines(kind: str, verdicts: list[Verdict]) -> list[str]:
    shown = verdicts if len(verdicts) <= MOST else verdicts[: MOST - 1]
    lines = [
        _command(kind, f"{verdict.gate} {verdict.outcome}", f"{verdict.where}: {verdict.sentence}")
        for verdict in shown
    ]
    if len(shown) < len(verdicts):
        more = f"{len(verdicts) - len(shown)} more, see the summary"
        lines.append(_command(kind, "bench check", more))
    return lines


def _command(kind: str, title: str, message: str) -> str:
    """One workflow command.

    >>> _command("error", "a, b: c", "50 % less\\n::set-output")
    '::error title=a%2C b%3A c::50 %25 less%0A::set-output'
    """
    title = _data(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{kind} title={title}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
