"""Execution of units in a worker process that may crash, hang or exhaust memory: `--isolate`.

This process loads no model. It sends one request at a time to the worker, writes the results, and
watches the worker's memory and heartbeats (`bench.engine.heartbeat`). A worker that dies or exceeds
a limit is replaced; what was at work is retried or failed by `LossPolicy`.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ByteSize

from bench.core import validation
from bench.core.errors import SuiteError
from bench.execution.backends.loss_policy import LossPolicy
from bench.execution.backends.process import Activity, Setup, serve
from bench.execution.backends.worker import CleanPass, LoadSuite, Request, make_request
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

TICK = 0.02
"""Seconds between two checks of the limits."""
GRACE = 10.0
"""Seconds that a worker may take to end after its last unit."""
TRIES = 2
"""Workers that a unit may cost before it is divided or failed, unless it was its worker's first."""


class Limits(NamedTuple):
    """Limits of a worker process, which is killed when it exceeds one; None: no limit."""

    seconds: float | None = None
    """Longest time without a heartbeat, which is a model call begun or ended."""
    memory: int | None = None
    """Resident bytes of the process, PyTorch's own included."""


def parse_limits(isolate: bool, seconds: float | None, memory: str | None) -> Limits | None:
    """Parse the options of isolation. A limit implies isolation.

    >>> parse_limits(False, None, "1.5 GiB")
    Limits(seconds=None, memory=1610612736)

    Args:
        isolate: Whether isolation is asked for.
        seconds: As given to `--time-limit`.
        memory: As given to `--memory-limit`, such as "4GiB".

    Returns:
        The limits; None if the run is not isolated.

    Raises:
        SuiteError: The size cannot be read, or the seconds are not above 0.
    """
    if seconds is not None and not seconds > 0:
        raise SuiteError(f"--time-limit: expected seconds above 0, got {seconds:g}")
    if not isolate and seconds is None and memory is None:
        return None
    if memory is None:
        return Limits(seconds)
    return Limits(seconds, validation.byte_size("--memory-limit", memory))


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
        self._process: _WorkerProcess | None = None
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
                except _WorkerLostError as lost:
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
        except _WorkerLostError as lost:
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
                elif unit is not None:
                    writer.write(unit, message)
        except _WorkerLostError:
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
        self._process = process = _WorkerProcess(self._setup, self.limits)
        try:
            loaded, messages = process.execute(LoadSuite(), "loading the suite", timed=False)
        except _WorkerLostError as lost:
            self._process = None
            raise SuiteError(f"{process.activity}: {lost}") from None
        assert isinstance(loaded, LoadedSuite)
        self._unreported.append(messages)
        return loaded

    def _restart(self) -> "_WorkerProcess":
        self._start()
        assert self._process is not None
        return self._process


def _eps_of(units: Iterable[WorkUnit]) -> dict[str, str]:
    """Identity -> eps as the suite writes it, of the cells of the units."""
    return {cell.identity: cell.eps_text for unit in units for cell in unit.task.cells}


class _WorkerLostError(Exception):
    """The worker process died or was killed; the text says why."""


class _WorkerProcess:
    """A worker process, seen from the process that started it."""

    def __init__(self, setup: Setup, limits: Limits) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._beats = context.RawValue("Q")
        self._limits = limits
        self._process = context.Process(
            target=serve, args=(setup, theirs, self._beats), name="bench, isolated"
        )
        self._process.start()
        theirs.close()
        self._peak_memory = 0
        self.activity = ""
        """What is at work, for people."""
        self.asked: set[str] = set()
        """Models that were asked about all clean images."""
        self.begun = 0
        """Work units that were begun."""

    def execute(self, request: Request, activity: str, timed: bool) -> Iterator[Any]:
        """Send a request; yields its results, the last of which are messages.

        Raises:
            _WorkerLostError: The process died or exceeded a limit.
            SuiteError, RecordError: As the worker raised it.
            RuntimeError: A bug, with the worker's traceback.
        """
        self.activity = activity
        with contextlib.suppress(OSError):  # a process that is dead is noticed below
            self._connection.send_bytes(pickle.dumps(request))
        since, beats = time.monotonic(), self._beats.value
        while True:
            message = self._receive()
            if isinstance(message, Exception):
                raise message
            if isinstance(message, Activity):
                self.activity, timed, since = message.text, True, time.monotonic()
            elif message is not None:
                yield message
                if isinstance(message, Messages):
                    return
            if self._beats.value != beats or message is not None:
                beats, since = self._beats.value, time.monotonic()
            limit = self._limits.seconds
            if limit is not None and timed and time.monotonic() - since > limit:
                self.kill()
                raise _WorkerLostError(_describe_hang(limit))
            self._check_memory()

    def join(self) -> None:
        """End a process that has nothing left to do."""
        self._connection.close()
        self._process.join(GRACE)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self) -> Any:
        """The next message; None if there is none yet."""
        try:
            if self._connection.poll(TICK):
                return pickle.loads(self._connection.recv_bytes())
            if self._process.is_alive() or self._connection.poll():
                return None
        except (EOFError, OSError):
            pass
        self._process.join()
        code = self._process.exitcode
        self.kill()
        raise _WorkerLostError(_describe_exit(code, self._peak_memory))

    def _check_memory(self) -> None:
        used = _measure_memory(self._process.pid)
        self._peak_memory = max(self._peak_memory, used)
        if self._limits.memory is not None and used > self._limits.memory:
            self.kill()
            raise _WorkerLostError(_describe_excess(used, self._limits.memory))


def _describe_hang(seconds: float) -> str:
    return (
        f"its process gave no sign of life for {seconds:g} s, the time limit of one pass, and was "
        "killed; it hangs, or needs a larger --time-limit"
    )


def _describe_excess(used: int, limit: int) -> str:
    return (
        f"its process used {ByteSize(used).human_readable()} of memory and was killed; "
        f"the limit is {ByteSize(limit).human_readable()}"
    )


def _describe_exit(code: int | None, peak_memory: int) -> str:
    """How a process ended before it was done; `peak_memory` in bytes, as far as observed."""
    if code is None or code >= 0:
        return f"its process ended itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    text = f"its process was killed by {name} ({signal.strsignal(-code) or 'unknown'})"
    if name == "SIGKILL":
        text += (
            f" while it used {ByteSize(peak_memory).human_readable()} of memory; the system does "
            "so when there is no more"
        )
    return text


def _measure_memory(process: int | None) -> int:
    """Resident bytes of a process; 0 where that is unknown."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
