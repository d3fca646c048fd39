"""What is printed is text: no label, reason or path is taken for markup, an emoji or an order."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.cli.console import console
from bench.cli.progress import Bar
from bench.execution.events import Event

LABELS = ("net[/x]", "[a](https://b.c)", "[bold]:x:[/bold]")
SUITE = """
schema = 1
name = "printed"
title = "[/title]"
[data]
name = "digits"
limit = 4
[[models]]
name = "softmax"
weights = "random"
label = "net[/x]"
[[attacks]]
name = "fgsm"
label = "[a](https://b.c)"
norm = "linf"
eps = [0.5]
[[attacks]]
name = "noise.py:ATTACK"
label = "[bold]:x:[/bold]"
norm = "linf"
eps = [0.5]
"""
ATTACK = """
import dataclasses
from bench.attacks.noise import ATTACK as noise

def run(model, x, y, threat, params, rng):
    raise RuntimeError("[/red] \\x1b[31m")

ATTACK = dataclasses.replace(noise, run=run, rule=None)
"""


def printed(*words: object, wide: str = "300") -> str:
    done = CliRunner(env={"COLUMNS": wide}).invoke(
        cli, [str(word) for word in words], standalone_mode=False
    )
    if done.exception:
        raise done.exception
    return done.output


def test_every_verb_prints_labels_and_reasons_as_they_are(tmp_path: Path) -> None:
    suite, out = tmp_path / "s.toml", tmp_path / "[out]"
    suite.write_text(SUITE, encoding="utf-8")
    (tmp_path / "noise.py").write_text(ATTACK, encoding="utf-8")
    base = tmp_path / "[b]" / "base.json"
    output = {
        "run": printed("run", suite, "--out", out, "--device", "cpu"),
        "plan": printed("plan", suite),
        "compare": printed("compare", out, out),
        "baseline": printed("baseline", out, "-o", base),
        "check": printed("check", out, "--baseline", base),
    }
    for verb in ("run", "plan"):
        for label in LABELS:
            assert label in output[verb], verb
    assert "RuntimeError: [/red] \\x1b[31m (noise.py:6)" in output["run"]
    assert "[/title]" in output["plan"]
    for verb in ("compare", "check"):
        assert "net[/x]" in output[verb]
        assert "[a](https://b.c)" in output[verb]
    assert str(base) in output["baseline"]


def test_the_bar_takes_events_for_text(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(reasons=True) as bar:
        for what in ("start", "note", "failed", "why", "begin", "done"):
            bar.show_event(Event(what, f"{what} [/x] :x: \x1b[31m", 1.0))
        described = bar.bar.columns[0](bar.bar.tasks[0])
    assert str(described) == "begin [/x] :x: \\x1b[31m"
    output = capsys.readouterr().err
    for what in ("note", "failed", "why"):
        assert f"{what}: {what} [/x] :x: \\x1b[31m" in output


def test_a_table_and_a_title_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    shown = Table(title="[/title]")
    shown.add_column("[b]head[/b]")
    shown.add_row("[/row] :x: \x1b[2J")
    console(width=80).print(shown, "[/also]", style="bold")
    output = capsys.readouterr().out
    for text in ("[/title]", "[b]head[/b]", "[/row] :x: \\x1b[2J", "[/also]"):
        assert text in output
