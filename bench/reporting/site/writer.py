"""Write the folder of a publication: tables in every format, rows for programs, a web page.

The same runs give the same bytes: no output contains a time or a path.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.analysis import results_from_csv
from bench.core.files import write_atomic
from bench.reporting.formats import exports, latex, markdown
from bench.reporting.site import page, paper_tables
from bench.reporting.site.sources import PublishedRun

TABLE_FORMATS = (latex.FORMAT, markdown.FORMAT)
EXPORTS = (exports.CSV, exports.PARQUET)


def publish(runs: Sequence[PublishedRun], out: Path) -> list[Path]:
    """Write all files of a publication into `out`.

    Args:
        runs: The runs, in order of publication.
        out: Folder to write to.

    Returns:
        Paths of all files but the page's images, the page last.

    Raises:
        SuiteError: The folder cannot be written.
    """
    tables, cells = paper_tables.build_tables(runs), collect_rows(runs)
    files = {f"results{export.suffix}": export.content(cells) for export in EXPORTS}
    for form in TABLE_FORMATS:
        files |= {name: text.encode() for name, text in form.pages(tables).items()}
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
