"""The group that every verb joins, and what all of them share."""

import sys
from pathlib import Path
from typing import Any

import click

from bench.errors import RecordError, SuiteError
from bench.printable import spelled

FOLDER = click.Path(file_okay=False, path_type=Path)
DATA_DIR = click.option(
    "--data-dir", type=FOLDER, help="Where data lie [$BENCH_DATA_DIR, user cache]."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda[:N].")


class _Verbs(click.Group):
    """Turns the errors of users into one sentence each and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (SuiteError, RecordError) as error:
            for line in str(error).splitlines():
                click.echo(f"bench: {spelled(line)}", err=True)
            ctx.exit(2)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="robustness-bench", prog_name="bench")
def cli() -> None:
    """Measure how robust image classifiers really are."""


def main() -> None:
    """Run the command line; Ctrl-C ends it with 130 and keeps what was finished."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted: what was finished is kept, run again to go on", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
