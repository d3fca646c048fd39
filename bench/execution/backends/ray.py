"""Execution of work units by workers of Ray, on one machine or on a cluster: `--ray`.

Ray starts the workers and reports when one dies. Each worker loads the suite once and executes one
work unit after another; this process writes the results, so that a lost worker loses its current
unit alone, which `LossPolicy` retries or fails. Units that are not attacks (timing, certification,
probes) are executed in this process.
"""

import dataclasses
import functools
import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core.errors import SuiteError, first_line
from bench.engine import determinism, malloc
from bench.engine.progress import Progress
from bench.execution.backends.inline import InlineBackend
from bench.execution.backends.loss_policy import LossPolicy
from bench.execution.backends.worker import ChunkRequest, Worker, copy_for_transfer, make_request
from bench.execution.events import Listener
from bench.execution.loaded_suite import LoadedSuite
from bench.execution.options import RunOptions
from bench.execution.result_writer import ResultWriter, unit_key
from bench.execution.work import Messages, Unit, WorkResult, WorkUnit
from bench.suite.reader import parse_suite
from bench.suite.schema import Suite

LOCAL = "local"
TRIES = 3
"""Workers that a unit may cost before it is divided or failed, and that may die in a row while they
load the suite before the run ends."""
POLL = 1.0
"""Most seconds to wait for the next answer."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of Ray to come; without it, it warns
}


class Cluster(NamedTuple):
    """The workers that are asked for."""

    address: str = LOCAL
    """"local", "auto" or the address of a cluster."""
    workers: int | None = None
    """None: as many as there is room for."""
    gpus: float | None = None
    """GPUs, or the share of one, of each worker; None: by the device of the run."""


class Answer(NamedTuple):
    """Results of one work unit."""

    results: list[WorkResult]
    messages: Messages


class ProgressBoard:
    """Where workers, which are busy and answer no question, note how far their units are."""

    def __init__(self) -> None:
        """Hold nothing yet."""
        self._notes: dict[Hashable, Progress] = {}

    def put(self, key: Hashable, progress: Progress) -> None:
        """Note how far a unit is.

        Args:
            key: Of the unit, by `request_key`.
            progress: Its passes.
        """
        self._notes[key] = progress

    def take(self) -> dict[Hashable, Progress]:
        """Return what was noted since the last call.

        Returns:
            Key of each unit -> its passes.
        """
        notes, self._notes = self._notes, {}
        return notes


def request_key(request: ChunkRequest) -> Hashable:
    """Identify a request within a run.

    Args:
        request: A work unit in plain data.

    Returns:
        Number of its task, its first example and its cells.
    """
    return request.number, request.first, request.cells


class RayWorker:
    """A worker in one process of Ray, which returns the user's mistakes: Ray wraps exceptions."""

    def __init__(
        self, text: str, base: Path, options: RunOptions, rows: dict[str, int], board: Any
    ) -> None:
        """Prepare a worker that loads nothing yet.

        Args:
            text: The suite, as TOML.
            base: Folder that its paths are relative to.
            options: Options of the run, with the worker's device.
            rows: Model -> rows per pass, as chosen by the process that planned the run.
            board: The actor of a `ProgressBoard`.
        """
        self.text, self.base, self.options, self.rows = text, base, options, rows
        self.board = board

    def load(self) -> str:
        """Load the suite.

        Returns:
            The user's mistake that shows on this machine alone; "" if there is none.
        """
        try:
            self._worker  # noqa: B018 - cached
        except SuiteError as error:
            return str(error)
        return ""

    def run_unit(self, request: ChunkRequest) -> Answer | str:
        """Execute one work unit.

        Args:
            request: The unit in plain data.

        Returns:
            Its results, or the user's mistake.
        """
        key = request_key(request)
        try:
            with determinism.enforce_determinism(self.options.deterministic):
                results = [
                    copy_for_transfer(each)
                    for each in self._worker.run_unit(
                        request, lambda progress: self.board.put.remote(key, progress)
                    )
                ]
        except SuiteError as error:
            return str(error)
        return Answer(results, self._worker.collect_messages())

    @functools.cached_property
    def _worker(self) -> Worker:
        malloc.keep_freed_memory()
        if self.options.device == "cpu":
            torch.set_num_threads(1)
        suite = parse_suite(self.text, "the suite", self.base)
        worker = Worker(suite, None, self.options, self.rows)
        with determinism.enforce_determinism(self.options.deterministic):
            worker.load()
        return worker


class RayBackend:
    """Executes work units on workers of Ray, and all other units in this process."""

    def __init__(self, cluster: Cluster) -> None:
        """Configure the backend; no cluster is joined yet.

        Args:
            cluster: The workers that are asked for.

        Raises:
            SuiteError: Ray is not installed.
        """
        _import_ray()
        self.cluster = cluster
        self._inline = InlineBackend()

    @contextmanager
    def open(
        self, suite: Suite, out: Path, options: RunOptions, listen: Listener
    ) -> Iterator[LoadedSuite]:
        """Load a suite in this process, as each worker does later; see `Backend.open`.

        Args:
            suite: Checked suite.
            out: Folder of the run.
            options: Options of the run.
            listen: Not used.

        Yields:
            Description of the suite.
        """
        # A chunk is what one worker is given: larger ones would leave others idle.
        options = dataclasses.replace(options, larger_chunks=False)
        self._suite, self._options = suite, options
        with self._inline.open(suite, out, options, listen) as loaded:
            self._loaded = loaded
            yield loaded

    def run(self, units: Iterable[Unit], writer: ResultWriter) -> None:
        """Execute units; see `Backend.run`.

        Args:
            units: Units of the suite that is open.
            writer: Stores results and reports progress.

        Raises:
            SuiteError: There is no cluster or no room, or workers cannot load the suite.
        """
        units = list(units)
        self._inline.run((unit for unit in units if not isinstance(unit, WorkUnit)), writer)
        waiting = deque(unit for unit in units if isinstance(unit, WorkUnit))
        if not waiting:
            return
        ray = _import_ray()
        computes_on = torch.device(self._loaded.device).type
        given = self.cluster.gpus
        gpus = float(computes_on == "cuda") if given is None else given
        device = "cuda" if gpus else "cpu"
        if device != computes_on:
            writer.note(
                f"this process computes on {computes_on} and its workers on {device}: rows "
                "were chosen for the former, --batch-size says otherwise"
            )
        _connect(ray, self.cluster)
        try:
            most = min(self.cluster.workers or _count_room(ray, self.cluster, gpus), len(waiting))
            options = dataclasses.replace(
                self._options,
                device=device,
                data_dir=self._options.data_dir.resolve(),
                chunk_examples=self._loaded.chunk_examples,
            )
            make = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(RayWorker).remote
            board = ray.remote(num_cpus=0)(ProgressBoard).remote()
            start = functools.partial(
                make, self._suite.text, self._suite.base.resolve(), options, self._loaded.rows,
                board,
            )  # fmt: skip
            writer.note(f"Ray: {most} workers, {gpus:g} GPUs each")
            _WorkerPool(ray, start, most, writer, board).run(waiting)
        finally:
            ray.shutdown()


class _WorkerPool:
    """The workers of a run, each with one work unit at a time."""

    def __init__(
        self, ray: Any, start: Callable[[], Any], size: int, writer: ResultWriter, board: Any
    ) -> None:
        self.ray, self.start, self.size, self.writer = ray, start, size, writer
        self.board = board
        self.asked: Any = None
        """Reference of a call of the board's `take`."""
        self.loading: dict[Any, Any] = {}
        """Reference of a call of `load` -> its worker."""
        self.running: dict[Any, tuple[Any, WorkUnit]] = {}
        """Reference of a call of `run_unit` -> its worker and unit."""
        self.idle: list[Any] = []
        self.load_losses = 0
        """Workers that died in a row while they loaded the suite."""
        self.policy = LossPolicy(TRIES)

    def run(self, waiting: deque[WorkUnit]) -> None:
        """Execute all units and write results as they arrive."""
        while waiting or self.running:
            self._start_workers(len(waiting) + len(self.running))
            self._assign(waiting)
            pending = [*self.loading, *self.running]
            if not pending:
                continue
            self._report_progress()
            for ready in self.ray.wait(pending, num_returns=1, timeout=POLL)[0]:
                if ready in self.loading:
                    self._finish_loading(ready)
                else:
                    waiting.extendleft(reversed(self._finish_unit(ready)))

    def _report_progress(self) -> None:
        """Report how far the units at work are, without waiting for the board."""
        if self.asked is None:
            self.asked = self.board.take.remote()
        if not self.ray.wait([self.asked], num_returns=1, timeout=0)[0]:
            return
        asked, self.asked = self.asked, None
        try:
            notes = self._get(asked)
        except _WorkerLostError:  # no progress is shown any more
            return
        for _, unit in self.running.values():
            if (key := unit_key(unit)) in notes:
                self.writer.report_progress(unit, notes[key])

    def _start_workers(self, needed: int) -> None:
        """Start workers up to the size of the pool.

        Ray delays those that it has no room for; they receive no unit before they are loaded.
        """
        while len(self.loading) + len(self.running) + len(self.idle) < min(self.size, needed):
            worker = self.start()
            self.loading[worker.load.remote()] = worker

    def _assign(self, waiting: deque[WorkUnit]) -> None:
        """Give the next units to the workers that are idle."""
        while waiting and self.idle:
            unit = waiting.popleft()
            unit = unit._replace(task=self.writer.remaining(unit))
            if not unit.task.cells:
                self.writer.finish(unit)
                continue
            parts = self.policy.divide(unit)
            if len(parts) > 1:
                waiting.extendleft(reversed(parts))
                continue
            worker = self.idle.pop()
            self.writer.begin(unit)
            self.running[worker.run_unit.remote(make_request(unit))] = worker, unit

    def _finish_loading(self, ready: Any) -> None:
        """Raise a SuiteError if the worker cannot load the suite, or workers die of it."""
        worker = self.loading.pop(ready)
        try:
            mistake = self._get(ready)
        except _WorkerLostError as error:
            self.load_losses += 1
            if self.load_losses >= TRIES:
                raise SuiteError(
                    f"{self.load_losses} workers of Ray died while they loaded the suite: {error}"
                ) from None
            return
        if mistake:
            raise SuiteError(f"a worker of Ray: {mistake}; its machine must see the same files")
        self.load_losses = 0
        self.idle.append(worker)

    def _finish_unit(self, ready: Any) -> list[WorkUnit]:
        """Write the results of a unit; returns what is to be tried again of it."""
        worker, unit = self.running.pop(ready)
        try:
            answer = self._get(ready)
        except _WorkerLostError as error:
            return self._handle_loss(unit, str(error))
        self.idle.append(worker)
        if isinstance(answer, str):
            raise SuiteError(f"a worker of Ray: {answer}")
        for result in answer.results:
            self.writer.write(unit, result)
        self.writer.report(answer.messages)
        self.writer.finish(unit)
        return []

    def _handle_loss(self, unit: WorkUnit, why: str) -> list[WorkUnit]:
        """What is to be tried again of a unit whose worker died; it is failed if nothing is."""
        unit = unit._replace(task=self.writer.remaining(unit))
        examples = f"examples {unit.first} to {unit.last - 1}"
        # A worker may die of its machine, so that no loss proves that the unit caused it.
        match self.policy.decide(unit, is_cause=False):
            case "retry":
                self.writer.note(f"{unit.name}, {examples}: its worker died, tried again ({why})")
                return [unit]
            case "divide":
                self.writer.note(
                    f"{unit.name}, {examples}: its worker died {TRIES} times, its eps are tried "
                    "alone"
                )
                return self.policy.divide(unit)
            case "fail":
                reason = f"its worker died {TRIES} times, {examples}: {why}"
                cells = tuple(cell.identity for cell in unit.task.cells)
                self.writer.write(unit, WorkResult(cells, reason=reason))
                self.writer.finish(unit)
        return []

    def _get(self, ready: Any) -> Any:
        """The answer of a worker; raises _WorkerLostError if it died, and a bug as it is."""
        try:
            return self.ray.get(ready)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            raise _WorkerLostError(_extract_cause(error)) from None


class _WorkerLostError(Exception):
    """A worker died; the text says why, as far as Ray knows."""


def _extract_cause(error: Exception) -> str:
    """The sentence of Ray's message that names the cause."""
    text = " ".join(str(error).split())
    detail = text.partition("Worker exit detail: ")[2] or text or type(error).__name__
    return detail.partition(". ")[0].rstrip(".")


def _connect(ray: Any, asked: Cluster) -> None:
    """Join a cluster or start one here; raises a SuiteError if there is none at the address."""
    # Output of the workers appears in this process.
    settings: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR"}
    if asked.address == LOCAL:
        settings |= {"include_dashboard": False, "num_cpus": asked.workers or os.cpu_count()}
    try:
        ray.init(asked.address, **settings)
    except Exception as error:  # Ray raises bare ones: no cluster, another version, no port
        raise SuiteError(
            f"--ray {asked.address}: no cluster could be joined there ({first_line(error)}); start "
            "one with ray start --head, under the same RAY_AUTH_MODE, or use --ray alone for this "
            "machine"
        ) from error


def _count_room(ray: Any, asked: Cluster, gpus: float) -> int:
    """Number of workers that the cluster has room for; raises a SuiteError if it has none."""
    there = ray.cluster_resources()
    room = int(there.get("CPU", 0))
    if gpus:
        # A worker's share is of one GPU: 0.3 leaves room for three on each.
        each = int(1 / gpus) if gpus <= 1 else 1 / gpus
        room = min(room, int(there.get("GPU", 0) * each))
    if room < 1:
        raise SuiteError(
            f"--ray {asked.address}: no room for a worker with a core and {gpus:g} GPUs among "
            f"{there.get('CPU', 0):g} cores and {there.get('GPU', 0):g} GPUs; ask for less with "
            "--gpus-per-worker, or give --workers to wait for machines that are still to come"
        )
    return room


def _import_ray() -> Any:
    """Ray, imported on first use; raises a SuiteError if it is not installed."""
    os.environ.update(QUIET)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise SuiteError(
            'Ray is not installed; pip install "robustness-bench[ray]", or divide the run with '
            "--shard I/N, which needs nothing"
        ) from error
    return ray
