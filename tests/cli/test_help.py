"""The help texts of the command line: every verb and option is described in whole sentences."""

import click
import pytest
from click.testing import CliRunner

from bench.cli import cli

VERBS = sorted(cli.commands)


def _help(*arguments: str) -> str:
    done = CliRunner().invoke(cli, [*arguments, "--help"], terminal_width=80)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_list_of_verbs_shows_each_description_to_its_end():
    listed = _help().partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == VERBS
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []
    assert [line for line in listed if len(line) > 80] == []


def test_every_option_has_a_description_that_ends_with_a_full_stop():
    texts = {
        f"{verb} {option.name}": option.help or ""
        for verb in VERBS
        for option in cli.commands[verb].params
        if isinstance(option, click.Option)
    }
    assert len(texts) > len(VERBS)
    assert {name: text for name, text in texts.items() if not text.endswith(".")} == {}


def test_the_help_of_every_verb_fits_80_columns():
    lines = [(verb, line) for verb in VERBS for line in _help(verb).splitlines()]
    assert [(verb, line) for verb, line in lines if len(line) > 80] == []


def test_commands_in_a_help_text_stand_on_lines_of_their_own():
    lines = [line.strip() for verb in VERBS for line in _help(verb).splitlines()]
    assert 'bench leaderboard FOLDER --add mine --source "my thesis" --licence MIT ...' in lines
    assert [line for line in lines if "\\b" in line or "\b" in line] == []


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        ("gpu-check", "out", "--device", "cpu", "--minutes"),
        ("attack", "digits:0", "--model", "lenet", "--magnify"),
        ("run", "quickstart", "--ray", "--gpus-per-worker"),
    ],
)
def test_a_number_that_no_range_holds_is_a_mistake(words: tuple[str, ...], number: str):
    done = CliRunner().invoke(cli, [*words, number], standalone_mode=False)
    assert isinstance(done.exception, click.UsageError)
    assert words[-1] in done.exception.format_message()
