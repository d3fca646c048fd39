"""Announce each stage of a run that foreign code may crash, before it starts.

In a single process no one is notified. Where the run is a child process
(`bench.execution.backends.subprocess`), its parent learns from the announcements which stage
crashed, and which stages the next child must skip.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

Kind = Literal["load", "resume", "time", "clean", "part", "certify", "probe"]


class Stage(NamedTuple):
    """A stage that is about to start."""

    kind: Kind
    what: str
    """Description for people, such as "lenet · PGD"."""
    model: str = ""
    """Label of the model that is used; empty if it is none of the suite's, or several."""
    cells: Mapping[str, str] = {}
    """Identity -> eps as written: what fails if this does."""
    together: bool = True
    """Whether its cells cannot be tried one at a time."""
    timed: bool = True
    """Whether heartbeats are expected: a model computes, not bench's own arithmetic."""


def _allow_all(stage: Stage) -> str:
    del stage
    return ""


class Watch(NamedTuple):
    """The listener to stages, and the cells that crashed an earlier child."""

    enter: Callable[[Stage], str] = _allow_all
    """Takes a stage; returns why it must be skipped, or "" if it may start."""
    lost: frozenset[str] = frozenset()
    """Identities of cells that have failed already and are not attempted."""


UNWATCHED = Watch()
