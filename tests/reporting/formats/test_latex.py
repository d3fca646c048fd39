"""LaTeX that compiles whatever a label holds, aligns its figures and sets bold what is bold."""

import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest

from bench.reporting.formats.latex import FORMAT, escape, render_table
from bench.reporting.formats.tables import EPS, Bold, PaperTable, Span, Symbol, SymbolText

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
    assert rows(text)[0] == r"PGD & 23.6 \\[-0.5ex]"
    assert rows(text)[1] == r" & {\scriptsize {[}20.1, 27.5{]}} \\[0.4ex]"


def test_bold_is_set_bold_and_keeps_its_place_in_the_column() -> None:
    text = render_table(frame(attack=["PGD", "FGSM"], eps=[Bold("23.6"), "37.0"]))
    assert rows(text) == [r"PGD & \bfseries 23.6 \\", r"FGSM & 37.0 \\"]


def test_a_dash_keeps_its_footnote_and_a_bound_its_sign() -> None:
    text = render_table(frame(attack=["PGD", "FGSM", "BIM"], eps=["— [1]", "<0.1", ""]))
    assert rows(text)[0] == r"PGD & {\textemdash{}} \\[-0.5ex]"
    assert rows(text)[1] == r" & {\scriptsize {[}1{]}} \\[0.4ex]"
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


def page(paper_table: PaperTable) -> str:
    return FORMAT.pages([paper_table])[f"table-{paper_table.name}.tex"]


def test_a_caption_makes_a_float_with_a_label_and_none_a_bare_tabular() -> None:
    some = frame(a=["b"])
    assert FORMAT.render(some, "").startswith(r"\begin{tabular}")
    text = page(PaperTable("t-1", "50% of [it]", some, [], [], []))
    assert r"\caption{50\% of {[}it{]}}\label{tab:t-1}" in text


def test_details_and_footnotes_stand_below_the_table_and_not_in_its_caption() -> None:
    text = page(PaperTable("t", "Short.", frame(a=["b [1]"]), ["How it was made."], ["why"], []))
    assert r"\caption{Short.}" in text
    notes = text.partition(r"\end{tabular}")[2]
    assert notes.index(r"\item {[}1{]} why") < notes.index(r"\item How it was made.")
    assert notes.index(r"\end{tablenotes}") < notes.index(r"\end{threeparttable}")
    assert r"\usepackage{threeparttable}" in FORMAT.pages([])["tables.tex"]


def test_symbols_print_as_mathematics_and_the_same_words_in_a_label_do_not() -> None:
    caption = SymbolText(
        "eps net, L2 under ", EPS, " 0.1, ", Symbol("L-inf"), ", ", Symbol("patch")
    )
    text = page(PaperTable("t", caption, frame(a=["L-inf eps"]), ["alpha = 0.2 eps"], [], []))
    expected = r"eps net, L2 under \ensuremath{\varepsilon} 0.1, \ensuremath{\ell_\infty}, patch"
    assert rf"\caption{{{expected}}}" in text
    assert rows(text) == [r"L-inf eps \\"]
    assert r"alpha = 0.2 \ensuremath{\varepsilon}" in text


def test_a_heading_spans_its_columns_which_do_not_repeat_it() -> None:
    some = frame(**{"model": ["a"], "clean": ["97.0"], "eps 0.1": ["1.0"], "eps 0.2": ["0.0"]})
    span = Span(SymbolText(EPS, " (", Symbol("L2"), ")"), 2, ["0.1", "0.2"])
    head = page(PaperTable("t", "c", some, [], [], [], [span])).partition(r"\midrule")[0]
    assert head.splitlines()[-3:] == [
        r"& & \multicolumn{2}{c}{\ensuremath{\varepsilon} (\ensuremath{\ell_2})} \\",
        r"\cmidrule(lr){3-4}",
        r"model & {clean} & {0.1} & {0.2} \\",
    ]


def test_a_table_without_columns_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one column"):
        FORMAT.render(pd.DataFrame(), "")


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
def test_the_document_compiles_with_every_hostile_label(tmp_path: Path) -> None:
    figures = ["23.6 [20.1, 27.5]", Bold("0.0 [0.0, 0.8]"), "— [1]", "", "<0.1 [0.0, 0.1]"] * 3
    some = frame(**{"a _ & %": HOSTILE, r"eps \8/255": figures, "wörds": HOSTILE[::-1]})
    some = some.map(lambda cell: cell)  # keeps Bold
    span = Span(SymbolText(EPS, " & ", Symbol("L-inf")), 1, ["8/255"])
    table = PaperTable("t", "A caption: 5% & more.", some, HOSTILE, HOSTILE[:1], HOSTILE, [span])
    for name, text in FORMAT.pages([table, table._replace(name="u")]).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = ["latexmk", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "tables.tex"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-2000:]
    log = (tmp_path / "tables.log").read_text(encoding="utf-8", errors="replace")
    assert "Missing character" not in log
    assert "Overfull" not in log
    assert (tmp_path / "tables.pdf").stat().st_size > 10_000
