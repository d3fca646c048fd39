"""Write the folder of a publication: tables in every format, rows for programs, a web page.

The same runs give the same bytes: no output contains a time or a path.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.analysis import results_from_csv
from bench.core.files import write_atomic
from bench.reporting.formats import registered
from bench.reporting.site import page, paper_tables
from bench.reporting.site.sources import PublishedRun


def publish(runs: Sequence[PublishedRun], out: Path) -> list[Path]:
    """Write all files of a publication into `out`.

    Args:
        runs: The runs, in order of publication.
        out: Folder to write to.

    Returns:
        Paths of all files but the page's images, the page last.

    Raises:
        SuiteError: The folder cannot be written, or the format of another package fails.
    """
    tables, cells = paper_tables.build_tables(runs), collect_rows(runs)
    formats = dict(registered.BUILT_IN)
    for extension in registered.discover_formats().usable.values():
        formats[extension.title] = registered.load_extension(extension)
    files: dict[str, bytes] = {}
    for name, found in formats.items():
        files |= registered.render_files(name, found, tables, cells)
    paths = [write_atomic(out / name, content) for name, content in files.items()]
    return [*paths, page.write_site(runs, out)]


def collect_rows(runs: Sequence[PublishedRun]) -> pd.DataFrame:
    """Collect every cell of every run.

    Args:
        runs: The runs, in order of publication.

    Returns:
        The columns of table.csv, preceded by the run's name and followed by its command and records
        hash.
    """
    frames = [
        results_from_csv.cast_columns(run.found.table).assign(
            command=run.command, records_sha256=run.records_hash
        )
        for run in runs
    ]
    for run, frame in zip(runs, frames, strict=True):
        frame.insert(0, "run", run.name)
    return pd.concat(frames, ignore_index=True)
