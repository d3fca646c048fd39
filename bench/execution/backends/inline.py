"""Execution of units one after another in this process."""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.engine import determinism
from bench.evaluation.evaluator import Evaluator
from bench.execution.backends.worker import Worker, make_request
from bench.execution.events import Listener
from bench.execution.loaded_suite import LoadedSuite
from bench.execution.options import RunOptions
from bench.execution.result_writer import ResultWriter
from bench.execution.work import Unit, WorkUnit
from bench.suite.schema import Suite


class InlineBackend:
    """Executes units in this process, without protection against crashes."""

    def __init__(self, evaluator: Evaluator | None = None) -> None:
        """Prepare a backend.

        Args:
            evaluator: Models and data that are loaded already; those of the suite if None.
        """
        self._evaluator = evaluator

    @contextmanager
    def open(
        self, suite: Suite, out: Path, options: RunOptions, listen: Listener
    ) -> Iterator[LoadedSuite]:
        """Load a suite in this process; see `Backend.open`.

        Args:
            suite: Checked suite.
            out: Folder of the run.
            options: Options of the run.
            listen: Not used.

        Yields:
            Description of the suite.
        """
        del listen
        with determinism.enforce_determinism(options.deterministic):
            self.worker = Worker(suite, out, options, evaluator=self._evaluator)
            yield self.worker.load()

    def run(self, units: Iterable[Unit], writer: ResultWriter) -> None:
        """Execute units in their order; see `Backend.run`.

        Args:
            units: Units of the suite that is open.
            writer: Stores results and reports progress.
        """
        for unit in units:
            task = writer.remaining(unit) if isinstance(unit, WorkUnit) else None
            writer.begin(unit)
            on_progress = functools.partial(writer.report_progress, unit)
            for result in self.worker.run_unit(make_request(unit, task), on_progress):
                writer.write(unit, result)
            writer.report(self.worker.collect_messages())
            writer.finish(unit)
