"""The option --track: log a finished run to TensorBoard, MLflow or another tracker."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bench.cli.main import echo
from bench.reporting import trackers

if TYPE_CHECKING:
    from bench.analysis.results import RunResults

_Verb = TypeVar("_Verb", bound=Callable[..., Any])
_WANTED = "bench.track"


def tracker_option(verb: _Verb) -> _Verb:
    """Add --track to a verb that writes a report.

    Args:
        verb: The function of the verb.

    Returns:
        The verb with the option, which is checked before the verb starts.
    """
    return click.option(
        "--track", multiple=True, metavar="NAME:WHERE", expose_value=False, callback=_parsed,
        help="Also log to a tracker: tensorboard:DIR or mlflow:URI; repeatable.",
    )(verb)  # fmt: skip


def _parsed(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> None:
    del parameter
    context.meta[_WANTED] = [trackers.parse_target(text) for text in given]


def requested_trackers() -> list[trackers.TrackerTarget]:
    """List the trackers that the user named.

    Returns:
        One entry per --track.
    """
    return list(click.get_current_context().meta.get(_WANTED, ()))


def log_to_trackers(found: "RunResults", folder: Path) -> None:
    """Log a run to every tracker that the user named.

    Args:
        found: The results of the run.
        folder: The run's folder.

    Raises:
        SuiteError: A tracker fails.
    """
    for each in requested_trackers():
        echo(f"tracked: {trackers.log_run(each, found, folder)}")
