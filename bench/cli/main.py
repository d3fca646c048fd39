"""The group that every verb joins, and what all of them share."""

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.core.errors import RecordError, SuiteError
from bench.core.sanitize import escape_controls


class FiniteRange(click.FloatRange):
    """A number within a range. click's own range accepts "nan", which no bound excludes."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse the number, and refuse one that is not finite.

        Args:
            value: What was given.
            param: The option, for the message.
            ctx: Context of the command, likewise.

        Returns:
            The number.

        Raises:
            click.BadParameter: It is no finite number within the range.
        """
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


POSITIVE = FiniteRange(0, min_open=True)
FOLDER = click.Path(file_okay=False, path_type=Path)
DATA_DIR = click.option(
    "--data-dir", type=FOLDER, help="Folder of the data sets [$BENCH_DATA_DIR, or user cache]."
)
DEVICE = click.option(
    "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or xpu."
)


INTERRUPTED = "what was finished is kept, run again to go on"

_Verb = TypeVar("_Verb", bound=Callable[..., Any])
_VERBOSE, _JSON = "bench.verbose", "bench.json"
"""Keys of the click context under which the two options are stored."""


def _keep(name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    def kept(context: click.Context, parameter: click.Parameter, given: bool) -> bool:
        del parameter
        context.meta[name] = given
        return given

    return kept


def progress_options(verb: _Verb) -> _Verb:
    """Add --verbose and --json to a verb that reports its progress.

    Args:
        verb: The function of the verb.

    Returns:
        The verb with both options.
    """
    reasons = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_keep(_VERBOSE),
        help="Also print the reason for each decision on stderr.",
    )  # fmt: skip
    lines = click.option(
        "--json", is_flag=True, expose_value=False, callback=_keep(_JSON),
        help="Print progress on stderr as JSON, one object per line; with -v also the reasons.",
    )  # fmt: skip
    return reasons(lines(verb))


def reasons_requested() -> bool:
    """Whether the user asked for the reasons of decisions.

    Returns:
        True if -v was given.
    """
    return bool(click.get_current_context().meta.get(_VERBOSE))


def json_requested() -> bool:
    """Whether stderr is read by a program.

    Returns:
        True if --json was given.
    """
    return bool(click.get_current_context().meta.get(_JSON))


def echo(text: object, err: bool = False) -> None:
    """Print one line with its control characters escaped.

    Args:
        text: What to print.
        err: Print on stderr.
    """
    click.echo(escape_controls(str(text)), err=err)


def tell(event: str, text: str) -> None:
    """Print a sentence on stderr, as JSON where that was asked for.

    Args:
        event: Kind of the event, such as "error" or "missing".
        text: The sentence.
    """
    if json_requested():
        from bench.execution import events
        from bench.execution.events import Event

        click.echo(events.format_json_line(Event(event, text, 0.0)), err=True)
    else:
        echo(f"{event}: {text}", err=True)


def _annotate_error(command: str, sentence: str) -> None:
    """Show an error on the page of a pull request, where GitHub Actions runs the command."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from bench.workflows.gate import github_annotations

        echo(github_annotations.render_command("error", command, sentence))


class _Verbs(click.Group):
    """Prints each error of a user as one sentence and sets the exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        if "--json" in ctx.args:  # of a verb that is not parsed yet
            ctx.meta[_JSON] = True
        from bench.cli import installation  # which the help of the group does not wait for

        for sentence in installation.find_clashes():
            tell("warning", sentence)
        try:
            return super().invoke(ctx)
        except (SuiteError, RecordError) as error:
            _annotate_error(f"bench {ctx.invoked_subcommand}", str(error))
            for line in str(error).splitlines():
                tell("error" if json_requested() else "bench", line)
            ctx.exit(2)
        except KeyboardInterrupt:
            tell("interrupted", INTERRUPTED)
            ctx.exit(130)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustness-bench", prog_name="bench")
def cli() -> None:
    """Measure how robust image classifiers are to adversarial examples.

    Start with `bench run quickstart`. `bench COMMAND --help` describes a command.
    """


def main() -> None:
    """Run the command line; Ctrl-C ends it with exit code 130 and keeps finished cells."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:  # before a verb was at work
        click.echo(f"interrupted: {INTERRUPTED}", err=True)
        sys.exit(130)
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        _annotate_error(context.command_path if context else "bench", error.format_message())
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
