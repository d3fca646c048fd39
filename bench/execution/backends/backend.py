"""Interface of a backend: where the units of a run are executed."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from bench.execution.events import Listener
from bench.execution.loaded_suite import LoadedSuite
from bench.execution.options import RunOptions
from bench.execution.result_writer import ResultWriter
from bench.execution.work import Unit
from bench.suite.schema import Suite


class Backend(Protocol):
    """Executes units in one or several processes; the calling process writes the results."""

    def open(
        self, suite: Suite, out: Path, options: RunOptions, listen: Listener
    ) -> AbstractContextManager[LoadedSuite]:
        """Load a suite where its models are to run.

        Args:
            suite: Checked suite.
            out: Folder of the run.
            options: Options of the run.
            listen: Receives notes about the backend itself.

        Returns:
            Context manager that ends the processes; it yields the description of the suite.

        Raises:
            SuiteError: The user's mistakes, or a model that does not survive being loaded.
        """

    def run(self, units: Iterable[Unit], writer: ResultWriter) -> None:
        """Execute units and pass their results to a writer as they arrive.

        Args:
            units: Units of the suite that is open.
            writer: Stores results and reports progress.

        Raises:
            SuiteError: The user's mistakes that are found only now.
        """
