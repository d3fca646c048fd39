"""Where a run works: in this process, in one of its own that may be lost, or on Ray's workers."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bench.core.errors import SuiteError

if TYPE_CHECKING:
    from bench.execution.events import Listener
    from bench.execution.options import RunOptions
    from bench.suite.schema import Suite

OPTIONS = (
    click.option(
        "--isolate", is_flag=True,
        help="Work in a process of its own: who crashes it fails its cell alone.",
    ),
    click.option(
        "--time-limit", type=float, metavar="SECONDS",
        help="Kill that process after so long without a call of the model begun or ended.",
    ),
    click.option(
        "--memory-limit", metavar="SIZE",
        help="Kill it when it holds more than that, such as 4GiB, PyTorch's own included.",
    ),
    click.option(
        "--ray", metavar="[ADDRESS]", is_flag=False, flag_value="local",
        help="Work on a cluster of Ray's; on this machine unless an address is given.",
    ),
    click.option(
        "--workers", type=click.IntRange(1), help="Workers of Ray [as many as there is room for]."
    ),
    click.option(
        "--gpus-per-worker", type=click.FloatRange(0), metavar="F",
        help="GPUs of each, or the share of one [1 if the run computes on one].",
    ),
)  # fmt: skip


class BackendOptions(NamedTuple):
    """What the user said about it."""

    isolate: bool
    time_limit: float | None
    memory_limit: str | None
    ray: str | None
    workers: int | None
    gpus_per_worker: float | None

    def run(self, suite: "Suite", folder: Path, options: "RunOptions", listen: "Listener") -> None:
        """Run the suite there.

        Raises: SuiteError for what cannot be.
        """
        from bench.execution import runner
        from bench.execution.backends import subprocess

        limits = subprocess.parse_limits(self.isolate, self.time_limit, self.memory_limit)
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


def placed(verb: Callable[..., int]) -> Callable[..., int]:
    """Adds the options of a verb that runs a suite, and gives it `place`."""

    @functools.wraps(verb)
    def gathered(**given: Any) -> int:
        place = BackendOptions(**{name: given.pop(name) for name in BackendOptions._fields})
        return verb(place=place, **given)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return gathered
