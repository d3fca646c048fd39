"""The group that every verb joins, and what all of them share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from bench.core.errors import RecordError, SuiteError
from bench.core.sanitize import escape_controls

FOLDER = click.Path(file_okay=False, path_type=Path)
DATA_DIR = click.option(
    "--data-dir", type=FOLDER, help="Where data lie [$BENCH_DATA_DIR, user cache]."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")


INTERRUPTED = "what was finished is kept, run again to go on"

_Verb = TypeVar("_Verb", bound=Callable[..., Any])
_VERBOSE, _JSON = "bench.verbose", "bench.json"
"""Under which names the context of a command line keeps how it wants to be told."""


def _keep(name: str) -> Callable[[click.Context, click.Parameter, bool], bool]:
    def kept(context: click.Context, parameter: click.Parameter, given: bool) -> bool:
        del parameter
        context.meta[name] = given
        return given

    return kept


def narrated(verb: _Verb) -> _Verb:
    """Adds the options of a verb that says what it does while it works."""
    reasons = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_keep(_VERBOSE),
        help="Also say on stderr why each decision was made.",
    )  # fmt: skip
    lines = click.option(
        "--json", is_flag=True, expose_value=False, callback=_keep(_JSON),
        help="Say on stderr what happens, with -v also why, as JSON, an object a line.",
    )  # fmt: skip
    return reasons(lines(verb))


def verbose() -> bool:
    """Whether the user asked for the reasons, too."""
    return bool(click.get_current_context().meta.get(_VERBOSE))


def machine() -> bool:
    """Whether a machine listens on stderr."""
    return bool(click.get_current_context().meta.get(_JSON))


def echo(text: object, err: bool = False) -> None:
    """One line on stdout, or on stderr: a text as it is, with what a terminal obeys spelled out."""
    click.echo(escape_controls(str(text)), err=err)


def tell(event: str, text: str) -> None:
    """One sentence on stderr, for people or for a machine."""
    if machine():
        from bench.execution import events
        from bench.execution.events import Event

        click.echo(events.format_json_line(Event(event, text, 0.0)), err=True)
    else:
        echo(f"{event}: {text}", err=True)


class _Verbs(click.Group):
    """Turns the errors of users into one sentence each and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SuiteError, RecordError) as error:
            for line in str(error).splitlines():
                tell("error" if machine() else "bench", line)
            ctx.exit(2)
        except KeyboardInterrupt:
            tell("interrupted", INTERRUPTED)
            ctx.exit(130)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustness-bench", prog_name="bench")
def cli() -> None:
    """Measure how robust image classifiers really are."""


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 and keeps what was finished."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:  # before a verb was at work
        click.echo(f"interrupted: {INTERRUPTED}", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
