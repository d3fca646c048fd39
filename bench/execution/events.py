"""A run told to machines: its events as plain values, as JSON lines and to Python's logging.

From Python, a run is heard through `logging.getLogger("bench")`, which is silent until a handler is
given to it; what an event is about is in the record's `bench`.
"""

import json
import logging
from datetime import UTC, datetime
from typing import Any

from bench.execution.work import Event

KEYS = {
    "time": "when it was told, UTC, ISO 8601",
    "event": "start, begin, done, failed, note, why; from the command line also error, warning",
    "text": "a sentence or a name, for people",
    "work": "start: seconds of a bare loop's work ahead; done: those that this settles",
    "model": "label of a model of the suite",
    "attack": "label of an attack of the suite",
    "method": "of a certificate",
    "eps": "list of radii, as the suite writes them",
    "first": "the first example of a shard",
    "last": "the one after its last",
    "reason": "why a cell failed or was skipped",
}
"""Every key that a line may have, and what it means; time, event and text are in each."""
LEVELS = {"failed": logging.WARNING, "note": logging.INFO, "start": logging.INFO}
"""Of the kinds of events; all others are for debugging."""
LOGGER = logging.getLogger("bench")
LOGGER.addHandler(logging.NullHandler())


def plain(event: Event) -> dict[str, Any]:
    """An event as values that JSON has, under KEYS."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    worked = {"work": event.work} if event.what in ("start", "done") else {}
    return {"time": now, "event": event.what, "text": event.text, **worked, **event.about}


def line(event: Event) -> str:
    """An event as one line of JSON, in ASCII, so that no terminal obeys what stands in it."""
    return json.dumps(plain(event))


def to_logger(event: Event) -> None:
    """Hand an event to the logger "bench"."""
    level = LEVELS.get(event.what, logging.DEBUG)
    LOGGER.log(level, "%s: %s", event.what, event.text, extra={"bench": plain(event)})
