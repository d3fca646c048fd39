"""`bench init`: write a commented suite to start from."""

from pathlib import Path

import click

from bench.cli.main import cli, echo
from bench.core.errors import SuiteError


@cli.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path), default=Path("suite.toml"))
def init(file: Path) -> None:
    """Write a commented suite to start from.

    FILE is suite.toml by default; a file that exists is never overwritten. The suite runs as it is,
    and its comments show CIFAR-10, a model and an attack of your own, and thresholds of the gate.
    """
    from bench.suite import catalog

    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(catalog.read_starter().replace(" FILE ", f" {file} "))
    except FileExistsError:
        raise SuiteError(
            f"{file}: expected no file there, found one, which is not overwritten; name another"
        ) from None
    except OSError as error:
        raise SuiteError(f"{file}: could not be written: {error.strerror}") from error
    echo(f"{file}: run it by `bench run {file}`, or see what it would run by `bench plan {file}`")
