"""Log the numbers of a finished run to a tracker, on request.

Each file of this package ends in a TRACKER and is found by its name; other packages offer trackers
as entry points of the group `bench.trackers`. Everything logged is derived
from the records on disk, so a tracker and a report cannot differ, and a run can be logged at any
time (`bench report DIR --track NAME:WHERE`).
"""

import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.analysis import columns
from bench.core import extensions
from bench.core.errors import SuiteError, describe, nearest
from bench.suite.catalog import CatalogEntry
from bench.suite.labels import WORST_CASE

if TYPE_CHECKING:
    from bench.analysis.results import RunResults

METRICS = tuple(column.name for column in (*columns.MAIN, *columns.ADDITIONAL) if column.tracked)
"""Logged columns of table.csv: counts, rates and their 95 % intervals."""
LOGGED_FILES = ("table.csv", "report.html", "report.md", "provenance.json", "records.sha256")
"""Files of the run's folder that are logged if they exist."""


class MetricPoint(NamedTuple):
    """One metric of one finished cell."""

    metric: str
    """One of METRICS."""
    cell: str
    """Model, attack, norm and goal."""
    eps: float
    eps_text: str
    value: float


class RunSummary(NamedTuple):
    """What a tracker logs about a run."""

    name: str
    """The suite's name and the start of the records hash: equal for equal outcomes."""
    params: Mapping[str, str]
    points: Sequence[MetricPoint]
    files: Sequence[Path]


class Tracker(NamedTuple):
    """A tracker; a file of this package ends in one, called TRACKER."""

    package: str
    """Name of the library's package."""
    install: str
    """How to install it."""
    log: Callable[[RunSummary, str], str]
    """Log a run to the place that the user named; returns where it is stored."""


class TrackerTarget(NamedTuple):
    """A tracker, and where in it to log a run."""

    name: str
    tracker: Tracker
    where: str


def parse_target(text: str) -> TrackerTarget:
    """Find the tracker named by "NAME:WHERE".

    Args:
        text: Value of --track.

    Returns:
        The tracker and the place.

    Raises:
        SuiteError: There is no such tracker, or its library is not installed.
    """
    name, _, where = text.partition(":")
    own, others = list_built_in_trackers(), discover_trackers().usable
    if name not in (*own, *others) or not where:
        known = sorted([*own, *others])
        problem = nearest(name, known) if name not in known else "WHERE is missing"
        raise SuiteError(
            f"--track '{text}': expected NAME:WHERE, such as tensorboard:runs; {problem}"
        )
    tracker = load_extension(others[name]) if name in others else _built_in(name)
    if importlib.util.find_spec(tracker.package) is None:
        raise SuiteError(
            f"--track {name}: the package {tracker.package} is not installed; {tracker.install}"
        )
    return TrackerTarget(name, tracker, where)


def list_built_in_trackers() -> list[str]:
    """List the trackers of this package.

    Returns:
        Their names, sorted.
    """
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def discover_trackers() -> extensions.Discovery:
    """Find the trackers that installed packages offer, without importing them.

    Returns:
        The usable ones, and a sentence for each of the others.
    """
    return extensions.discover_extensions("trackers", list_built_in_trackers())


def load_extension(extension: extensions.Extension) -> Tracker:
    """Import the tracker of an installed package.

    Args:
        extension: The extension.

    Returns:
        The tracker.

    Raises:
        SuiteError: It cannot be imported, or is no tracker.
    """
    found = extension.load()
    if not isinstance(found, Tracker):
        raise SuiteError(
            f"{extension.title}: expected {extension.target} to be a "
            f"bench.reporting.trackers.Tracker, got {type(found).__name__}"
        )
    return found


def list_trackers() -> tuple[list[CatalogEntry], list[str]]:
    """List the trackers of this package and of others.

    Returns:
        Entries, and a sentence for each extension that cannot be used.
    """
    entries = []
    for name in list_built_in_trackers():
        module = importlib.import_module(f"bench.reporting.trackers.{name}")
        summary = (module.__doc__ or "").partition("\n")[0]
        entries.append(CatalogEntry(name, summary, module.TRACKER.install))
    found = discover_trackers()
    problems = [*found.problems]
    for name, extension in found.usable.items():
        try:
            tracker = load_extension(extension)
        except SuiteError as error:
            problems += error.problems
        else:
            summary = (tracker.log.__doc__ or "").strip().partition("\n")[0]
            entries.append(CatalogEntry(name, summary, tracker.install, extension.origin))
    return entries, problems


def _built_in(name: str) -> Tracker:
    tracker: Tracker = importlib.import_module(f"bench.reporting.trackers.{name}").TRACKER
    return tracker


def log_run(wanted: TrackerTarget, found: "RunResults", folder: Path) -> str:
    """Log a run to a tracker.

    Args:
        wanted: The tracker and the place.
        found: The results of the run.
        folder: The run's folder.

    Returns:
        Where the tracker stores the run.

    Raises:
        SuiteError: The tracker failed; the run itself is unaffected.
    """
    try:
        return wanted.tracker.log(summarize_run(found, folder), wanted.where)
    except Exception as error:  # a server or a third-party library
        raise SuiteError(
            f"--track {wanted.name}:{wanted.where}: {describe(error)}; the run is "
            f"kept, try again with bench report {folder} --track"
        ) from error


def summarize_run(found: "RunResults", folder: Path) -> RunSummary:
    """Collect the parameters, metrics and files of a run.

    Args:
        found: The results of the run.
        folder: The run's folder.

    Returns:
        What a tracker logs.
    """
    from bench.storage import fingerprint

    about = found.provenance
    hashed = fingerprint.records_hash(found.stored.frame)
    session, data = about["sessions"][-1], about["data"]
    params = {
        "suite": about["suite"]["name"],
        "seed": about["suite"]["seed"],
        "data": data["name"],
        "examples": data["n"],
        "data fingerprint": data["fingerprint"],
        **{f"model {label}": model["fingerprint"] for label, model in about["models"].items()},
        **{f"option {name}": value for name, value in session.get("options", {}).items()},
        "command": session["command"],
        "device": session["environment"]["device"],
        "commit": (session["environment"].get("git") or {}).get("commit"),
        "records sha256": hashed,
    }
    return RunSummary(
        name=f"{about['suite']['name']}-{hashed[:12]}",
        params={name: str(value) for name, value in params.items()},
        points=list(_points(found)),
        files=[folder / name for name in LOGGED_FILES if (folder / name).is_file()],
    )


def _points(found: "RunResults") -> Iterator[MetricPoint]:
    """Yield the metrics of every finished cell and of each model's worst case."""
    from bench.reporting.formats.numbers import is_missing

    ok: list[dict[Any, Any]] = found.table[found.table["status"] == "ok"].to_dict("records")
    worst: list[dict[Any, Any]] = [
        {**row, "attack": WORST_CASE} for row in found.worst.to_dict("records")
    ]
    for row in (*ok, *worst):
        cell = " ".join(str(row[name]) for name in ("model", "attack", "norm", "goal"))
        for metric in METRICS:
            value = row.get(metric)
            if value is not None and not is_missing(value):
                yield MetricPoint(
                    metric, cell, float(row["eps"]), str(row["eps_text"]), float(value)
                )
