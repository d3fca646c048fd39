"""LaTeX that compiles whatever a label holds, aligns its figures and sets bold what is bold."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from bench.reporting.formats.latex import FORMAT, escape, render_table
from bench.reporting.formats.tables import Bold, PaperTable

HOSTILE = [
    r"\input{/etc/passwd}", r"a & b \\ c", "50% of $x_1^2$", "~#{}", "[x]", "*", "a --- b",
    "<>|\"'`", "naïve Ünïté", "ε = 8/255, λ → ∞", "中文 🙂", "^^5c", "a\nb\tc", "?`!`", "",
]  # fmt: skip
"""Labels that would end a row, start a command or have no letter in a font."""


def frame(**columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(columns, dtype=object)


def rows(text: str) -> list[str]:
    return text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()


def test_a_column_of_rates_is_aligned_and_its_intervals_stand_below_in_small() -> None:
    text = render_table(
        frame(attack=["PGD", "FGSM"], eps=["23.6 [20.1, 27.5]", "100.0 [99.2, 100.0]"])
    )
    assert "{@{}lS[table-format=3.1]@{}}" in text
    assert rows(text)[0] == r"PGD & 23.6 \\[-0.6ex]"
    assert rows(text)[1] == r" & {\tiny {[}20.1, 27.5{]}} \\"


def test_bold_is_set_bold_and_keeps_its_place_in_the_column() -> None:
    text = render_table(frame(attack=["PGD", "FGSM"], eps=[Bold("23.6"), "37.0"]))
    assert rows(text) == [r"PGD & \bfseries 23.6 \\", r"FGSM & 37.0 \\"]


def test_a_dash_keeps_its_footnote_and_a_bound_its_sign() -> None:
    text = render_table(frame(attack=["PGD", "FGSM", "BIM"], eps=["— [1]", "<0.1", ""]))
    assert rows(text)[0] == r"PGD & {\textemdash{}} \\[-0.6ex]"
    assert rows(text)[1] == r" & {\tiny {[}1{]}} \\"
    assert rows(text)[2:] == [r"FGSM & {$\mathord{<}0.1$} \\", r"BIM &  \\"]


def test_a_percent_sign_moves_to_the_head_of_the_column_and_is_not_lost() -> None:
    text = render_table(frame(attack=["PGD"], robust=["23.6 % [20.1, 27.5]"]))
    assert r"{robust (\%)}" in text


@pytest.mark.parametrize("label", HOSTILE)
def test_no_label_is_a_command_or_ends_a_row(label: str) -> None:
    escaped = escape(label)
    bare = re.sub(r"\\(?:[&%$#_{}]|[a-zA-Z]+|[`'^~=.\"])", "", escaped)
    assert not set(bare) & set("\\&%$#_^~\n\t")
    assert escaped.isascii()
    assert "--" not in escaped
    assert not escaped.startswith(("[", "*"))


def test_a_caption_makes_a_float_with_a_label_and_none_a_bare_tabular() -> None:
    some = frame(a=["b"])
    assert FORMAT.render(some, "").startswith(r"\begin{tabular}")
    text = render_table(some, "50% of [it]", "Details.", "t-1")
    short = r"50\% of {[}it{]}"
    assert rf"\caption[{{{short}}}]{{{short} Details.}}\label{{tab:t-1}}" in text


def test_a_table_without_columns_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        FORMAT.render(pd.DataFrame(), "")


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
def test_the_document_compiles_with_every_hostile_label(tmp_path: Path) -> None:
    figures = ["23.6 [20.1, 27.5]", Bold("0.0 [0.0, 0.8]"), "— [1]", "", "<0.1 [0.0, 0.1]"] * 3
    some = frame(**{"a _ & %": HOSTILE, r"eps \8/255": figures, "wörds": HOSTILE[::-1]})
    some = some.map(lambda cell: cell)  # keeps Bold
    table = PaperTable("t", "A caption: 5% & more.", some, HOSTILE, HOSTILE[:1], HOSTILE)
    for name, text in FORMAT.pages([table, table._replace(name="u")]).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "tables.log").read_text(encoding="utf-8", errors="replace")
    assert "Missing character" not in log
    assert "Overfull" not in log
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000
