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
    from rich.table import Table

    from bench.cli.console import console

    screen = console()
    screen.print(explanation.gap)
    shown = Table()
    shown.add_column("change", overflow="fold")
    for name in ("robust, ours", "robust, reference", "only ours broke", "only reference broke"):
        shown.add_column(name, justify="right")
    shown.add_column("p", justify="right")
    shown.add_column("closes")
    for experiment in explanation.experiments:
        counts = (experiment.ours_robust, experiment.reference_robust)
        broke = (experiment.only_ours_broke, experiment.only_reference_broke)
        closes = "yes" if experiment.closes else ""
        words = (*map(str, (*counts, *broke)), f"{experiment.p_value:.2g}", closes)
        shown.add_row(
            experiment.change or "none", *words, style="bold" if experiment.closes else None
        )
    screen.print(shown)
    screen.print(explanation.cause)
