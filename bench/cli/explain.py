"""`bench explain`: why two cells disagree."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import DATA_DIR, DEVICE, cli

if TYPE_CHECKING:
    from bench.analysis.explanations import Explanation


@cli.command()
@click.argument("suite")
@click.argument("ours", metavar="CELL")
@click.argument("reference", metavar="CELL")
@click.option("--limit", type=click.IntRange(1), help="Use only the first N examples [256].")
@DEVICE
@click.option(
    "--batch-size", type=click.IntRange(1), help="Images per model pass [by model and device]."
)
@DATA_DIR
def explain(
    suite: str,
    ours: str,
    reference: str,
    limit: int | None,
    device: str,
    batch_size: int | None,
    data_dir: Path | None,
) -> None:
    """Find by experiment why two cells disagree.

    SUITE is the path of a suite, the name of a shipped one or the folder of a run. A CELL is
    written MODEL/ATTACK/EPS, with the labels of the tables. The settings of the first cell are
    changed to those of the second, one at a time. If SUITE is the folder of a run, the result is
    stored there and appears in its report.
    """
    from rich.text import Text

    from bench.cli.console import console
    from bench.core import files
    from bench.core.sanitize import escape_controls
    from bench.execution.options import RunOptions
    from bench.workflows.explain import search

    options = RunOptions(
        device=device,
        limit=limit,
        batch_size=batch_size,
        data_dir=files.data_folder(data_dir),
    )
    with console(stderr=True).status("loading") as status:

        def report(text: str) -> None:
            status.update(Text(escape_controls(text)))

        explanation = search.explain_cells(suite, ours, reference, options, report)
    _print(explanation)


def _print(explanation: "Explanation") -> None:
    from bench.cli.console import console
    from bench.reporting.formats.terminal_table import Column, print_table

    screen = console()
    screen.print(explanation.gap)
    columns, rows = [Column("change", "name")], []
    for name in ("robust, ours", "robust, reference", "only ours broke", "only reference broke"):
        columns.append(Column(name, "number"))
    columns += [Column("p", "number"), Column("closes", "word")]
    for experiment in explanation.experiments:
        counts = (experiment.ours_robust, experiment.reference_robust)
        broke = (experiment.only_ours_broke, experiment.only_reference_broke)
        closes = "yes" if experiment.closes else ""
        words = (*map(str, (*counts, *broke)), f"{experiment.p_value:.2g}", closes)
        rows.append([experiment.change or "none", *words])
    bold = [number for number, each in enumerate(explanation.experiments) if each.closes]
    print_table(screen, columns, rows, bold)
    screen.print(explanation.cause)
