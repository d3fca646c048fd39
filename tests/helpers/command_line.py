"""Type a command of bench in this process."""

from click.testing import CliRunner

from bench.cli import cli


def type_command(*words: str) -> tuple[int, str]:
    """The exit code of a command and what it prints; what it raises is raised."""
    done = CliRunner().invoke(cli, words, standalone_mode=False)
    if done.exception is not None:
        raise done.exception
    return int(done.return_value or 0), done.output
