"""Render a leaderboard as two pages of the same content: leaderboard.md and leaderboard.html."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.core.files import write_atomic
from bench.evaluation.metrics import Rate
from bench.reporting import templates
from bench.reporting.formats.numbers import (
    format_count,
    format_norm,
    format_plural,
    format_rate,
    format_text,
)
from bench.reporting.report.views import View
from bench.suite import catalog
from bench.suite.schema import Suite
from bench.workflows.leaderboard.entries import DEFAULT_SUITE, Entry
from bench.workflows.leaderboard.ranking import RankedModel, RankedThreat, list_threats, rank_models

RULES = (
    "A model's number is the worst case: an example counts only if it is classified correctly "
    "without attack and every attack of the suite left it so. Intervals are 95 % Wilson intervals.",
    "A rank is one more than the number of models that keep more beyond chance: the exact McNemar "
    "test on the same examples, corrected for all pairs (Holm). Models that nothing tells apart "
    "share a rank.",
    "A robust accuracy is an upper bound. Audit names the symptoms of a failed attack, "
    "with which the number may be a loose bound.",
    "Before a model enters, its card is built, the suite is run again, on all or the first of its "
    "examples as the last column says, and every outcome compared. A run with a cell that failed, "
    "or an image that broke the threat model, does not enter.",
)


class LeaderboardRow(NamedTuple):
    """One model, as both pages show it."""

    ranked: RankedModel
    robust: str
    clean: str
    left: list[str]
    audit: str
    checked: str
    facts: list[tuple[str, str]]


class LeaderboardSection(NamedTuple):
    """The ranking under one threat."""

    title: str
    attacks: list[str]
    lines: list[LeaderboardRow]
    view: View
    """The same as a table of text, for the Markdown page."""


def write_leaderboard(entries: Sequence[Entry], suite: Suite, out: Path) -> list[Path]:
    """Write leaderboard.md and leaderboard.html; the same entries give the same bytes.

    Args:
        entries: The admitted entries.
        suite: The suite of the leaderboard.
        out: Folder to write to.

    Returns:
        Paths of the two pages.

    Raises:
        SuiteError: The folder cannot be written.
    """
    sections = [_make_section(entries, threat) for threat in list_threats(suite)]
    data = entries[0].snapshot.data
    summary = (
        f"{format_plural(len(entries), 'model')} on the first {data.n} examples of {data.name}. "
        f"The suite is the threat model: bench plan {suite.name}."
    )
    context = {
        "title": format_text(suite.title),
        "summary": summary,
        "sections": sections,
        "counting": RULES,
        "commands": _write_commands(suite),
        "suite": suite.text,
    }
    pages = {
        "leaderboard.md": templates.render_markdown("leaderboard.md", context),
        "leaderboard.html": templates.render_html("leaderboard.html", context),
    }
    return [write_atomic(out / name, content) for name, content in pages.items()]


def _write_commands(suite: Suite) -> str:
    """Return the two commands that enter a model of one's own."""
    name = suite.name if suite.name in catalog.list_suites() else f"{suite.name}.toml"
    board = "DIR" if name == DEFAULT_SUITE else f"DIR --suite {name}"
    return (
        f"bench run {name} --model mine.py:net --weights w.pt --out mine\n"
        f'bench leaderboard {board} --add mine --name "my net" --source "my thesis"'
    )


def _make_section(entries: Sequence[Entry], threat: RankedThreat) -> LeaderboardSection:
    attacks = [format_text(attack) for attack in threat.attacks]
    lines = [_make_row(ranked) for ranked in rank_models(entries, threat)]
    title = f"{format_norm(threat.norm)}, eps {threat.eps_text}"
    return LeaderboardSection(title, attacks, lines, _tabulate(attacks, lines))


def _make_row(ranked: RankedModel) -> LeaderboardRow:
    card, snapshot, recheck = ranked.entry
    n = snapshot.data.n
    checked = f"{recheck.examples} of {n}"
    entry = card.model
    facts = {
        "source": card.source,
        "url": card.url,
        "training": card.training,
        "trained on": card.data,
        "licence": card.licence,
        "contact": card.contact,
        "model": entry.name.rpartition("/")[2],
        "weights": Path(entry.weights or "").name,
        "fingerprint": snapshot.models[0].fingerprint,
        "run again on": f"{checked} examples, {recheck.differ} of {recheck.compared} outcomes "
        "otherwise",
    }
    return LeaderboardRow(
        ranked=ranked,
        robust=_format(ranked.robust)
        + (f"; {ranked.certified} of {n} certified, not attacked" if ranked.certified else ""),
        clean=_format(ranked.clean),
        left=[format_count(k, n) for k in ranked.left.values()],
        audit=", ".join(map(format_text, ranked.entry.signs)) or "no symptom",
        checked=checked,
        facts=[(key, format_text(value)) for key, value in facts.items() if value],
    )


def _format(rate: Rate) -> str:
    return format_rate(rate.k, rate.n, rate.low, rate.high)


def _tabulate(attacks: list[str], lines: list[LeaderboardRow]) -> View:
    """Tabulate the models for the Markdown page."""
    columns = ["rank", "model", "robust, worst case", "clean", *attacks, "audit",
               "run again"]  # fmt: skip
    rows = [
        [str(line.ranked.rank), format_text(line.ranked.entry.card.name), line.robust,
         line.clean,
         *line.left, line.audit, line.checked]
        for line in lines
    ]  # fmt: skip
    return View("", columns, rows)
