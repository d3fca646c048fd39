"""What is printed is text: no label, reason or path is taken for markup, an emoji or an order."""

import re
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from bench.cli import cli
from bench.cli.console import console
from bench.cli.progress import Bar
from bench.execution.events import Event
from bench.reporting.formats.numbers import format_percent

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
        "baseline": printed("baseline", out, "-o", base, "--partial"),
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


EPS = [f"{i}/255" for i in range(1, 13)]
LONG = "".join(f"{i:02d}-" for i in range(33)) + "x"  # 100 characters
WIDE = f"""
schema = 1
name = "wide"
data = {{ name = "digits", limit = 4 }}
models = [{{ name = "softmax", weights = "random", label = "m{LONG}" }}]

[[attacks]]
name = "fgsm"
label = "a{LONG}"
norm = "linf"
eps = {EPS}

[[attacks]]
name = "broken.py:ATTACK"
norm = "linf"
eps = {EPS[:1]}

[[attacks]]
name = "noise"
norm = "linf"
eps = {EPS[-1:]}
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at twelve eps, under labels of a hundred characters, with a crash at one eps."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "s.toml").write_text(WIDE, encoding="utf-8")
    (folder / "broken.py").write_text(ATTACK, encoding="utf-8")
    printed("run", folder / "s.toml", "--out", folder / "out", "--device", "cpu")
    return folder


def on_a_terminal(*words: object, columns: int = 80) -> list[str]:
    """What a verb prints on a terminal of so many columns, without styles."""
    done = CliRunner(env={"COLUMNS": str(columns), "FORCE_COLOR": "1"}).invoke(
        cli, [str(word) for word in words]
    )
    assert done.exit_code in (0, 1, 3), done.output
    return re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).splitlines()


@pytest.mark.parametrize("verb", ["plan", "report", "compare", "check"])
def test_no_table_is_wider_than_a_terminal_or_cuts_a_name_or_a_number(
    wide: Path, verb: str
) -> None:
    out = wide / "out"
    if verb == "check":
        printed("baseline", out, "-o", wide / "base.json", "--partial")
    arguments = {
        "plan": [wide / "s.toml"],
        "report": [out],
        "compare": [out, out],
        "check": [out, "--baseline", wide / "base.json"],
    }[verb]
    lines = on_a_terminal(verb, *arguments)
    table = [line for line in lines if line[:1] in "┏┃┡│└"]
    assert table
    assert max(map(len, table)) <= 80
    assert "…" not in "\n".join(table)
    rows = list(filter(None, map(_cells, table)))
    columns = ["".join(row[i] for row in rows if len(row) > i) for i in range(4)]
    assert any(f"a{LONG}" in column.replace(" ", "") for column in columns)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split("[┃│]", line)[1:-1]]


def test_a_dash_is_a_failed_cell_whose_reason_stands_below_once(wide: Path) -> None:
    output = printed("report", wide / "out")
    table = output[: output.index("└")]
    rows = {row[0]: row[1:] for row in map(_cells, table.splitlines()) if row}
    assert rows["broken.py:ATTACK"] == ["—" if i == 0 else "" for i in range(12)]
    assert rows["noise"][:11] == [""] * 11
    assert rows["noise"][11].endswith("%")
    said = "— broken.py:ATTACK at eps 1/255 failed: RuntimeError"
    assert output.count(said) == 1


def test_the_title_of_a_table_states_the_clean_accuracy(wide: Path) -> None:
    table = pd.read_csv(wide / "out" / "table.csv")
    share = table["clean_accuracy"].dropna().iloc[0]
    title = printed("report", wide / "out").splitlines()[0]
    assert f"n = 4, clean accuracy {format_percent(share)}, 95 %" in title


def test_a_plan_has_a_row_per_attack_with_its_eps_as_a_range(wide: Path) -> None:
    rows = [_cells(line) for line in printed("plan", wide / "s.toml").splitlines() if "│" in line]
    assert len(rows) == 3
    assert rows[0][2] == "12 from 1/255 to 12/255"
    assert rows[0][3:5] == ["1", "1"]  # one gradient serves every eps of fgsm
