"""Gathered runs -> a folder of publication: tables in every format, rows for programs, a page.

The same runs give the same bytes: there is no clock in any of it, and no path.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.analysis import results_from_csv
from bench.core.files import write_atomic
from bench.reporting import formats
from bench.reporting.site import page, paper_tables
from bench.reporting.site.sources import PublishedRun


def publish(gathered: Sequence[PublishedRun], out: Path) -> list[Path]:
    """Write everything into `out`; the paths of all files but the page's pictures, the page last.

    Raises: SuiteError if the folder cannot be written.
    """
    tables, cells = paper_tables.build_tables(gathered), collect_rows(gathered)
    files = {f"results{export.suffix}": export.content(cells) for export in formats.found("EXPORT")}
    for form in formats.found("FORMAT"):
        files |= {name: text.encode() for name, text in form.pages(tables).items()}
    paths = [write_atomic(out / name, content) for name, content in files.items()]
    return [*paths, page.write_site(gathered, out)]


def collect_rows(gathered: Sequence[PublishedRun]) -> pd.DataFrame:
    """Every cell of every run with the columns of table.csv, after the run's name and before how it
    is made again."""
    frames = [
        results_from_csv.cast_columns(run.found.table).assign(
            command=run.command, records_sha256=run.records_hash
        )
        for run in gathered
    ]
    for run, frame in zip(gathered, frames, strict=True):
        frame.insert(0, "run", run.name)
    return pd.concat(frames, ignore_index=True)
