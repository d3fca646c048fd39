"""`bench publish`: runs become tables and a page for others to read."""

from pathlib import Path

import click

from bench.cli.main import FOLDER, cli, echo
from bench.core.errors import SuiteError


def _split_name(text: str) -> tuple[Path, str | None]:
    """Split "DIR=NAME"; a folder with "=" in its own name is taken whole."""
    folder, separator, name = text.rpartition("=")
    if not separator or Path(text).is_dir():
        return Path(text), None
    if not name.strip() or not folder:
        raise SuiteError(f"{text}: expected DIR=NAME, got an empty side; write both or DIR alone")
    return Path(folder), name.strip()


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="DIR[=NAME]...")
@click.option("-o", "--out", type=FOLDER, required=True, help="Folder for tables and page.")
def publish(runs: tuple[str, ...], out: Path) -> int:
    """Make tables for print and a web page from runs.

    The tables are written as Markdown, LaTeX, CSV and Parquet. A run is read from its records, or
    from its tables if it has no records. NAME is what tables and page call the run, instead of the
    name of its suite.
    """
    from bench.reporting.site import sources, writer

    named = [_split_name(text) for text in runs]
    names = {folder: name for folder, name in named if name is not None}
    published = sources.gather([folder for folder, _ in named], names)
    for path in writer.publish(published, out):
        echo(path)
    for run in published:
        without = int((run.found.table["status"] != "ok").sum())
        if without:
            sentence = (
                f"{without} of {len(run.found.table)} cells have no number and print as a dash"
            )
            echo(f"{run.name}: {sentence}", err=True)
    return 0
