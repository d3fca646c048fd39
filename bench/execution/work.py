"""The parts of a run, each one shard of examples of one task: attempted, and what came of it kept.

Who attempts a part, this process or a worker elsewhere, hands its outcomes to a ledger, which alone
writes into the run's folder. A cell that crashes is failed with its reason and the run goes on: the
one broad except of a run is here.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from bench.core import streams
from bench.core.errors import SuiteError, describe, location
from bench.engine import determinism
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.stages import Stage, Watch
from bench.execution.sharding import Shard
from bench.storage import records, schema
from bench.storage.adversarial_images import AdversarialWriter
from bench.suite import plan

STORED_IMAGES = 256
STORED_BYTES = 4 * 2**20
"""Of each cell the adversarial images of the first examples are kept, for grids and
cross-checks: at most so many, and so many bytes, but never fewer than KEPT_LEAST."""
STORED_LEAST = 5
STREAM_BYTES = 512 * 2**20
"""The adversarial images of one shard at so many eps are held at once, so that memory does not grow
with the eps of a suite."""


class Event(NamedTuple):
    """What a listener hears of a run: work is measured in seconds of the bare loop's floor."""

    what: str
    """"start", "begin" (a shard of a task), "failed" (cells of it), "done", "note" or "why" (a
    decision and its reason)."""
    text: str
    work: float
    """"start": all the work ahead; "done": the work that this settles."""
    about: Mapping[str, Any] = {}
    """What it is about, plain values under the names in `logs.KEYS`."""


Listener = Callable[[Event], None]


class WorkUnit(NamedTuple):
    """A shard of a task, of which only the cells that are missing there are left."""

    number: int
    """Of the task, in the suite's order."""
    task: plan.AttackTask
    first: int
    last: int
    work: float

    @property
    def name(self) -> str:
        """What is at work, for people."""
        return f"{self.task.model} · {self.task.entry.label}"

    @property
    def about(self) -> dict[str, Any]:
        """What is at work, for machines."""
        return {
            "model": self.task.model,
            "attack": self.task.entry.label,
            "eps": [cell.eps_text for cell in self.task.cells],
            "first": self.first,
            "last": self.last,
        }


def plan_units(
    session: Evaluator,
    tasks: list[plan.AttackTask],
    there: list[schema.Piece],
    share: Shard,
    lost: frozenset[str],
) -> list[WorkUnit]:
    """Every shard of this share that is not there, nor of a cell that is lost, in the suite's
    order, a task's shards one after another; not weighed yet.

    Two entries that mean the same cell share its records: it is run once."""
    done = {(piece.cell, piece.first, piece.last) for piece in there}
    parts = []
    for number, task in enumerate(tasks):
        for at, (first, last) in enumerate(session.shards()):
            wanted = {
                cell.identity
                for cell in task.cells
                if not cell.reason
                and cell.identity not in lost
                and (cell.identity, first, last) not in done
            }
            done |= {(identity, first, last) for identity in wanted}
            if wanted and share.holds(number, at):
                streams = _streams(task.only(wanted), (last - first, *session.data.shape))
                parts += [WorkUnit(number, stream, first, last, 0.0) for stream in streams]
    return parts


def _streams(task: plan.AttackTask, shape: tuple[int, ...]) -> list[plan.AttackTask]:
    """The task's cells, as many at once as hold no more than STREAM_BYTES of adversarial images
    (n, c, h, w) each; all where they are linked."""
    most = max(1, STREAM_BYTES // (4 * math.prod(shape)))
    if task.linked:
        return [task]
    cells = [cell.identity for cell in task.cells]
    return [task.only(set(cells[at : at + most])) for at in range(0, len(cells), most)]


def weighed(session: Evaluator, parts: list[WorkUnit], watch: Watch) -> list[WorkUnit]:
    """The parts with the work that each is, for which their models are timed; not those of a model
    that is unfit, or is found to be so now."""
    parts = [part for part in parts if not session.why_unfit(part.task)]
    for model in dict.fromkeys(part.task.source for part in parts):
        own = [part for part in parts if model in (part.task.model, part.task.source)]
        radii = {cell.identity: cell.eps_text for part in own for cell in part.task.cells}
        watch.enter(Stage("time", f"{model}, timing its passes", model, radii))
        _weigh(session, own[0])
    found = [_weigh(session, part) for part in parts]
    return [part for part in found if not session.why_unfit(part.task)]


def _weigh(session: Evaluator, part: WorkUnit) -> WorkUnit:
    """The part with its work; where its model cannot be timed, that is unfit from now on."""
    if session.why_unfit(part.task):
        return part
    try:
        with streams.protect_streams(session.notes.append, f"model '{part.task.source}'"):
            work = session.work(part.task)
        return part._replace(work=work * (part.last - part.first))
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a stranger's model
        session.unfit[part.task.source] = f"could not be timed: {describe_failure(error)}"
        return part


class WorkResult(NamedTuple):
    """What came of some cells of a part: their records, or why there are none."""

    cells: tuple[str, ...]
    """Identities."""
    reason: str = ""
    """Why they failed; empty if they did not."""
    frame: pd.DataFrame | None = None
    pieces: Sequence[schema.Piece] = ()
    images: Mapping[str, Tensor] = {}
    """Cell -> the first adversarial images, (k, c, h, w), of the first shard alone."""
    adversarial: Mapping[str, Tensor] = {}
    """Cell -> all adversarial images, (n, c, h, w), where they are kept."""


def attempt(
    session: Evaluator, task: plan.AttackTask, first: int, last: int
) -> Iterator[WorkResult]:
    """Attack the examples first..last-1 for the cells of the task.

    Where a stream of several cells fails, each is tried alone, so that one eps at which an attack
    crashes does not take the others with it.
    Raises: SuiteError for the user's mistakes that are found only now.
    """
    if not task.cells:
        return
    cells = tuple(cell.identity for cell in task.cells)
    try:
        with streams.protect_streams(session.notes.append, f"{task.model} · {task.entry.label}"):
            shard = session.shard(task, first, last)
    except (SuiteError, KeyboardInterrupt):  # the user's: an image that is none, or Ctrl-C
        raise
    except BaseException as error:  # a stranger's attack or model may do anything
        if task.linked or len(cells) == 1:
            yield WorkResult(cells, reason=describe_failure(error))
            return
        session.reasons.append(
            f"{task.model} · {task.entry.label}: failed at {len(cells)} eps in one stream "
            f"({describe_failure(error)}), so each is tried alone"
        )
        for cell in cells:
            yield from attempt(session, task.only({cell}), first, last)
        return
    pairs = () if first else zip(cells, shard.x_adv, strict=True)
    kept = {cell: select_first_images(images) for cell, images in pairs}
    every = dict(zip(cells, shard.x_adv, strict=True)) if session.keep else {}
    yield WorkResult(cells, frame=shard.frame, pieces=shard.pieces, images=kept, adversarial=every)


def select_first_images(images: Tensor) -> Tensor:
    """The first of some images (n, c, h, w): as many as are kept."""
    size = images[0].numel() * images.element_size()
    return images[: max(STORED_LEAST, min(STORED_IMAGES, STORED_BYTES // size))].clone()


def describe_failure(error: BaseException) -> str:
    """One line for the table: what was raised, and the last place in the code that it passed."""
    explained = determinism.explain_nondeterminism(error)
    told = f"{type(error).__name__}: {explained}" if explained else describe(error)
    return f"{told} ({location(error)})"


class ResultWriter:
    """Where outcomes are entered as they come: records onto disk, words to the listener."""

    def __init__(self, out: Path, listen: Listener, quota: int = 0) -> None:
        """`quota`: bytes that all adversarial images together may take, where they are kept."""
        self.out = out
        self.listen = listen
        self.keeper = AdversarialWriter(out, quota)
        self._broken: dict[str, str] = {}

    def left(self, part: WorkUnit) -> plan.AttackTask:
        """The task of a part without the cells that failed in another part."""
        return part.task.only({cell.identity for cell in part.task.cells} - self._broken.keys())

    def begin(self, part: WorkUnit) -> None:
        """Tell that a part is at work."""
        self.listen(Event("begin", part.name, 0.0, part.about))

    def note(self, sentence: str) -> None:
        """Tell what happened on the way."""
        self.listen(Event("note", sentence, 0.0))

    def why(self, sentence: str) -> None:
        """Tell what was decided on the way, and why."""
        self.listen(Event("why", sentence, 0.0))

    def tell(self, reasons: list[str], notes: list[str]) -> None:
        """Tell what was decided and what happened on the way, and that no more."""
        while reasons:
            self.why(reasons.pop(0))
        while notes:
            self.note(notes.pop(0))

    def enter(self, part: WorkUnit, outcome: WorkResult) -> None:
        """Keep records, or the reason why there are none."""
        if outcome.frame is None:
            self._fail(part, outcome)
            return
        stem = f"{part.task.model}-{part.task.entry.label}"
        self.keeper.write_images(stem, outcome.pieces, outcome.adversarial)
        records.write_records(self.out, stem, outcome.frame, outcome.pieces, outcome.images)
        for cell in self._broken.keys() & set(outcome.cells):
            # Another shard failed while this one was at work elsewhere: the cell is still failed.
            records.write_failure(self.out, cell, self._broken[cell])

    def refuse(self, task: plan.AttackTask, why: str) -> None:
        """Fail all cells of a task that cannot be run."""
        for cell in task.cells:
            records.write_failure(self.out, cell.identity, why)
        radii = [cell.eps_text for cell in task.cells]
        about = {"model": task.model, "attack": task.entry.label, "eps": radii, "reason": why}
        if radii:
            told = f"{task.model} · {task.entry.label} at eps {', '.join(radii)}: {why}"
            self.listen(Event("failed", told, 0.0, about))

    def finish(self, part: WorkUnit) -> None:
        """Tell that nothing of a part is left to do."""
        self.listen(Event("done", part.name, part.work, part.about))

    def _fail(self, part: WorkUnit, outcome: WorkResult) -> None:
        for cell in outcome.cells:
            records.write_failure(self.out, cell, outcome.reason)
            self._broken[cell] = outcome.reason
        radii = [c.eps_text for c in part.task.cells if c.identity in outcome.cells]
        told = f"{part.name} at eps {', '.join(radii)}: {outcome.reason}"
        about = {**part.about, "eps": radii, "reason": outcome.reason}
        self.listen(Event("failed", told, 0.0, about))


Work = Callable[[Evaluator, Iterable[WorkUnit], ResultWriter], None]
"""Attempts parts, in whatever order and place, and enters their outcomes."""


def in_process(session: Evaluator, parts: Iterable[WorkUnit], ledger: ResultWriter) -> None:
    """One part after another, here."""
    for part in parts:
        ledger.begin(part)
        for outcome in attempt(session, ledger.left(part), part.first, part.last):
            ledger.enter(part, outcome)
        ledger.tell(session.reasons, session.notes)
        ledger.finish(part)
