"""Execution of units in a worker process that may crash, hang or exhaust memory: `--isolate`.

This process loads no model. It sends one request at a time to the worker (`worker_process`, which
watches memory and heartbeats) and writes the results. A worker that dies or exceeds a limit is
replaced; what was at work is retried or failed by `LossPolicy`.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.core.errors import SuiteError
from bench.engine.progress import Progress
from bench.execution.backends.limits import Limits
from bench.execution.backends.loss_policy import LossPolicy
from bench.execution.backends.process import Setup
from bench.execution.backends.worker import CleanPass, LoadSuite, Request, make_request
from bench.execution.backends.worker_process import WorkerLostError, WorkerProcess
from bench.execution.events import Listener
from bench.execution.loaded_suite import LoadedSuite
from bench.execution.options import RunOptions
from bench.execution.result_writer import ResultWriter
from bench.execution.work import (
    CertificationUnit,
    FirstImages,
    Messages,
    ModelTiming,
    ProbeUnit,
    ResumeCheck,
    Unit,
    WorkResult,
    WorkUnit,
)
from bench.suite.schema import Suite

TRIES = 2
"""Workers that a unit may cost before it is divided or failed, unless it was its worker's first."""


class SubprocessBackend:
    """Executes units in one worker process, which is replaced when it is lost.

    In a user's script, code that must not run again in the worker belongs under
    `if __name__ == "__main__"`, as multiprocessing requires.
    """

    def __init__(self, limits: Limits) -> None:
        """Configure the backend; no process is started yet.

        Args:
            limits: Limits of a worker process.
        """
        self.limits = limits
        self._policy = LossPolicy(TRIES)
        self._process: WorkerProcess | None = None
        self._setup: Setup | None = None
        self._unwell: dict[str, str] = {}
        """Models that lost a worker when they were asked alone -> how; they are not asked again,
        certified or probed."""
        self._reported: set[str] = set()
        self._unreported: list[Messages] = []
        """Messages of workers that loaded the suite."""

    @contextmanager
    def open(
        self, suite: Suite, out: Path, options: RunOptions, listen: Listener
    ) -> Iterator[LoadedSuite]:
        """Load a suite in a worker process; see `Backend.open`.

        Args:
            suite: Checked suite.
            out: Folder of the run.
            options: Options of the run.
            listen: Not used.

        Yields:
            Description of the suite.

        Raises:
            SuiteError: As the worker raised it; a model does not survive being loaded; a limit
                cannot be enforced on this system.
        """
        del listen
        if self.limits.memory is not None and not Path("/proc/self/statm").is_file():
            raise SuiteError("--memory-limit needs /proc, which this system has not; leave it out")
        self._setup = Setup(suite.text, suite.base, out, options, torch.get_num_threads(), None)
        try:
            loaded = self._start()
            self._setup = self._setup._replace(rows=loaded.rows)
            yield loaded
            if self._process is not None:
                self._process.join()
        finally:
            if self._process is not None:
                self._process.kill()

    def run(self, units: Iterable[Unit], writer: ResultWriter) -> None:
        """Execute units in their order; see `Backend.run`.

        Args:
            units: Units of the suite that is open.
            writer: Stores results and reports progress.
        """
        waiting = deque(units)
        while waiting:
            unit = waiting.popleft()
            if isinstance(unit, WorkUnit):
                unit = unit._replace(task=writer.remaining(unit))
                if not unit.task.cells:
                    writer.finish(unit)
                    continue
                parts = self._policy.divide(unit)
                if len(parts) > 1:
                    waiting.extendleft(reversed(parts))
                    continue
            elif (
                isinstance(unit, ResumeCheck | CertificationUnit | ProbeUnit)
                and unit.model in self._unwell
            ):
                writer.skip(unit, self._unwell[unit.model])
                continue
            waiting.extendleft(reversed(self._run_unit(unit, [*waiting], writer)))

    def _run_unit(self, unit: Unit, waiting: list[Unit], writer: ResultWriter) -> list[WorkUnit]:
        """Execute one unit; returns what is to be executed next because a worker was lost."""
        process = self._process or self._restart()
        if isinstance(unit, WorkUnit | CertificationUnit):
            model = unit.task.model
            if model not in process.asked:
                process.asked.add(model)
                # A separate request, so that a loss is not blamed on the first attack.
                try:
                    self._execute(CleanPass(model), f"{model}, asked about clean images", writer)
                except WorkerLostError as lost:
                    self._handle_clean_loss(unit, waiting, str(lost), writer)
                    return []
        is_first = process.begun == 0
        if isinstance(unit, WorkUnit):
            process.begun += 1
        writer.begin(unit)
        try:
            # Certificates are computed without calls of the model, so without heartbeats.
            timed = not isinstance(unit, CertificationUnit | FirstImages)
            self._execute(make_request(unit), unit.name, writer, unit, timed)
        except WorkerLostError as lost:
            return self._handle_loss(unit, is_first, str(lost), writer)
        writer.finish(unit)
        return []

    def _execute(
        self, request: Request, name: str, writer: ResultWriter, unit: Unit | None = None,
        timed: bool = True,
    ) -> None:  # fmt: skip
        """Send a request and write its results; a lost worker is forgotten."""
        assert self._process is not None
        try:
            for message in self._process.execute(request, name, timed):
                if isinstance(message, Messages):
                    self._report(message, writer)
                elif isinstance(message, Progress) and unit is not None:
                    writer.report_progress(unit, message)
                elif unit is not None:
                    writer.write(unit, message)
        except WorkerLostError:
            self._process = None
            raise

    def _report(self, messages: Messages, writer: ResultWriter) -> None:
        """Report sentences that no earlier worker has reported."""
        if self._unreported:
            self._report(self._unreported.pop(0), writer)
        reasons = [each for each in messages.reasons if each not in self._reported]
        notes = [each for each in messages.notes if each not in self._reported]
        self._reported.update(reasons, notes)
        writer.report(messages._replace(reasons=reasons, notes=notes))

    def _handle_loss(
        self, unit: Unit, is_first: bool, why: str, writer: ResultWriter
    ) -> list[WorkUnit]:
        """Store what a lost worker means for its unit; returns what is to be tried again."""
        match unit:
            case WorkUnit():
                return self._handle_unit_loss(unit, is_first, why, writer)
            case ModelTiming():
                cells = _eps_of(unit.affected)
                writer.fail_cells(unit.name, cells, why)
                self._unwell[unit.model] = why
            case ResumeCheck() | CertificationUnit() | ProbeUnit():
                writer.write_loss(unit, why)
                self._unwell[unit.model] = why
            case _:
                raise SuiteError(f"{unit.name}: {why}")
        return []

    def _handle_unit_loss(
        self, unit: WorkUnit, is_first: bool, why: str, writer: ResultWriter
    ) -> list[WorkUnit]:
        unit = unit._replace(task=writer.remaining(unit))  # some cells may have failed by raising
        match self._policy.decide(unit, is_first):
            case "retry":
                writer.note(f"{unit.name}: {why}; tried once more in a new process")
                return [unit]
            case "divide":
                writer.note(f"{unit.name}: {why}; its eps are tried one at a time")
                return self._policy.divide(unit)
            case "fail":
                cells = tuple(cell.identity for cell in unit.task.cells)
                writer.write(unit, WorkResult(cells, reason=why))
                writer.finish(unit)
        return []

    def _handle_clean_loss(
        self, unit: WorkUnit | CertificationUnit, waiting: list[Unit], why: str,
        writer: ResultWriter,
    ) -> None:  # fmt: skip
        model = unit.task.model
        self._unwell[model] = why
        if isinstance(unit, CertificationUnit):
            writer.write_loss(unit, why)
            return
        own = [each for each in (unit, *waiting) if isinstance(each, WorkUnit)]
        cells = _eps_of(each for each in own if each.task.model == model)
        writer.fail_cells(f"{model}, asked about clean images", cells, why)
        writer.finish(unit)

    def _start(self) -> LoadedSuite:
        """Start a worker and load the suite in it."""
        assert self._setup is not None
        self._process = process = WorkerProcess(self._setup, self.limits)
        try:
            loaded, messages = process.execute(LoadSuite(), "loading the suite", timed=False)
        except WorkerLostError as lost:
            self._process = None
            raise SuiteError(f"{process.activity}: {lost}") from None
        assert isinstance(loaded, LoadedSuite)
        self._unreported.append(messages)
        return loaded

    def _restart(self) -> WorkerProcess:
        self._start()
        assert self._process is not None
        return self._process


def _eps_of(units: Iterable[WorkUnit]) -> dict[str, str]:
    """Map the identity of each cell of the units to its eps as the suite writes it."""
    return {cell.identity: cell.eps_text for unit in units for cell in unit.task.cells}
