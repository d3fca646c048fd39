"""Tables in a terminal and in a file: no name and no number is cut."""

import io
import itertools
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from bench.cli.console import Plain, console
from bench.reporting.formats.terminal_table import Column, print_table

EPS = [f"{i}/255" for i in range(1, 13)]
LONG = "".join(f"{i:02d}-" for i in range(33)) + "x"  # 100 characters without a space
LABELS = ("PGD", LONG, "two words " * 9 + "at the end")


def drawn(columns: list[Column], rows: list[list[str]], width: int) -> list[str]:
    """The lines of a table in a terminal of a width."""
    screen = Plain(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(screen, columns, rows)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


def blocks(lines: list[str]) -> list[list[list[str]]]:
    """The rows of cells of each block, heading first, with folded cells joined."""
    found: list[list[list[str]]] = []
    for line in lines:
        if line.startswith("┏"):
            found.append([])
        elif line.startswith(("┃", "│")):
            found[-1].append([cell.strip() for cell in re.split("[┃│]", line)[1:-1]])
    return found


@pytest.mark.parametrize("width", [80, 60, 132])
def test_twelve_eps_and_a_label_of_a_hundred_characters_fit_in_blocks(width: int) -> None:
    columns = [Column("eps", "name"), *(Column(eps, "number") for eps in EPS)]
    rows = [[name, *(f"{10 * i + j}.{j} %" for j in range(12))] for i, name in enumerate(LABELS)]
    lines = drawn(columns, rows, width)
    assert max(map(cell_len, lines)) <= width
    split = blocks(lines)
    headings = [heading for block in split for heading in block[0][1:]]
    assert headings == EPS
    for block in split:
        named = "".join(row[0] for row in block[1:])
        for label in LABELS:
            assert label.replace(" ", "") in named.replace(" ", "")
    numbers = [cell for block in split for row in block[1:] for cell in row[1:] if cell]
    assert sorted(numbers) == sorted(cell for row in rows for cell in row[1:])


def test_a_wide_terminal_gets_one_block_without_folds() -> None:
    columns = [Column("eps", "name"), *(Column(eps, "number") for eps in EPS)]
    rows = [[LONG, *["96.4 %"] * 12], ["PGD", *["0.0 %"] * 12]]
    assert blocks(drawn(columns, rows, 260)) == [[["eps", *EPS], *rows]]


def test_prose_is_wrapped_between_words_beside_whole_names() -> None:
    columns = [Column("model", "name"), Column("why", "text"), Column("p", "number")]
    why = "a reason that is a good deal longer than the terminal is wide, so that it has lines"
    lines = drawn(columns, [["LeNet", why, "0.001"]], 50)
    cells = list(itertools.chain(*blocks(lines)))
    assert " ".join(row[1] for row in cells[1:]) == why
    assert [cells[1][0], cells[1][2]] == ["LeNet", "0.001"]


def test_labels_are_text_and_control_characters_are_escaped() -> None:
    lines = drawn([Column("[b]a[/b]", "name")], [["[/x] :x: \x1b[2J"]], 80)
    assert "[b]a[/b]" in lines[1]
    assert "[/x] :x: \\x1b[2J" in lines[3]


def test_a_table_without_rows_is_its_heading() -> None:
    assert blocks(drawn([Column("model", "name"), Column("p", "number")], [], 80)) == [
        [["model", "p"]]
    ]


def test_what_is_no_terminal_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    screen = console()
    assert not screen.is_terminal
    text = io.StringIO()
    screen.file = text
    print_table(screen, [Column("eps", "name")], [[LONG + LONG]])
    screen.print("word " * 99)
    assert f"│ {LONG}{LONG} │" in text.getvalue()
    assert text.getvalue().splitlines()[-1].rstrip() == ("word " * 99).rstrip()


def test_any_console_can_print_a_table() -> None:
    screen = Console(file=io.StringIO(), width=40)
    print_table(screen, [Column("a", "name"), Column("b", "word")], [["x", "y"]], bold=[0])
    assert isinstance(screen.file, io.StringIO)
    assert "│ x │ y │" in screen.file.getvalue()


def test_prose_is_wrapped_in_a_file_so_that_not_every_line_is_as_wide_as_the_longest() -> None:
    places = "; ".join(f"net {i}, pgd, eps 0.{i}" for i in range(200))
    columns = [Column("verdict", "word"), Column("where", "text"), Column("what changed", "text")]
    lines = drawn(columns, [["passed", places, "nothing"], ["lost", "net 1", "two"]], 100_000)
    assert max(map(cell_len, lines)) < 300
    rows = blocks(lines)[0][1:-1]
    assert " ".join(row[1] for row in rows) == places
