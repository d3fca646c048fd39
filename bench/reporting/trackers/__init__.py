"""One file per tracker: where the numbers of a finished run go beside its own folder, on request.

A file of this package ends in a TRACKER and is found by its name. Everything it is given is derived
from the records on disk, so that what a tracker shows and what a report says cannot differ, and a
run can be told to another tracker at any time (`bench report DIR --track NAME:WHERE`).
"""

import importlib.util
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.analysis import columns
from bench.core.errors import SuiteError, describe, nearest

if TYPE_CHECKING:
    from bench.analysis.results import RunResults

METRICS = tuple(column.name for column in (*columns.MAIN, *columns.ADDITIONAL) if column.tracked)
"""The columns of table.csv that are logged: counts, rates and ends of their 95 % intervals."""
LOGGED_FILES = ("table.csv", "report.html", "report.md", "provenance.json", "records.sha256")
"""What is handed over as it lies in the run's folder, where it is there."""


class MetricPoint(NamedTuple):
    """One figure of one finished cell."""

    figure: str
    """One of FIGURES."""
    cell: str
    """Model, attack, norm and goal."""
    eps: float
    eps_text: str
    value: float


class RunSummary(NamedTuple):
    """What a tracker is told of a run."""

    name: str
    """The suite's, and the beginning of the records' hash: the same for the same outcomes."""
    params: Mapping[str, str]
    points: Sequence[MetricPoint]
    files: Sequence[Path]


class Tracker(NamedTuple):
    """A tracker: a file of this package ends in one, called TRACKER."""

    package: str
    """What it imports."""
    install: str
    """How one comes by that."""
    log: Callable[[RunSummary, str], str]
    """From a run and the place that the user named to where it is found there."""


class TrackerTarget(NamedTuple):
    """A tracker, and where in it a run is to go."""

    name: str
    tracker: Tracker
    where: str


def parse_target(text: str) -> TrackerTarget:
    """The tracker meant by "NAME:WHERE".

    Raises: SuiteError if there is none of the name, or its library is not installed.
    """
    name, _, where = text.partition(":")
    known = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in known or not where:
        told = nearest(name, known) if name not in known else "WHERE is missing"
        raise SuiteError(f"--track '{text}': expected NAME:WHERE, such as tensorboard:runs; {told}")
    tracker: Tracker = importlib.import_module(f"bench.reporting.trackers.{name}").TRACKER
    if importlib.util.find_spec(tracker.package) is None:
        raise SuiteError(
            f"--track {name}: the package {tracker.package} is not installed; {tracker.install}"
        )
    return TrackerTarget(name, tracker, where)


def log_run(wanted: TrackerTarget, found: "RunResults", folder: Path) -> str:
    """Tell a tracker of a run; returns where it is found there.

    Raises: SuiteError if the tracker fails, whatever its library raises: the run itself is kept.
    """
    try:
        return wanted.tracker.log(summarize_run(found, folder), wanted.where)
    except Exception as error:  # a server or a library that is not ours
        raise SuiteError(
            f"--track {wanted.name}:{wanted.where}: {describe(error)}; the run is "
            f"kept, try again with bench report {folder} --track"
        ) from error


def summarize_run(found: "RunResults", folder: Path) -> RunSummary:
    """A run as trackers take it."""
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
    """Of every finished cell, and of the worst case over the attacks of each model."""
    from bench.reporting.formats.numbers import is_missing

    ok: list[dict[Any, Any]] = found.table[found.table["status"] == "ok"].to_dict("records")
    worst: list[dict[Any, Any]] = [
        {**row, "attack": "worst case"} for row in found.worst.to_dict("records")
    ]
    for row in (*ok, *worst):
        cell = " ".join(str(row[name]) for name in ("model", "attack", "norm", "goal"))
        for figure in METRICS:
            value = row.get(figure)
            if value is not None and not is_missing(value):
                yield MetricPoint(
                    figure, cell, float(row["eps"]), str(row["eps_text"]), float(value)
                )
