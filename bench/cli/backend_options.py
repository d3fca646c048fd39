"""Options that choose the backend of a run: this process, a watched subprocess, or Ray."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bench.cli.main import FiniteRange
from bench.core.errors import SuiteError

if TYPE_CHECKING:
    from bench.execution.events import Listener
    from bench.execution.options import RunOptions
    from bench.suite.schema import Suite

OPTIONS = (
    click.option(
        "--isolate", is_flag=True,
        help="Run in a subprocess, so that a crash fails only the cell that caused it.",
    ),
    click.option(
        "--time-limit", type=float, metavar="SECONDS",
        help="Kill the subprocess if no model call starts or ends for this long.",
    ),
    click.option(
        "--memory-limit", metavar="SIZE",
        help="Kill the subprocess if it uses more memory than this, such as 4GiB.",
    ),
    click.option(
        "--ray", metavar="[ADDRESS]", is_flag=False, flag_value="local",
        help="Run on Ray: on this machine, or on the cluster at ADDRESS.",
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Number of Ray workers [as many as fit]."
    ),
    click.option(
        "--gpus-per-worker", type=FiniteRange(0), metavar="F",
        help="GPUs per Ray worker, or a fraction of one [1 if the run uses GPUs].",
    ),
)  # fmt: skip


class BackendOptions(NamedTuple):
    """The backend that the user chose."""

    isolate: bool
    time_limit: float | None
    memory_limit: str | None
    ray: str | None
    workers: int | None
    gpus_per_worker: float | None

    def run(self, suite: "Suite", folder: Path, options: "RunOptions", listen: "Listener") -> None:
        """Run a suite on the chosen backend.

        Args:
            suite: The checked suite.
            folder: The run's folder.
            options: Options of the run.
            listen: Receives progress events.

        Raises:
            SuiteError: The options contradict each other, or the backend is not available.
        """
        from bench.execution import runner
        from bench.execution.backends import subprocess
        from bench.execution.backends.limits import parse_limits

        limits = parse_limits(self.isolate, self.time_limit, self.memory_limit)
        if self.ray is None and not (self.workers is None and self.gpus_per_worker is None):
            raise SuiteError(
                "--workers and --gpus-per-worker are --ray's; add it or leave them out"
            )
        if self.ray is not None and limits is not None:
            raise SuiteError(
                "--ray and --isolate: each worker of Ray is a process of its own already, without "
                "limits; leave one of the two out"
            )
        if self.ray is not None:
            from bench.execution.backends.ray import Cluster, RayBackend

            cluster = Cluster(self.ray, self.workers, self.gpus_per_worker)
            runner.run_suite(suite, folder, options, listen, RayBackend(cluster))
        elif limits is not None:
            backend = subprocess.SubprocessBackend(limits)
            runner.run_suite(suite, folder, options, listen, backend)
        else:
            runner.run_suite(suite, folder, options, listen)


def backend_options(verb: Callable[..., int]) -> Callable[..., int]:
    """Add the backend options to a verb that runs a suite.

    Args:
        verb: Takes the parsed options as the keyword argument `place`.

    Returns:
        The verb with the options.
    """

    @functools.wraps(verb)
    def gathered(**given: Any) -> int:
        place = BackendOptions(**{name: given.pop(name) for name in BackendOptions._fields})
        return verb(place=place, **given)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return gathered
