"""`bench publish`: runs become tables and a page for others to read."""

from pathlib import Path

import click

from bench.cli.main import FOLDER, cli, echo


@cli.command()
@click.argument("folders", type=FOLDER, nargs=-1, required=True, metavar="DIR...")
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder for tables and page.")
def publish(folders: tuple[Path, ...], out: Path) -> int:
    """Make tables for print and a web page from runs.

    The tables are written as Markdown, LaTeX, CSV and Parquet. A run is read from its records, or
    from its tables if it has no records.
    """
    from bench.reporting.site import sources, writer

    runs = sources.gather(folders)
    for path in writer.publish(runs, out):
        echo(path)
    for run in runs:
        without = int((run.found.table["status"] != "ok").sum())
        if without:
            sentence = (
                f"{without} of {len(run.found.table)} cells have no number and print as a dash"
            )
            echo(f"{run.name}: {sentence}", err=True)
    return 0
