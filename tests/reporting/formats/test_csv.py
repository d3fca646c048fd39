"""CSV that a spreadsheet cannot run, and that a program reads back as it was."""

import io

import pandas as pd
import pytest

from bench.reporting.formats.exports import CSV


def read(rows: pd.DataFrame) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(CSV.content(rows)))


@pytest.mark.parametrize("label", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"])  # noqa: RUF001
def test_a_label_that_is_a_formula_is_quoted(label: str) -> None:
    assert read(pd.DataFrame({"attack": [label]}))["attack"].item() == f"'{label.strip()}"


def test_labels_that_hold_such_marks_inside_are_left_alone() -> None:
    label = "PGD-40, alpha=eps/4 (a@b)"
    assert read(pd.DataFrame({"attack": [label]}))["attack"].item() == label


def test_numbers_are_unharmed_to_the_last_digit() -> None:
    rows = pd.DataFrame({"a": [-0.1 - 0.2, 1e-17], "k": pd.array([-1, None], dtype="Int64")})
    lines = CSV.content(rows).decode().splitlines()
    assert lines == ["a,k", f"{-0.1 - 0.2!r},-1", "1e-17,"]
    as_objects = rows.astype({"a": object})
    assert CSV.content(as_objects) == CSV.content(rows)


def test_what_is_missing_is_empty_and_marks_stay_in_their_cell() -> None:
    rows = pd.DataFrame({"a": ['x,"y"\r\nz', None], "b": ["", "é"]})
    assert CSV.content(rows).decode() == 'a,b\n"x,""y"" z",\n,é\n'
