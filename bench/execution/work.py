"""Units of a run: what a backend is asked to do, and what it returns.

The attacks of a run are divided into work units, each one chunk of examples of one task. What else
runs a user's code is a unit of another type: asking a model again before a run is resumed, timing
it, certifying it, probing it. A unit is executed where the models are loaded
(`bench.execution.backends.worker`); `bench.execution.result_writer` stores its results.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from bench.core.contracts.attack import IterativeAttack
from bench.evaluation import chunk_sizes
from bench.execution.sharding import Shard
from bench.storage import schema
from bench.suite import plan
from bench.suite.identity import ModelFacts

UNIT_SECONDS = 45.0
"""Estimated seconds of the bare attack loop from which a unit is divided, so that an interruption
loses little and progress is seen."""
LEAST_EXAMPLES = 16
"""Examples of a unit that was divided."""


class WorkUnit(NamedTuple):
    """One chunk of examples of one task, with those of its cells that have no records there."""

    number: int
    """Number of the task in the suite's order."""
    task: plan.AttackTask
    first: int
    last: int
    work: float
    """Seconds that the bare attack loop would need."""
    certified: Mapping[str, tuple[int, ...]] = {}
    """Cell -> its certified examples, which are not attacked."""

    @property
    def name(self) -> str:
        """Model and attack, for people."""
        return f"{self.task.model} · {self.task.entry.label}"

    @property
    def most_passes(self) -> float:
        """Most forwards with their backwards, a forward alone as half of one; 0: unknown."""
        if any(cell.passes is None for cell in self.task.cells):
            return 0.0
        each = sum((cell.passes or 1.0) + (cell.gradients or 0.0) for cell in self.task.cells) / 2
        return each * (self.last - self.first)

    @property
    def about(self) -> dict[str, Any]:
        """Model, attack, eps and examples, for machines."""
        return {
            "model": self.task.model,
            "attack": self.task.entry.label,
            "eps": [cell.eps_text for cell in self.task.cells],
            "first": self.first,
            "last": self.last,
        }


class ResumeCheck(NamedTuple):
    """Ask a model again about examples that have records."""

    model: str
    files: tuple[tuple[Path, tuple[schema.Piece, ...]], ...]
    """Files of records of this model, and their contents."""

    @property
    def name(self) -> str:
        """The activity, for people."""
        return f"{self.model}, asked about examples that have records"


class ModelTiming(NamedTuple):
    """Time the passes of a model, on which the work of its units is estimated."""

    model: str
    units: tuple[WorkUnit, ...]
    """Units that craft on this model."""
    affected: tuple[WorkUnit, ...]
    """Units that craft on this model or are judged by it, which fail if it cannot be timed."""

    @property
    def name(self) -> str:
        """The activity, for people."""
        return f"{self.model}, timing its passes"


class CertificationUnit(NamedTuple):
    """Certify one chunk of examples of one model."""

    task: plan.CertificationTask
    first: int
    last: int

    @property
    def model(self) -> str:
        """Label of the model."""
        return self.task.model

    @property
    def name(self) -> str:
        """Model and method, for people."""
        return f"{self.task.model} · certified by {self.task.name}"

    @property
    def about(self) -> dict[str, Any]:
        """Model, method and examples, for machines."""
        method = self.task.method
        return {"model": self.model, "method": method, "first": self.first, "last": self.last}


class ProbeUnit(NamedTuple):
    """Probe a model for symptoms of a failed attack."""

    model: str
    of: tuple[str, ...]
    """Identity of the probes, as `probe_models.identify_probes` returns it."""

    @property
    def about(self) -> dict[str, Any]:
        """The model, for machines."""
        return {"model": self.model}

    @property
    def name(self) -> str:
        """The activity, for people."""
        return f"{self.model}, probing it"


class FirstImages(NamedTuple):
    """Read the first clean images, which are shown next to the adversarial ones."""

    data_fingerprint: str
    name: str = "reading the first images"


Unit = WorkUnit | ResumeCheck | ModelTiming | CertificationUnit | ProbeUnit | FirstImages


class WorkResult(NamedTuple):
    """Records of some cells of a work unit, or the reason why there are none."""

    cells: tuple[str, ...]
    """Identities."""
    reason: str = ""
    """Why they failed; empty if they did not."""
    frame: pd.DataFrame | None = None
    pieces: Sequence[schema.Piece] = ()
    images: Mapping[str, Tensor] = {}
    """Cell -> the first adversarial images, (k, c, h, w), of the first chunk alone."""
    adversarial: Mapping[str, Tensor] = {}
    """Cell -> all adversarial images, (n, c, h, w), if they are to be stored."""


class TimingResult(NamedTuple):
    """Estimated work of the units of a `ModelTiming`, or why the model cannot be timed."""

    seconds: tuple[float, ...] = ()
    """Per unit, in their order."""
    unfit: str = ""


class CertificationFailure(NamedTuple):
    """The model's code failed while it was certified."""

    reason: str


class Messages(NamedTuple):
    """What a worker has to report besides results."""

    reasons: list[str]
    """Decisions and their reasons, a sentence each."""
    notes: list[str]
    """Events that the user must know, a sentence each."""
    accelerated: dict[str, list[dict[str, object]]]
    """Model -> description of its accelerated models."""
    failed_captures: dict[str, int]
    """Model -> captures of CUDA graphs that failed."""


def plan_units(
    tasks: Sequence[plan.AttackTask],
    chunks: Callable[[plan.AttackTask], Sequence[tuple[int, int]]],
    shape: tuple[int, ...],
    stored: Iterable[schema.Piece],
    shard: Shard,
) -> list[WorkUnit]:
    """Plan the work units of a shard that have no records yet.

    Two entries that mean the same cell share its records: it is run once.

    Args:
        tasks: All tasks of the suite.
        chunks: (first, last) of each chunk of examples of a task.
        shape: (c, h, w) of an image.
        stored: Pieces that have records.
        shard: Part of the run.

    Returns:
        Units in the suite's order, the chunks of a task one after another, with work 0.
    """
    held: dict[str, list[tuple[int, int]]] = {}
    for piece in stored:
        held.setdefault(piece.cell, []).append((piece.first, piece.last))
    units = []
    for number, task in enumerate(tasks):
        for at, (first, last) in enumerate(chunks(task)):
            wanted: dict[tuple[int, int], set[str]] = {}
            for cell in (cell.identity for cell in task.cells if not cell.reason):
                for gap in find_gaps(first, last, held.get(cell, [])):
                    wanted.setdefault(gap, set()).add(cell)
                held.setdefault(cell, []).append((first, last))
            if not shard.contains(number, at):
                continue
            for (begin, end), cells in sorted(wanted.items()):
                parts = _divide_by_memory(task.only(cells), (end - begin, *shape))
                units += [WorkUnit(number, part, begin, end, 0.0) for part in parts]
    return units


def find_gaps(first: int, last: int, held: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Find the examples of a chunk that no piece contains.

    >>> find_gaps(0, 10, [(6, 8), (0, 3)])
    [(3, 6), (8, 10)]

    Args:
        first: First example of the chunk.
        last: The one after its last.
        held: First and last (exclusive) example of pieces, in any order.

    Returns:
        (first, last) of each stretch without records.
    """
    gaps, at = [], first
    for begin, end in sorted(held):
        if at < min(begin, last):
            gaps.append((at, min(begin, last)))
        at = max(at, end)
    return [*gaps, (at, last)] if at < last else gaps


def divide_long_units(
    units: Iterable[WorkUnit], rows: Mapping[str, int], facts: Mapping[str, ModelFacts]
) -> list[WorkUnit]:
    """Divide units that take long into units of fewer examples.

    Where outcomes depend on which examples are attacked together, units are left alone.

    Args:
        units: Units with their work.
        rows: Model -> rows of a pass, which a divided unit still fills.
        facts: Model -> what is known of it.

    Returns:
        The units, in their order; the parts of one have its work together.
    """
    divided = []
    for unit in units:
        spec, n = unit.task.spec, unit.last - unit.first
        together = isinstance(spec.attack, IterativeAttack) and spec.sweep == "independent"
        streams = len(unit.task.cells) if together else 1  # all eps of an example in one pass
        least = max(LEAST_EXAMPLES, math.ceil(rows.get(unit.task.source, 0) / streams))
        parts = min(math.ceil(unit.work / UNIT_SECONDS), n // least)
        if parts < 2 or chunk_sizes.depends_on_batch(unit.task, facts):
            divided.append(unit)
            continue
        bounds = [unit.first + n * part // parts for part in range(parts + 1)]
        divided += [
            unit._replace(first=first, last=last, work=unit.work * (last - first) / n)
            for first, last in pairwise(bounds)
        ]
    return divided


def _divide_by_memory(task: plan.AttackTask, shape: tuple[int, ...]) -> list[plan.AttackTask]:
    """Divide the cells so that images (n, c, h, w) of each part fit into UNIT_BYTES.

    Cells that are linked stay together.
    """
    if task.linked:
        return [task]
    most = max(1, chunk_sizes.UNIT_BYTES // (4 * math.prod(shape)))
    cells = [cell.identity for cell in task.cells]
    return [task.only(set(cells[at : at + most])) for at in range(0, len(cells), most)]
