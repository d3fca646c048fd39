"""Read the runs to publish: their results, and the command that reproduces each.

A run is read from its records if its folder holds them, else from its tables: records are large
and often not committed. A label that models of several runs share is followed by the run's name.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bench.analysis import relabelled, results, results_from_csv
from bench.core.errors import SuiteError
from bench.storage import fingerprint


class PublishedRun(NamedTuple):
    """One run to be published."""

    folder: Path
    name: str
    """The name that the user gave it, or the suite's, unique among the runs published together."""
    found: results.RunResults
    command: str
    """Reproduces the run."""
    records_hash: str
    """SHA-256 over the content of the records; empty if unknown."""
    shared: Mapping[str, str] = {}
    """Label of the suite -> label shown, of each model whose label another run has, too."""


def gather(folders: Sequence[Path], names: Mapping[Path, str] | None = None) -> list[PublishedRun]:
    """Read every run, in the given order.

    Args:
        folders: Folders of the runs.
        names: Folder -> name of its run; the others are named by their suites.

    Returns:
        The runs, with unique names and unique labels of models.

    Raises:
        SuiteError: No folder is given, one holds no run or is given twice, or two have one name.
        RecordError: A run is damaged.
    """
    if not folders:
        raise SuiteError("expected at least one run's folder, got none; name one or several")
    names = names or {}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise SuiteError(f"'{repeated[0]}' names two runs; give each run a name of its own")
    taken = set(names.values())
    found: list[PublishedRun] = []
    for folder in folders:
        if folder.resolve() in {each.folder.resolve() for each in found}:
            raise SuiteError(f"{folder}: is named twice; name each run once")
        run = read_run(folder)
        found.append(
            PublishedRun(
                folder=folder,
                name=names.get(folder) or _unique(str(run.provenance["suite"]["name"]), taken),
                found=run,
                command=str(run.provenance["sessions"][-1]["command"]),
                records_hash=fingerprint.records_hash(run.stored.frame)
                or _read_stored_hash(folder),
            )
        )
    return separate_models(found)


def separate_models(runs: Sequence[PublishedRun]) -> list[PublishedRun]:
    """Put the run's name after every label that models of several runs share.

    Args:
        runs: The runs, with unique names.

    Returns:
        The runs, with labels of models that are unique among them.
    """
    counts = Counter(label for run in runs for label in run.found.provenance["models"])
    taken = set(counts)
    separated = []
    for run in runs:
        own = [label for label in run.found.provenance["models"] if counts[label] > 1]
        shared = {label: _unique(f"{label}, {run.name}", taken) for label in own}
        found = relabelled.relabel_models(run.found, shared) if shared else run.found
        separated.append(run._replace(found=found, shared=shared))
    return separated


def read_run(folder: Path) -> results.RunResults:
    """Read a run from its records if there are any, else from its tables.

    Args:
        folder: The run's folder.

    Returns:
        The results of the run.

    Raises:
        SuiteError: The folder holds no run.
        RecordError: The run is damaged.
    """
    recorded = any((folder / "records").glob("*.parquet"))
    tabled = (folder / "table.csv").is_file()
    return (
        results_from_csv.read_results_from_csv(folder)
        if tabled and not recorded
        else results.read_results(folder)
    )


def _read_stored_hash(folder: Path) -> str:
    """Read the records hash that a folder without records stores."""
    path = folder / fingerprint.FILE
    return path.read_text(encoding="utf-8").split()[0] if path.is_file() else ""


def _unique(name: str, taken: set[str]) -> str:
    """Append a number to the name if it is taken."""
    names = (name if k == 1 else f"{name} ({k})" for k in range(1, len(taken) + 2))
    free = next(each for each in names if each not in taken)
    taken.add(free)
    return free
