"""`bench baseline` and `bench check`: whether a run is worse than the one that was accepted."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bench.cli.main import FOLDER, cli, echo

if TYPE_CHECKING:
    import pandas as pd

    from bench.analysis.results import RunResults
    from bench.suite.thresholds import Thresholds
    from bench.workflows.gate.verdicts import Check

FILE = click.Path(dir_okay=False, path_type=Path)
_STYLES = {"regressed": "bold red", "failed": "bold red", "lost, not proven": "yellow",
           "not compared": "yellow",
           "improved": "green", "new": "cyan", "not judged": "dim"}  # fmt: skip


class _Outputs(NamedTuple):
    """Files that a check writes; None where one was not asked for."""

    junit: Path | None
    sarif: Path | None
    summary: Path | None

    def write(self, junit: bytes, sarif: bytes, summary: str) -> None:
        """Write what was asked for; the summary also where GitHub shows it."""
        from bench.core import files

        for path, content in ((self.junit, junit), (self.sarif, sarif)):
            if path is not None:
                files.write_atomic(path, content)
        if self.summary is not None:
            files.write_atomic(self.summary, summary.encode())
        elif os.environ.get("GITHUB_STEP_SUMMARY"):
            _append(Path(os.environ["GITHUB_STEP_SUMMARY"]), summary)


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option("-o", "--output", type=FILE, required=True, help="File to write the baseline to.")
@click.option("--partial", is_flag=True, help="Accept a run with failed or missing cells.")
def baseline(folder: Path, output: Path, partial: bool) -> int:
    """Write a baseline for later checks from a run.

    The baseline is a small JSON file that holds the outcome of every example of the run in FOLDER.
    A run with failed or missing cells is refused; with --partial their cells have no numbers, and
    later checks call them new.
    """
    from bench.analysis import results, snapshot, snapshot_file
    from bench.core.errors import SuiteError

    found = results.read_results(folder)
    unfinished = found.table[found.table["status"].isin(["missing", "failed"])]
    if len(unfinished) and not partial:
        first = unfinished.iloc[0]
        raise SuiteError(
            f"{folder}: {len(unfinished)} of {len(found.table)} cells are not finished, the first "
            f"of them {_name_cell(first)}; run the suite again to finish them, or accept the other "
            "cells with --partial"
        )
    taken = snapshot.take_snapshot(found)
    ok = sum(cell.status == "ok" for cell in taken.cells)
    if not taken.models:
        raise SuiteError(f"{folder}: expected a finished cell to hold others against, found none")
    snapshot_file.write_snapshot(taken, output)
    echo(f"baseline: {output} ({ok} cells, {taken.data.n} examples)")
    for _, row in unfinished.iterrows():
        echo(f"no numbers: {_name_cell(row)}", err=True)
    return 0


def _name_cell(row: "pd.Series[Any]") -> str:
    why = f" ({row['reason']})" if row["status"] == "failed" else ""
    return f"{row['model']} · {row['attack']} at eps {row['eps_text']}, {row['status']}{why}"


@cli.command()
@click.argument("folder", type=FOLDER)
@click.option(
    "--baseline", "against", type=FILE, required=True, help="File that `bench baseline` wrote."
)
@click.option(
    "--fail",
    multiple=True,
    metavar="METRIC:CHANGE",
    help="Threshold, such as robust_accuracy:-1pp; repeatable.",
)
@click.option(
    "--strict", is_flag=True, help="Also fail for a loss beyond its threshold that is not proven."
)
@click.option("--junit", type=FILE, help="Write the verdicts to this file as JUnit XML.")
@click.option("--sarif", type=FILE, help="Write the verdicts to this file as SARIF 2.1.0.")
@click.option("--summary", type=FILE, help="Write the verdicts as Markdown [$GITHUB_STEP_SUMMARY].")
def check(
    folder: Path,
    against: Path,
    fail: tuple[str, ...],
    strict: bool,
    junit: Path | None,
    sarif: Path | None,
    summary: Path | None,
) -> int:
    """Check a run against a baseline.

    The run in FOLDER is compared with the baseline on the same examples.

    The exit code is 0 if the check passes, 1 for a regression or a failed cell, 2 for an invalid
    argument or file, and 3 if something could not be compared.
    """
    from bench.analysis import results, snapshot, snapshot_file
    from bench.core.errors import RecordError, SuiteError
    from bench.suite import thresholds
    from bench.workflows.gate import check, github_annotations, markdown_summary
    from bench.workflows.gate.junit import render_junit
    from bench.workflows.gate.sarif import render_sarif

    outputs = _Outputs(junit, sarif, summary)
    try:
        before = snapshot_file.read_snapshot(against)
        found = results.read_results(folder)
        limits = thresholds.override_thresholds(fail, _limits(found, folder))
        now = snapshot.take_snapshot(found)
        checked = check.check_against_baseline(
            before, now, limits, found.chosen_unions, snapshot.collect_classes(found), strict
        )
    except (SuiteError, RecordError) as error:
        _report_problem(str(error), outputs)
        raise
    outputs.write(
        render_junit(checked, now.suite),
        render_sarif(checked, against),
        markdown_summary.render_summary(checked, before, now, folder, against),
    )
    _print(checked, folder, against)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_annotations.render_annotations(checked):
            echo(line)
    return checked.exit_code


def _report_problem(problem: str, outputs: _Outputs) -> None:
    """Say in every output that the check could not be made; the caller raises the error."""
    from bench.core.errors import SuiteError
    from bench.workflows.gate import problem as problem_page
    from bench.workflows.gate import sarif

    with contextlib.suppress(SuiteError):  # the problem itself matters more
        outputs.write(
            problem_page.render_junit(problem),
            sarif.render_problem(problem),
            problem_page.render_summary(problem),
        )


def _limits(found: "RunResults", folder: Path) -> "Thresholds":
    """The thresholds of the suite that was run, from the copy of it that the run keeps."""
    from bench.core.validation import Validator, parse_toml
    from bench.suite import thresholds

    where = f"{folder}: suite"
    reader = Validator(where)
    radii: dict[str, dict[float, str]] = {}
    budgets: dict[str, Sequence[int]] = {}
    for cell in found.plan:
        for name in (cell.attack, cell.family or cell.attack):
            radii.setdefault(name, {})[cell.eps] = cell.eps_text
            budgets[name] = [*budgets.get(name, ()), *cell.budgets]
    models = [cell.model for cell in found.plan]
    raw = parse_toml(found.provenance["suite"]["text"], where)
    limits = thresholds.read_thresholds(reader, raw, models, radii, budgets)
    reader.stop_if_wrong()
    return limits


def _append(path: Path, text: str) -> None:
    """Add to the summary that the steps of a job share."""
    from bench.core.errors import SuiteError

    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise SuiteError(f"{path}: the summary could not be written ({error.strerror})") from error


def _print(checked: "Check", folder: Path, against: Path) -> None:
    """What changed, as a table, then the ids that flipped, and what it comes to."""
    from bench.cli.console import console
    from bench.reporting.formats.terminal_table import Column, print_table
    from bench.workflows.gate import verdicts
    from bench.workflows.gate.grouping import group_verdicts

    screen = console()
    groups = group_verdicts(checked.verdicts)
    print_table(
        screen,
        [
            Column("verdict", "word"),
            *(Column(name, "text") for name in ("of", "where", "what changed")),
        ],
        [(each.outcome, each.gates, each.where, each.sentence) for each in groups],
        styles=[_STYLES.get(each.outcome, "") for each in groups],
    )
    notable = checked.select("regressed", "lost, not proven", "improved")
    for verdict in verdicts.select_flipped(notable):
        for line in verdicts.list_flipped_examples(verdict):
            screen.print(f"{verdict.gate} of {verdict.where}, {line}")
    for note in checked.notes:
        screen.print(f"note: {note}")
    screen.print(checked.power)
    if checked.can_be_accepted:
        command = verdicts.format_accept_command(folder, against)
        screen.print(f"to accept this run: {command}", soft_wrap=True)
    screen.print(verdicts.summarize_check(checked), style="bold")
