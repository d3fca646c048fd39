"""Markdown tables as GitHub would read them, from labels that try to be more than labels."""

import re

import pandas as pd
import pytest

from bench.reporting.formats import markdown
from bench.reporting.formats.markdown import FORMAT, escape, format_code_block


def test_numbers_stand_right_and_words_left() -> None:
    frame = pd.DataFrame({"attack": ["PGD", "FGSM"], "robust": ["93.1 % [92.6, 93.6]", "— [1]"]})
    assert FORMAT.render(frame, "").splitlines() == [
        "| attack | robust |",
        "| --- | ---: |",
        "| PGD | 93.1 % [92.6, 93.6] |",
        "| FGSM | — [1] |",
    ]


def test_the_caption_is_escaped_too() -> None:
    assert FORMAT.render(pd.DataFrame({"a": ["b"]}), "x*y").startswith("**x\\*y**\n\n|")


@pytest.mark.parametrize("label", ["a|b", "a\nb", "a\\|b", "`a|b`", "a\r\n\r\n| b |"])
def test_no_label_makes_a_cell_or_a_line_of_its_own(label: str) -> None:
    lines = FORMAT.render(pd.DataFrame({"x": [label], "y": ["1"]}), "").splitlines()
    assert len(lines) == 3
    unescaped = re.sub(r"\\.", "", lines[2])
    assert unescaped.count("|") == 3


@pytest.mark.parametrize(
    ("label", "shown"),
    [
        ("<b>&", "&lt;b&gt;&amp;"),
        ("![x](y)", "![x\\](y)"),
        ("[x]: y", "[x\\]: y"),
        ("1. one", "1\\. one"),
        ("- item", "\\- item"),
        ("_a_ $b$", "\\_a\\_ \\$b\\$"),
        ("[92.6, 93.6]", "[92.6, 93.6]"),
    ],
)
def test_marks_are_words(label: str, shown: str) -> None:
    assert escape(label) == shown


def test_finished_markdown_is_not_escaped_again() -> None:
    assert escape(markdown.MarkdownText("**a**")) == "**a**"


def test_a_fence_is_longer_than_any_inside() -> None:
    assert format_code_block("echo ```` x").startswith("`````sh\n")


def test_a_table_without_columns_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        FORMAT.render(pd.DataFrame(), "")


def test_a_missing_cell_is_a_dash() -> None:
    frame = pd.DataFrame({"a": [None, "1"]}, dtype=object)
    assert "| — |" in FORMAT.render(frame, "")
