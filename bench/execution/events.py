"""Progress events of a run, as JSON lines and as records of Python's logging.

`bench.run` reports to `logging.getLogger("bench")`, which writes nothing until a handler is added;
the record's attribute `bench` contains the event as a dictionary under KEYS.
"""

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

KEYS = {
    "time": "when it was reported, UTC, ISO 8601",
    "event": (
        "start, begin, progress, done, failed, note, why; from the command line also lost, error, "
        "warning"
    ),
    "text": "a sentence or a name, for people",
    "work": "start: seconds of a bare loop's work ahead; begin, done: those of the work unit",
    "works": "start: model -> attack -> those of it",
    "most_passes": "start: model -> attack -> forwards with their backwards, at most",
    "external": "start: list of attacks with a loop of their own",
    "passes": "progress, lost: forwards with their backwards that the work unit has made",
    "passes_left": "progress: those that it is expected to make still",
    "seconds_left": "progress: what they take at its pace",
    "seconds": "lost: how long the work unit had been at work",
    "percent": "progress, from the command line: done of the run's time",
    "run_seconds_left": "progress, from the command line: expected time until the run ends",
    "model": "label of a model of the suite",
    "attack": "label of an attack of the suite",
    "method": "of a certificate",
    "eps": "list of radii, as the suite writes them",
    "first": "the first example of a chunk",
    "last": "the one after its last",
    "reason": "why a cell failed or was skipped",
}
"""Every key that a line may have, and what it means; time, event and text are in each."""
LEVELS = {"failed": logging.WARNING, "note": logging.INFO, "start": logging.INFO}
"""Logging levels of the kinds of events; all others are DEBUG."""
LOGGER = logging.getLogger("bench")
LOGGER.addHandler(logging.NullHandler())


class Event(NamedTuple):
    """Progress of a run. Work is measured in seconds of the bare attack loop's floor."""

    what: str
    """"start", "begin" (a work unit), "progress" (of it), "failed" (cells of it), "done", "note" or
    "why" (a decision and its reason)."""
    text: str
    work: float
    """"start": all work ahead; "begin" and "done": that of the work unit; otherwise 0."""
    about: Mapping[str, Any] = {}
    """Plain values under the names in KEYS."""


Listener = Callable[[Event], None]


def event_to_dict(event: Event) -> dict[str, Any]:
    """Convert an event into values that JSON has.

    Args:
        event: Event of a run.

    Returns:
        The event's values under KEYS, with the current time.
    """
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    work = {"work": event.work} if event.what in ("start", "begin", "done") else {}
    return {"time": now, "event": event.what, "text": event.text, **work, **event.about}


def format_json_line(event: Event) -> str:
    """Format an event as one line of JSON, in ASCII so that it contains no terminal controls.

    Args:
        event: Event of a run.

    Returns:
        A JSON object without a newline.
    """
    return json.dumps(event_to_dict(event))


def log_event(event: Event) -> None:
    """Pass an event to the logger "bench".

    Args:
        event: Event of a run.
    """
    level = LEVELS.get(event.what, logging.DEBUG)
    LOGGER.log(level, "%s: %s", event.what, event.text, extra={"bench": event_to_dict(event)})
