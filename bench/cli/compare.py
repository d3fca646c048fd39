"""`bench compare`: two runs, paired by example."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import FOLDER, cli, echo

if TYPE_CHECKING:
    from bench.analysis.compare_runs import RunComparison


@cli.command()
@click.argument("first", type=FOLDER, metavar="A")
@click.argument("second", type=FOLDER, metavar="B")
@click.option(
    "-o", "--out", type=FOLDER, help="Folder for tables, plot and changed examples [none]."
)
def compare(first: Path, second: Path, out: Path | None) -> int:
    """Compare two runs, example by example.

    A and B are folders of runs. Cells that both runs have are compared on the same examples.

    The exit code is 3 if the two cannot be compared.
    """
    from bench.analysis import compare_runs, results
    from bench.reporting.report import run_comparison

    comparison = compare_runs.compare_runs(
        results.read_results(first), results.read_results(second)
    )
    if comparison.refusal:
        echo(f"bench: {first} and {second}: {comparison.refusal}", err=True)
        return 3
    _print(comparison, first, second)
    if out is not None:
        for path in run_comparison.write_comparison(comparison, out, str(first), str(second)):
            echo(path)
    return 0


def _print(comparison: "RunComparison", first: Path, second: Path) -> None:
    """The table, the cells that changed beyond chance in a sentence, and what was not compared."""
    from bench.cli.console import console
    from bench.evaluation.metrics import SIGNIFICANCE_LEVEL
    from bench.reporting.formats.terminal_table import Column, print_table
    from bench.reporting.report import run_comparison

    screen = console()
    screen.print(f"A: {first}\nB: {second}")
    for note in comparison.notes:
        screen.print(f"differs: {note}")
    screen.print(run_comparison.describe_shared(comparison), style="italic")
    view = run_comparison.tabulate_changes(comparison, brief=True)
    beyond = comparison.table["p_corrected"] <= SIGNIFICANCE_LEVEL
    names = ("model", "attack", "norm", "eps")
    columns = [Column(name, "name" if name in names else "number") for name in view.columns]
    print_table(screen, columns, view.rows, bold=[i for i, marked in enumerate(beyond) if marked])
    for row in comparison.table[beyond].to_dict("records"):
        where = f"{row['model']} · {row['attack']} at eps {row['eps_text']}"
        screen.print(f"{where}: {row['sentence']}")
    for sentence in comparison.apart:
        screen.print(f"not compared: {sentence}")
    screen.print(run_comparison.summarize_changes(comparison))
