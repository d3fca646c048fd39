"""`--track`: a finished run is also told to TensorBoard, MLflow or another tracker."""

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


def tracked(verb: _Verb) -> _Verb:
    """Adds the option to a verb that ends with a report; a name that is none ends it at once."""
    return click.option(
        "--track", multiple=True, metavar="NAME:WHERE", expose_value=False, callback=_parsed,
        help="Also tell a tracker, such as tensorboard:DIR or mlflow:URI; repeatable.",
    )(verb)  # fmt: skip


def _parsed(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> None:
    del parameter
    context.meta[_WANTED] = [trackers.parse_target(text) for text in given]


def wanted() -> list[trackers.TrackerTarget]:
    """The trackers that the user named."""
    return list(click.get_current_context().meta.get(_WANTED, ()))


def tell(found: "RunResults", folder: Path) -> None:
    """Tell each of them of the run.

    Raises: SuiteError if one fails.
    """
    for each in wanted():
        echo(f"tracked: {trackers.log_run(each, found, folder)}")
