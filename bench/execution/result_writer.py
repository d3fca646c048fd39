"""Storage of the results of units, and the events that report them.

Only this class writes into the run's folder, whichever backend produced the results.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.engine.progress import Progress
from bench.evaluation.audit import probe_models
from bench.evaluation.certification import store
from bench.execution.events import Event, Listener
from bench.execution.work import (
    CertificationFailure,
    CertificationUnit,
    FirstImages,
    Messages,
    ModelTiming,
    ProbeUnit,
    ResumeCheck,
    TimingResult,
    Unit,
    WorkResult,
    WorkUnit,
)
from bench.storage import records
from bench.storage.adversarial_images import AdversarialWriter
from bench.storage.images import CLEAN, write_images
from bench.suite import plan

STORED_IMAGES = 256
STORED_BYTES = 4 * 2**20
"""Of each cell the first adversarial images are stored, for grids and cross-checks: at most so many
images and so many bytes, but never fewer than STORED_LEAST."""
STORED_LEAST = 5


class ResultWriter:
    """Persist the results of units and report progress events."""

    def __init__(self, out: Path, listen: Listener, quota: int = 0) -> None:
        """Open the folder of a run for results.

        Args:
            out: Folder of the run.
            listen: Receives the events.
            quota: Bytes that all adversarial images together may take; 0: none are stored.
        """
        self.out = out
        self.listen = listen
        self.adversarial = AdversarialWriter(out, quota)
        self.works: dict[tuple[int, int, tuple[str, ...]], float] = {}
        """Key of a work unit (`unit_key`) -> estimated seconds."""
        self.unfit: dict[str, str] = {}
        """Model -> why it cannot be timed."""
        self.probes: dict[str, dict[str, Any]] = {}
        """Model -> its probes, as in the manifest."""
        self.accelerated: dict[str, list[dict[str, object]]] = {}
        """Model -> description of its accelerated models."""
        self.failed_captures: Counter[str] = Counter()
        """Model -> captures of CUDA graphs that failed."""
        self._failed: dict[str, str] = {}

    def remaining(self, unit: WorkUnit) -> plan.AttackTask:
        """Return the task of a unit without the cells that failed in another unit.

        Args:
            unit: Work unit.

        Returns:
            The task, perhaps without cells.
        """
        return unit.task.only({cell.identity for cell in unit.task.cells} - self._failed.keys())

    def begin(self, unit: Unit) -> None:
        """Report that a unit begins.

        Args:
            unit: Any unit; only attacks and certification are reported.
        """
        if isinstance(unit, WorkUnit | CertificationUnit):
            work = unit.work if isinstance(unit, WorkUnit) else 0.0
            self.listen(Event("begin", unit.name, work, unit.about))

    def finish(self, unit: Unit) -> None:
        """Report that nothing of a unit is left to do.

        Args:
            unit: Any unit; only attacks are reported here.
        """
        if isinstance(unit, WorkUnit):
            self.listen(Event("done", unit.name, unit.work, unit.about))

    def report_progress(self, unit: Unit, progress: Progress) -> None:
        """Report how far a unit is.

        Args:
            unit: Unit that runs; only attacks report progress.
            progress: Its passes.
        """
        if isinstance(unit, WorkUnit):
            about = {key: value for key, value in progress._asdict().items() if value is not None}
            self.listen(Event("progress", unit.name, 0.0, {**unit.about, **about}))

    def note(self, sentence: str) -> None:
        """Report what the user must know.

        Args:
            sentence: For people.
        """
        self.listen(Event("note", sentence, 0.0))

    def report(self, messages: Messages) -> None:
        """Report what a worker has to say besides results.

        Args:
            messages: Of one unit.
        """
        for sentence in messages.reasons:
            self.listen(Event("why", sentence, 0.0))
        for sentence in messages.notes:
            self.note(sentence)
        self.accelerated |= messages.accelerated
        self.failed_captures.update(messages.failed_captures)

    def write(self, unit: Unit, result: Any) -> None:
        """Store one result of a unit.

        Args:
            unit: Unit that was executed.
            result: Of the type that belongs to the unit's type.

        Raises:
            SuiteError: The folder cannot be written.
        """
        match unit, result:
            case WorkUnit(), WorkResult():
                self._write_records(unit, result)
            case ResumeCheck(), str():
                self.note(result)
            case ModelTiming(), TimingResult():
                if result.unfit:
                    self.unfit[unit.model] = result.unfit
                self.works |= {
                    unit_key(each): work
                    for each, work in zip(unit.units, result.seconds, strict=False)
                }
            case CertificationUnit(), store.Certificates():
                store.write(self.out, result)
                self.listen(Event("done", unit.name, 0.0, unit.about))
            case CertificationUnit(), CertificationFailure():
                self._report_failure(unit, result.reason)
            case FirstImages(), Tensor():
                images = {unit.data_fingerprint: result}
                write_images(self.out, CLEAN, images)
            case ProbeUnit(), dict():
                self.probes[unit.model] = result
            case _:
                raise TypeError(f"no result of {unit.name}: {type(result).__name__}")

    def write_loss(self, unit: ResumeCheck | CertificationUnit | ProbeUnit, why: str) -> None:
        """Store and report that the worker of a unit was lost.

        Args:
            unit: Unit of one model, whose cells do not fail.
            why: How the worker ended.
        """
        if isinstance(unit, CertificationUnit):
            self._report_failure(unit, why)
            return
        self.listen(Event("failed", f"{unit.name}: {why}", 0.0, {"model": unit.model}))
        self.skip(unit, why)

    def skip(self, unit: ResumeCheck | CertificationUnit | ProbeUnit, why: str) -> None:
        """Store that a unit is not executed, since its model lost a worker before.

        Args:
            unit: Unit of one model.
            why: How that worker ended.
        """
        if isinstance(unit, ProbeUnit):
            self.probes[unit.model] = probe_models.describe_unprobed(unit.of, why)

    def fail_cells(self, activity: str, cells: Mapping[str, str], why: str) -> None:
        """Fail cells in all chunks and report them in one event.

        Args:
            activity: What was at work, for people.
            cells: Identity -> eps as the suite writes it.
            why: The reason.
        """
        for cell in cells:
            records.write_failure(self.out, cell, why)
            self._failed[cell] = why
        radii = [*dict.fromkeys(cells.values())]
        about = {"eps": radii, "reason": why}
        self.listen(Event("failed", f"{activity} at eps {', '.join(radii)}: {why}", 0.0, about))

    def refuse_task(self, task: plan.AttackTask, why: str) -> None:
        """Fail all cells of a task that cannot be run.

        Args:
            task: Task with the cells to fail.
            why: The reason.
        """
        for cell in task.cells:
            records.write_failure(self.out, cell.identity, why)
        radii = [cell.eps_text for cell in task.cells]
        about = {"model": task.model, "attack": task.entry.label, "eps": radii, "reason": why}
        if radii:
            text = f"{task.model} · {task.entry.label} at eps {', '.join(radii)}: {why}"
            self.listen(Event("failed", text, 0.0, about))

    def _write_records(self, unit: WorkUnit, result: WorkResult) -> None:
        if result.frame is None:
            self._fail(unit, result)
            return
        stem = f"{unit.task.model}-{unit.task.entry.label}"
        self.adversarial.write_images(stem, result.pieces, result.adversarial)
        records.write_records(self.out, stem, result.frame, result.pieces, result.images)
        for cell in self._failed.keys() & set(result.cells):
            # Another chunk failed while a worker was at this one: the cell remains failed.
            records.write_failure(self.out, cell, self._failed[cell])

    def _fail(self, unit: WorkUnit, result: WorkResult) -> None:
        for cell in result.cells:
            records.write_failure(self.out, cell, result.reason)
            self._failed[cell] = result.reason
        radii = [c.eps_text for c in unit.task.cells if c.identity in result.cells]
        text = f"{unit.name} at eps {', '.join(radii)}: {result.reason}"
        about = {**unit.about, "eps": radii, "reason": result.reason}
        self.listen(Event("failed", text, 0.0, about))

    def _report_failure(self, unit: CertificationUnit, why: str) -> None:
        about = {**unit.about, "reason": why}
        self.listen(Event("failed", f"{unit.name}: {why}", 0.0, about))


def unit_key(unit: WorkUnit) -> tuple[int, int, tuple[str, ...]]:
    """Identify a work unit within a run.

    Args:
        unit: Work unit.

    Returns:
        Number of its task, its first example and its cells.
    """
    return unit.number, unit.first, tuple(cell.identity for cell in unit.task.cells)


def select_first_images(images: Tensor) -> Tensor:
    """Select the images that are stored of each cell.

    Args:
        images: (n, c, h, w).

    Returns:
        Copy of the first k images, (k, c, h, w).
    """
    return images[: count_first_images(images[0].numel() * images.element_size())].clone()


def count_first_images(size: int) -> int:
    """Count the images that are stored of each cell.

    Args:
        size: Bytes of one image.

    Returns:
        Between STORED_LEAST and STORED_IMAGES.
    """
    return max(STORED_LEAST, min(STORED_IMAGES, STORED_BYTES // size))
