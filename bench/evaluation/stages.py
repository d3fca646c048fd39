"""What a run does that a stranger's code may not survive, told to a watcher before it is done.

In one process nobody watches. Where the run is a child that may be lost
(`bench.execution.backends.subprocess`), its parent learns from this what was at work, and tells the
next child what to leave out.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

Kind = Literal["load", "resume", "time", "clean", "part", "certify", "probe"]


class Stage(NamedTuple):
    """Something about to be done."""

    kind: Kind
    what: str
    """For people, such as "lenet · PGD"."""
    model: str = ""
    """Label of the model that is asked; empty if it is none of the suite's, or several."""
    cells: Mapping[str, str] = {}
    """Identity -> eps as written: what fails if this does."""
    together: bool = True
    """Whether its cells cannot be tried one at a time."""
    timed: bool = True
    """Whether signs of life are to be expected: a model at work, not our own arithmetic."""


def _freely(stage: Stage) -> str:
    del stage
    return ""


class Watch(NamedTuple):
    """Who is told, and what an earlier child was lost to."""

    enter: Callable[[Stage], str] = _freely
    """Hears of a stage; answers why it must be left out, or "" if it may begin."""
    lost: frozenset[str] = frozenset()
    """Identities of cells that are failed already and not to be tried."""


UNWATCHED = Watch()
