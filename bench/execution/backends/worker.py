"""Execution of units where the models are loaded; shared by all backends.

A request is a unit in plain data, which can be sent to another process: tasks contain functions of
the user's files, so that a request names a task by its number and its cells. Every failure of a
user's code becomes a result, which says why.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bench.core import streams
from bench.core.errors import SuiteError
from bench.engine.default_dtype import default_to_float32
from bench.engine.device import enter_device
from bench.engine.progress import Progress, count_unit
from bench.evaluation.audit import probe_models
from bench.evaluation.certification import store
from bench.evaluation.certified_examples import CertifiedIds
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.loading import describe_failure
from bench.execution import resume_check
from bench.execution.chunk_choice import choose_chunk_size
from bench.execution.loaded_suite import LoadedSuite, describe_evaluator
from bench.execution.options import RunOptions
from bench.execution.preparation import load_evaluator
from bench.execution.result_writer import count_first_images, select_first_images
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
from bench.suite import plan
from bench.suite.schema import Suite


class ChunkRequest(NamedTuple):
    """A work unit in plain data."""

    number: int
    cells: tuple[str, ...]
    """Identities."""
    first: int
    last: int
    certified: Mapping[str, tuple[int, ...]] = {}
    """Cell -> its certified examples, which are not attacked."""


class TimingRequest(NamedTuple):
    """A model timing in plain data."""

    chunks: tuple[ChunkRequest, ...]


class CleanPass(NamedTuple):
    """Ask a model about all clean images, which every unit of it needs."""

    model: str


class LoadSuite(NamedTuple):
    """Load the suite."""


Request = (
    ChunkRequest | TimingRequest | ResumeCheck | CertificationUnit | ProbeUnit | CleanPass
    | FirstImages | LoadSuite
)  # fmt: skip


class Worker:
    """A process's loaded suite, and the execution of its units."""

    def __init__(
        self,
        suite: Suite,
        out: Path | None,
        options: RunOptions,
        rows: dict[str, int] | None = None,
        announce: Callable[[str], None] = lambda activity: None,
        evaluator: Evaluator | None = None,
    ) -> None:
        """Prepare a worker that loads nothing yet.

        Args:
            suite: Checked suite.
            out: Folder of the run; None on another machine.
            options: Options of the run.
            rows: Model -> rows per pass, as chosen by the process that planned the run, since
                identities may depend on them; None: chosen here.
            announce: Called with a description before a user's code is loaded.
            evaluator: Models and data that are loaded already; those of the suite if None.
        """
        self.suite, self.out, self.options = suite, out, options
        self._rows, self._announce = rows, announce
        self._evaluator = evaluator
        self._tasks: list[plan.AttackTask] = []

    @property
    def evaluator(self) -> Evaluator:
        """The loaded evaluator."""
        assert self._evaluator is not None, "the suite is not loaded"
        return self._evaluator

    def load(self) -> LoadedSuite:
        """Load the suite and plan its tasks.

        Returns:
            Description of what was loaded.

        Raises:
            SuiteError: The user's mistakes.
        """
        evaluator = self._evaluator or load_evaluator(
            self.suite, self.out, self.options, self._announce
        )
        size = choose_chunk_size(evaluator, self.suite, self.out, self.options)
        if size != evaluator.chunk_examples:
            evaluator = dataclasses.replace(evaluator, chunk_examples=size)
        if self._rows is not None:
            evaluator = dataclasses.replace(evaluator, rows=self._rows)
        self._evaluator = evaluator
        facts = {label: evaluator.model_facts(label) for label in evaluator.models}
        self._tasks = plan.plan_tasks(self.suite, facts)
        with enter_device(evaluator.device):
            return describe_evaluator(evaluator, self.suite, self._announce)

    def run_unit(
        self, request: Request, on_progress: Callable[[Progress], None] | None = None
    ) -> Iterator[Any]:
        """Execute one request.

        Args:
            request: As `make_request` returns it.
            on_progress: Called now and then while an attack runs.

        Yields:
            Results of the type that belongs to the unit.

        Raises:
            SuiteError: The user's mistakes that are found only now.
        """
        loaded = self._evaluator is not None  # loading selects and enters the device itself
        entered = enter_device(self.evaluator.device) if loaded else contextlib.nullcontext()
        with default_to_float32(), entered:  # a file of the suite may have set another type
            yield from self._execute(request, on_progress)

    def _execute(
        self, request: Request, on_progress: Callable[[Progress], None] | None
    ) -> Iterator[Any]:
        match request:
            case ChunkRequest():
                task = self._find_task(request)
                yield from run_chunk(
                    self.evaluator,
                    task,
                    request.first,
                    request.last,
                    request.certified,
                    on_progress,
                )
            case TimingRequest():
                yield self._time(request)
            case ResumeCheck():
                yield from self._check_model(request)
            case CertificationUnit():
                yield self._certify(request)
            case ProbeUnit():
                yield probe_models.probe_model(
                    self.evaluator, request.model, self._tasks, request.of
                )
            case CleanPass():
                self._run_clean_pass(request.model)
            case FirstImages():
                data = self.evaluator.data
                channels, height, width = data.shape
                count = count_first_images(4 * channels * height * width)
                yield data.read(0, min(count, self.evaluator.chunks()[0][1]))
            case LoadSuite():
                yield self.load()

    def collect_messages(self) -> Messages:
        """Collect what was decided and what happened since the last call.

        Returns:
            Sentences, and the accelerated models as they are now.
        """
        evaluator = self.evaluator
        accelerated = {
            label: evaluator.pool.acceleration_summary(label) for label in evaluator.models
        }
        failed = evaluator.pool.failed_captures
        messages = Messages(evaluator.decisions[:], evaluator.notes[:], accelerated, dict(failed))
        evaluator.decisions.clear()
        evaluator.notes.clear()
        failed.clear()
        return messages

    def _find_task(self, request: ChunkRequest) -> plan.AttackTask:
        task = self._tasks[request.number].only(set(request.cells))
        if len(task.cells) < len(request.cells):
            raise SuiteError(
                "it plans other cells than the process that started it: another bench, library, "
                "file or device; install the same everywhere"
            )
        return task

    def _time(self, request: TimingRequest) -> TimingResult:
        """Estimated seconds of each chunk, or why the model that they craft on cannot be timed."""
        seconds = []
        for chunk in request.chunks:
            task = self._find_task(chunk)
            try:
                with streams.protect_streams(self.evaluator.notes.append, f"model '{task.source}'"):
                    work = self.evaluator.pool.seconds_per_example(task)
            except (SuiteError, KeyboardInterrupt):
                raise
            except BaseException as error:  # user's code may raise anything
                return TimingResult(unfit=f"could not be timed: {describe_failure(error)}")
            seconds.append(work * (chunk.last - chunk.first))
        return TimingResult(tuple(seconds))

    def _check_model(self, request: ResumeCheck) -> Iterator[str]:
        """Compare a model with its records; yields a sentence if it could not be asked."""
        assert self.out is not None, "records are on another machine"
        yield from resume_check.check_model(
            self.evaluator, request.model, self._tasks, request.files, self.out
        )

    def _certify(self, request: CertificationUnit) -> store.Certificates | CertificationFailure:
        try:
            return store.certify_chunk(self.evaluator, request.task, request.first, request.last)
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # user's code: its certificates alone are missing
            return CertificationFailure(describe_failure(error))

    def _run_clean_pass(self, model: str) -> None:
        try:
            self.evaluator.clean_pass(model)
        except KeyboardInterrupt:
            raise
        except BaseException:  # user's code: each of its cells raises the same and reports it
            return


def make_request(unit: Unit, task: plan.AttackTask | None = None) -> Request:
    """Convert a unit into plain data.

    Args:
        unit: Any unit.
        task: Task of a work unit without the cells that have failed; the unit's own if not given.

    Returns:
        The request that executes the unit.
    """
    match unit:
        case WorkUnit():
            cells = tuple(cell.identity for cell in (task or unit.task).cells)
            return ChunkRequest(unit.number, cells, unit.first, unit.last, unit.certified)
        case ModelTiming():
            chunks = [make_request(each) for each in unit.units]
            return TimingRequest(tuple(each for each in chunks if isinstance(each, ChunkRequest)))
        case _:
            return unit


def run_chunk(
    evaluator: Evaluator,
    task: plan.AttackTask,
    first: int,
    last: int,
    certified: CertifiedIds | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Iterator[WorkResult]:
    """Attack a chunk of examples for the cells of a task.

    If a stream of several cells fails, each cell is run alone, so that one eps at which an attack
    raises does not fail the others.

    Args:
        evaluator: Loaded suite.
        task: Task with the cells to run.
        first: First example.
        last: The one after the last example.
        certified: Cell -> its certified examples, which are not attacked; none by default.
        on_progress: Called now and then while the attack runs.

    Yields:
        Records, or the reason of a failure.

    Raises:
        SuiteError: The user's mistakes that are found only now.
    """
    if not task.cells:
        return
    cells = tuple(cell.identity for cell in task.cells)
    try:
        name = f"{task.model} · {task.entry.label}"
        with streams.protect_streams(evaluator.notes.append, name), count_unit(on_progress):
            chunk = evaluator.evaluate_chunk(task, first, last, certified)
    except (SuiteError, KeyboardInterrupt):  # the user's: an unreadable image, or Ctrl-C
        raise
    except BaseException as error:  # user's code may raise anything
        if task.linked or len(cells) == 1:
            yield WorkResult(cells, reason=describe_failure(error))
            return
        evaluator.decisions.append(
            f"{task.model} · {task.entry.label}: failed at {len(cells)} eps in one stream "
            f"({describe_failure(error)}), so each is tried alone"
        )
        for cell in cells:
            yield from run_chunk(evaluator, task.only({cell}), first, last, certified, on_progress)
        return
    pairs = () if first else zip(cells, chunk.x_adv, strict=True)
    images = {cell: select_first_images(x_adv) for cell, x_adv in pairs}
    adversarial = dict(zip(cells, chunk.x_adv, strict=True)) if evaluator.keep_all_images else {}
    yield WorkResult(
        cells, frame=chunk.frame, pieces=chunk.pieces, images=images, adversarial=adversarial
    )


def copy_for_transfer(result: Any) -> Any:
    """Copy the tensors of a result that are views, whose whole storage would be pickled.

    Args:
        result: Any result of a unit.

    Returns:
        The result with tensors of their own storage.
    """
    if not isinstance(result, WorkResult):
        return result
    return result._replace(
        adversarial={cell: images.clone() for cell, images in result.adversarial.items()}
    )
