"""The parts of a run as tasks of Ray: `bench run --ray`, on one machine or on a cluster.

Ray finds the machines, starts the workers and sees when one dies. A worker loads once what the
suite names, makes the outcomes of one part after another and sends them back; this process alone
writes them, so that a lost worker loses the part that it was at and no more. Such a part is tried
again, at most TRIES times in all: cells that take every worker with them are failed, after each was
tried alone.
"""

import dataclasses
import functools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core.errors import SuiteError, first_line
from bench.engine import determinism, malloc
from bench.evaluation.evaluator import Evaluator
from bench.execution import options as execution_options
from bench.execution import preparation
from bench.execution import work as parts
from bench.execution.result_writer import ResultWriter
from bench.execution.work import Work, WorkResult, WorkUnit
from bench.suite import plan
from bench.suite.reader import parse_suite
from bench.suite.schema import Suite

LOCAL = "local"
TRIES = 3
"""Workers that a part may cost before its cells are failed, and that may die in a row while they
load the suite before the run ends."""
POLL = 1.0
"""Seconds between two looks at what has come."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of Ray to come; without it, it warns
}


class Cluster(NamedTuple):
    """Which workers are asked for."""

    address: str = LOCAL
    """"local", "auto" or the address of a cluster."""
    workers: int | None = None
    """As many as there is room for, unless given."""
    gpus: float | None = None
    """GPUs, or the share of one, that a worker gets; by the device of the run, unless given."""


class Answer(NamedTuple):
    """What a worker sends back for one part."""

    outcomes: list[WorkResult]
    reasons: list[str]
    notes: list[str]


class RayWorker:
    """One process of Ray's."""

    def __init__(
        self, text: str, base: Path, options: execution_options.RunOptions, rows: dict[str, int]
    ) -> None:
        self.text, self.base, self.options, self.rows = text, base, options, rows

    def load(self) -> str:
        """Load what the suite names; returns the user's mistake, as far as it shows here alone."""
        try:
            self._loaded  # noqa: B018 - cached
        except SuiteError as error:
            return str(error)
        return ""

    def attempt(self, number: int, cells: Sequence[str], first: int, last: int) -> Answer | str:
        """The outcomes of these cells of the suite's task, on the examples first..last-1; or the
        user's mistake."""
        session, tasks = self._loaded
        task = tasks[number].only(set(cells))
        if len(task.cells) < len(cells):
            return (
                "it plans other cells than the process that started it: another bench, library, "
                "file or device; install the same everywhere"
            )
        try:
            with determinism.enforce_determinism(self.options.deterministic):
                outcomes = list(parts.attempt(session, task, first, last))
        except SuiteError as error:
            return str(error)
        answer = Answer(outcomes, session.reasons[:], session.notes[:])
        session.reasons.clear()
        session.notes.clear()
        return answer

    @functools.cached_property
    def _loaded(self) -> tuple[Evaluator, list[plan.AttackTask]]:
        malloc.keep_freed_memory()
        if self.options.device == "cpu":
            torch.set_num_threads(1)
        suite = parse_suite(self.text, "the suite", self.base)
        with determinism.enforce_determinism(self.options.deterministic):
            session = preparation.load_evaluator(suite, None, self.options)
        # Where outcomes depend on the batch, the rows are part of what the cells are.
        session = dataclasses.replace(session, rows=self.rows)
        facts = {label: session.facts(label) for label in session.subjects}
        return session, plan.plan_tasks(suite, facts)


def over(suite: Suite, options: execution_options.RunOptions, asked: Cluster) -> Work:
    """What attempts the parts of this run on the workers asked for.

    Raises: SuiteError if Ray is not installed.
    """
    _ray()
    return functools.partial(_work, suite, options, asked)


def _work(
    suite: Suite,
    options: execution_options.RunOptions,
    asked: Cluster,
    session: Evaluator,
    todo: Iterable[WorkUnit],
    ledger: ResultWriter,
) -> None:
    waiting = deque(todo)
    if not waiting:
        return
    ray = _ray()
    gpus = float(session.device.type == "cuda") if asked.gpus is None else asked.gpus
    device = "cuda" if gpus else "cpu"
    if device != session.device.type:
        ledger.note(
            f"this process computes on {session.device.type} and its workers on {device}: rows "
            "were chosen for the former, --batch-size says otherwise"
        )
    _connect(ray, asked)
    try:
        most = min(asked.workers or _room(ray, asked, gpus), len(waiting))
        here = dataclasses.replace(options, device=device, data_dir=options.data_dir.resolve())
        make = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0)(RayWorker).remote
        start = functools.partial(make, suite.text, suite.base.resolve(), here, session.rows)
        ledger.note(f"Ray: {most} workers, {gpus:g} GPUs each")
        _Crew(ray, start, most, ledger).work(waiting)
    finally:
        ray.shutdown()


class _Crew:
    """The workers of a run, as many as are wanted, one part at a time each."""

    def __init__(self, ray: Any, start: Callable[[], Any], most: int, ledger: ResultWriter) -> None:
        self.ray, self.start, self.most, self.ledger = ray, start, most, ledger
        self.loading: dict[Any, Any] = {}
        """What was asked -> the worker, for both."""
        self.running: dict[Any, tuple[Any, WorkUnit]] = {}
        self.idle: list[Any] = []
        self.stillborn = 0
        """Workers that died in a row while they loaded the suite."""
        self.lost: Counter[tuple[int, int, tuple[str, ...]]] = Counter()

    def work(self, waiting: deque[WorkUnit]) -> None:
        """Do all that waits, and enter what the workers send as it comes."""
        while waiting or self.running:
            self._hire(len(waiting) + len(self.running))
            self._hand_out(waiting)
            asked = [*self.loading, *self.running]
            for ready in self.ray.wait(asked, num_returns=1, timeout=POLL)[0] if asked else ():
                if ready in self.loading:
                    self._greet(ready)
                else:
                    waiting.extendleft(reversed(self._settle(ready)))

    def _hire(self, needed: int) -> None:
        """Start workers until there are as many as are wanted; one that Ray has no room for yet is
        waited for, and nothing is given to it."""
        while len(self.loading) + len(self.running) + len(self.idle) < min(self.most, needed):
            worker = self.start()
            self.loading[worker.load.remote()] = worker

    def _hand_out(self, waiting: deque[WorkUnit]) -> None:
        while waiting and self.idle:
            part = waiting.popleft()
            cells = [cell.identity for cell in self.ledger.left(part).cells]
            if not cells:
                self.ledger.finish(part)
                continue
            worker = self.idle.pop()
            self.ledger.begin(part)
            asked = worker.attempt.remote(part.number, cells, part.first, part.last)
            self.running[asked] = worker, part

    def _greet(self, ready: Any) -> None:
        """Raises: SuiteError for what the worker cannot load, or workers that do not survive it."""
        worker = self.loading.pop(ready)
        try:
            mistake = self._answer(ready)
        except _LostError as error:
            self.stillborn += 1
            if self.stillborn >= TRIES:
                raise SuiteError(
                    f"{self.stillborn} workers of Ray died while they loaded the suite: {error}"
                ) from None
            return
        if mistake:
            raise SuiteError(f"a worker of Ray: {mistake}; its machine must see the same files")
        self.stillborn = 0
        self.idle.append(worker)

    def _settle(self, ready: Any) -> list[WorkUnit]:
        """Enter what has come of a part; returns what is to be tried again of it."""
        worker, part = self.running.pop(ready)
        try:
            answer = self._answer(ready)
        except _LostError as error:
            return self._again(part, str(error))
        self.idle.append(worker)
        if isinstance(answer, str):
            raise SuiteError(f"a worker of Ray: {answer}")
        for outcome in answer.outcomes:
            self.ledger.enter(part, outcome)
        self.ledger.tell(answer.reasons, answer.notes)
        self.ledger.finish(part)
        return []

    def _again(self, part: WorkUnit, why: str) -> list[WorkUnit]:
        """What to try again of a part that lost its worker; where that is nothing, it is failed."""
        task = self.ledger.left(part)
        cells = tuple(cell.identity for cell in task.cells)
        key = part.number, part.first, cells
        self.lost[key] += 1
        where = f"{part.name}, examples {part.first} to {part.last - 1}"
        if self.lost[key] < TRIES:
            self.ledger.note(f"{where}: its worker died, tried again ({why})")
            return [part]
        if len(cells) > 1 and not task.linked:
            self.ledger.note(f"{where}: its worker died {TRIES} times, its eps are tried alone")
            work = part.work / len(cells)
            return [part._replace(task=task.only({cell}), work=work) for cell in cells]
        told = f"its worker died {TRIES} times, examples {part.first} to {part.last - 1}: {why}"
        self.ledger.enter(part, WorkResult(cells, reason=told))
        self.ledger.finish(part)
        return []

    def _answer(self, ready: Any) -> Any:
        """Raises: _LostError if the worker died of it; a bug of bench's as it is."""
        try:
            return self.ray.get(ready)
        except self.ray.exceptions.RayTaskError:
            raise
        except self.ray.exceptions.RayError as error:
            raise _LostError(_cause(error)) from None


class _LostError(Exception):
    """A worker died; the text says of what, as far as Ray knows."""


def _cause(error: Exception) -> str:
    """The sentence that matters of the many that Ray tells."""
    told = " ".join(str(error).split())
    detail = told.partition("Worker exit detail: ")[2] or told or type(error).__name__
    return detail.partition(". ")[0].rstrip(".")


def _connect(ray: Any, asked: Cluster) -> None:
    """Join a cluster, or start one on this machine.

    Raises: SuiteError if there is none at the address.
    """
    # What workers print comes here, so that a run is told in one place.
    settings: dict[str, Any] = {"log_to_driver": True, "logging_level": "ERROR"}
    if asked.address == LOCAL:
        settings |= {"include_dashboard": False, "num_cpus": asked.workers or os.cpu_count()}
    try:
        ray.init(asked.address, **settings)
    except Exception as error:  # a library that raises bare ones: no cluster, another Ray, no port
        raise SuiteError(
            f"--ray {asked.address}: no cluster could be joined there ({first_line(error)}); start "
            "one with ray start --head, under the same RAY_AUTH_MODE, or use --ray alone for this "
            "machine"
        ) from error


def _room(ray: Any, asked: Cluster, gpus: float) -> int:
    """Workers that the cluster has room for.

    Raises: SuiteError if there is room for none.
    """
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


def _ray() -> Any:
    """Ray, imported on first use.

    Raises: SuiteError if it is not installed.
    """
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
