"""`bench report`: the tables, plots and pages of a run, and its closing table."""

from pathlib import Path

import click

from bench.cli.main import (
    FOLDER,
    cli,
    echo,
    json_requested,
    progress_options,
    tell,
)
from bench.cli.tracker_options import log_to_trackers, tracker_option

AUDIT = click.option(
    "--audit", is_flag=True, help="Exit with 1 if the audit finds a symptom of a failed attack."
)


@cli.command()
@click.argument("folder", type=FOLDER)
@AUDIT
@tracker_option
@progress_options
def report(folder: Path, audit: bool) -> int:
    """Write the tables, plots and pages of a run again.

    They are made from the records in FOLDER; no model is run.
    """
    return write_report(folder, audit)


def write_report(folder: Path, strict: bool) -> int:
    """Write tables, plots and pages of a run and print its closing table.

    Args:
        folder: The run's folder.
        strict: Count a symptom that the audit found as a failure.

    Returns:
        The exit code: 1 if a cell failed or is missing, or none ran.

    Raises:
        SuiteError: A page cannot be written.
        RecordError: A record file is damaged.
    """
    from bench.analysis import results
    from bench.cli.console import console
    from bench.reporting import run_output, terminal  # imported late: no cell waits for plotting
    from bench.reporting.report import certified_view

    found = results.read_results(folder)
    page = run_output.write_run_output(found, folder)
    terminal.print_summary(found, console())
    echo(f"report: {page}")
    log_to_trackers(found, folder)
    without = found.table[found.table["status"] != "ok"]
    for row in without.drop_duplicates(["model", "attack", "reason"]).itertuples():
        if row.status == "failed" and not json_requested():
            continue  # its reason stands below the table
        tell(str(row.status), f"{row.model} · {row.attack}: {row.reason}")
    for sentence in certified_view.describe_contradictions(found.certified.contradictions):
        tell("contradiction", sentence)
    bounds = found.certified
    undone = len(found.unfinished()) + sum(
        int((table["status"] == "missing").sum()) for table in (bounds.table, found.smoothed.table)
    )
    failed = undone or len(bounds.contradictions) or len(without) == len(found.table)
    return 1 if failed or (strict and found.audit.symptoms) else 0
