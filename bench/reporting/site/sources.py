"""Folders of runs -> what is published of them: results, and how they are made again.

A run is read from its records where its folder holds them, else from its tables: what is committed
and sent around has often lost the records, which are large.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.analysis import results, results_from_csv
from bench.core.errors import SuiteError
from bench.storage import fingerprint


class PublishedRun(NamedTuple):
    """One run to be published."""

    folder: Path
    name: str
    """The suite's name, made unique among the runs published together."""
    found: results.RunResults
    command: str
    """That makes the run again."""
    records_hash: str
    """sha256 over the content of the records, "" where nobody knows it."""


def gather(folders: Sequence[Path]) -> list[PublishedRun]:
    """Every run in the order given.

    Raises: SuiteError if there is none, or a folder holds no run or stands twice; RecordError if
    one is damaged.
    """
    if not folders:
        raise SuiteError("expected at least one run's folder, got none; name one or several")
    taken: set[str] = set()
    found: list[PublishedRun] = []
    for folder in folders:
        if folder.resolve() in {each.folder.resolve() for each in found}:
            raise SuiteError(f"{folder}: is named twice; name each run once")
        run = read_run(folder)
        found.append(
            PublishedRun(
                folder=folder,
                name=_unique(str(run.provenance["suite"]["name"]), taken),
                found=run,
                command=str(run.provenance["sessions"][-1]["command"]),
                records_hash=fingerprint.records_hash(run.stored.frame) or _noted(folder),
            )
        )
    return found


def read_run(folder: Path) -> results.RunResults:
    """A run from its records where there are any, else from its tables.

    Raises: SuiteError if there is no run; RecordError if it is damaged.
    """
    recorded = any((folder / "records").glob("*.parquet"))
    tabled = (folder / "table.csv").is_file()
    return (
        results_from_csv.read_results_from_csv(folder)
        if tabled and not recorded
        else results.read_results(folder)
    )


def _noted(folder: Path) -> str:
    """The hash that the folder of a run without records remembers of them."""
    path = folder / fingerprint.FILE
    return path.read_text(encoding="utf-8").split()[0] if path.is_file() else ""


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number where it stands already."""
    names = (name if k == 1 else f"{name} ({k})" for k in range(1, len(taken) + 2))
    free = next(each for each in names if each not in taken)
    taken.add(free)
    return free
