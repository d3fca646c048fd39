"""Reports of a made-up run: one failed cell, one skipped cell, hostile labels, one violation."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bench.analysis import classes, min_norm, unions
from bench.analysis.certified import CertifiedResults
from bench.analysis.corruptions import CorruptionResults
from bench.analysis.results import RunResults
from bench.evaluation.audit.findings import Audit
from bench.reporting.formats.numbers import format_text
from bench.reporting.plots import figures
from bench.reporting.plots.figures import AttackedExample, Plot
from bench.reporting.report import problem_view, writer
from bench.storage.reader import StoredRecords

EPS = {0.0: "0", 2 / 255: "2/255", 4 / 255: "4/255", 8 / 255: "8/255", 0.1: "0.1"}
N, CLEAN = 1000, 985
HOSTILE = "net | <script>alert(1)</script>\n# `loud`"
ATTACKS = ["FGSM", "PGD-40", "toolbox FGSM", "toolbox PGD-40"]
PLACE = {"suite": "made-up", "dataset": "digits", "norm": "linf", "device": "cpu"}
KEPT = [985, 937, 593, 120, 0]


def cell(model: str, attack: str, eps: float, kept: int) -> dict[str, Any]:
    return {
        "suite": "made-up",
        "model": model,
        "dataset": "digits",
        "attack": attack,
        "implementation": "toolbox" if "toolbox" in attack else "bench",
        "norm": "linf",
        "eps": eps,
        "goal": "untargeted",
        "status": "ok",
        "reason": None,
        "n": N,
        "clean_correct": CLEAN,
        "robust_correct": kept,
        "clean_accuracy": CLEAN / N,
        "robust_accuracy": kept / N,
        "robust_low": max(0.0, kept / N - 0.02),
        "robust_high": min(1.0, kept / N + 0.02),
        "attack_success_rate": 1 - kept / CLEAN,
        "success_low": 0.1,
        "success_high": 0.9,
        "robust_accuracy_8bit": kept / N,
        "violations": 0,
        "mean_linf": eps,
        "seconds": 2.5,
        "examples_per_second": 400.0,
        "floor_ratio": 1.2,
        "device": "cpu",
        "eps_text": EPS[eps],
        "caveats": "Gradients were zero for 3 examples." if attack == "FGSM" else "",
    }


def made_up() -> pd.DataFrame:
    rows = [
        cell(model, attack, eps, kept)
        for model in ("LeNet", HOSTILE)
        for attack in ATTACKS
        for eps, kept in zip(EPS, KEPT, strict=True)
    ]
    table = pd.DataFrame(rows)
    table.loc[4, "violations"] = 2
    for row, status, reason in ((1, "failed", "out <of> memory"), (39, "skipped", "needs L2")):
        table.loc[row, ["status", "reason"]] = [status, reason]
        table.loc[row, table.columns[10:26]] = None
    counts = ["n", "clean_correct", "robust_correct", "violations"]
    table[counts] = table[counts].astype("Int64")
    return table


def made_up_worst() -> pd.DataFrame:
    rows = [
        {
            **PLACE, "model": model, "goal": "untargeted", "eps": eps, "n": N,
            "clean_correct": CLEAN, "robust_correct": kept, "robust_accuracy": kept / N,
            "robust_low": kept / N, "robust_high": kept / N,
            "attacks": 3 if (model, eps) in (("LeNet", 2 / 255), (HOSTILE, 0.1)) else 4,
            "broken_by": "PGD-40: 12, FGSM: 3",
        }
        for model in ("LeNet", HOSTILE)
        for eps, kept in zip(EPS, KEPT, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def made_up_crosschecks() -> pd.DataFrame:
    sides = {
        f"{side}_{key}": value
        for side in ("ours", "reference")
        for key, value in (("robust_correct", 593), ("low", 0.56), ("high", 0.62))
    }
    rows = [
        {
            **PLACE, **sides, "model": "LeNet", "ours": ours, "reference": f"toolbox {ours}",
            "eps": eps, "n": N, "differ": 3 if verdict == "different" else 0,
            "differ_ids": "4 71 902" if verdict == "different" else "", "only_ours_broke": 3,
            "only_reference_broke": 0, "p_value": 0.25, "largest_pixel_difference": 1.2e-7,
            "pixels_compared": 200, "time_ratio": 0.42, "verdict": verdict,
            "cause": "another start <point>" if verdict == "different" else "",
        }
        for ours in ("FGSM", "PGD-40")
        for eps in EPS
        for verdict in ["different" if (ours, eps) == ("PGD-40", 0.1) else "identical"]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def made_up_violations() -> pd.DataFrame:
    text = "measured 0.2 | allowed <0.1"
    rows = [
        {"model": HOSTILE, "attack": "FGSM", "norm": "linf", "eps": 0.1, "example": k}
        for k in (7, 9)
    ]
    return pd.DataFrame(rows).assign(violation=text)


PROVENANCE = {
    "command": "bench run <made-up>",
    "started": "2025-03-04T05:06:07+00:00",
    "environment": {"device": "cpu", "packages": {"numpy": "2.0"}, "cuda": None},
    "seeds": [0, 1],
}


def written(
    folder: Path,
    notes: Sequence[str] = ("The model returns <probabilities>, not logits.",),
    plots: Sequence[Plot] = (),
    **other: Any,
) -> tuple[str, str]:
    manifest = {
        "suite": {"title": "LeNet & <friends>"},
        "sessions": [{"command": "bench report results/runs/made-up"}],
        "models": {},
    }
    given: dict[str, Any] = {
        "table": made_up(),
        "worst": made_up_worst(),
        "distances": pd.DataFrame(columns=list(min_norm.COLUMNS)),
        "comparisons": pd.DataFrame(),
        "seeds": pd.DataFrame(),
        "unions": pd.DataFrame(columns=list(unions.COLUMNS)),
        "classes": pd.DataFrame(columns=list(classes.COLUMNS)),
        "crosschecks": made_up_crosschecks(),
        "missing_crosschecks": [],
        "explanations": [],
        "published": pd.DataFrame(),
        "violations": made_up_violations(),
        "audit": Audit([], [], []),
        "corruptions": CorruptionResults(pd.DataFrame(), pd.DataFrame()),
        "certified": CertifiedResults(pd.DataFrame(), pd.DataFrame()),
    }
    found = RunResults(folder, manifest, [], StoredRecords(pd.DataFrame(), [], {}))
    html, markdown = writer.write_report(
        found.replace(**{**given, **other}),
        folder,
        notes=notes,
        provenance=PROVENANCE,
        plots=plots,
    )
    return html.read_text(encoding="utf-8"), markdown.read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects tags, what a browser would fetch, and the cells of every table."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.rows: list[list[str]] = []
        self._open = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value or "" for key, value in attrs if key in ("src", "href", "srcset")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self._open = tag in ("td", "small") or (self._open and tag != "th")

    def handle_endtag(self, tag: str) -> None:
        self._open = self._open and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._open and self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    return reader


@pytest.fixture(scope="module", autouse=True)
def no_figures() -> None:
    """Figures are drawn here."""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("report")
    image = np.linspace(0, 1, 64).reshape(8, 8)
    shown = [
        AttackedExample(
            "LeNet", "FGSM", "linf", 0.1, "0.1", 0, "7", "7", "2", image, image, True, 1, 1
        )
    ]
    return written(folder, plots=figures.draw_figures(made_up(), shown, folder))


def test_failed_and_skipped_cells_are_dashes_with_a_reason_and_never_robust(
    pages: tuple[str, str],
) -> None:
    html, markdown = pages
    line = next(row for row in read(html).rows if row[:2] == ["FGSM", "bench"])
    assert line[3] == "— [1]"
    assert line[4].startswith("59.3 % [")
    assert "[1] failed: out &lt;of&gt; memory" in html
    assert "- [1] failed: out &lt;of&gt; memory" in markdown
    assert "- [1] skipped: needs L2" in markdown


def test_a_worst_case_over_fewer_attacks_than_planned_says_so(pages: tuple[str, str]) -> None:
    note = "over 3 of 4 attacks, the rest failed: an upper bound of the worst case"
    assert all(note in page for page in pages)
    assert pages[1].count("[1] over") == 1  # the skipped cell of the other model was not planned


def test_what_went_wrong_comes_before_every_other_table(pages: tuple[str, str]) -> None:
    for page in pages:
        wrong = page.index("example 7: measured 0.2")
        assert page.index("out &lt;of&gt; memory") > wrong
        worst, attacks = (
            re.search(f"(<h2 id=.*>|## ){title}", page) for title in ("Worst case", "Attack by")
        )
        assert worst is not None
        assert attacks is not None
        assert wrong < worst.start() < attacks.start() < page.index("not logits")


def test_the_page_lists_its_sections(pages: tuple[str, str]) -> None:
    html, markdown = pages
    ids = dict(re.findall('<h2 id="(.*?)">(.*?)</h2>', html))
    assert re.findall('<a href="#(.*?)">(.*?)</a>', html) == list(ids.items())
    titles = re.findall("^## (.*)$", markdown, re.MULTILINE)
    assert titles == list(ids.values())
    listed = markdown[: markdown.index("## ")]
    assert all(f"[{title}](#{title.lower().replace(' ', '-')})" in listed for title in titles)


def test_attacks_with_the_same_caveat_on_a_model_share_a_line() -> None:
    caveat = "An adversarial image that the detector rejects counts as robust."
    table = made_up().assign(caveats=caveat, norm="linf")
    table.loc[table["attack"] == "FGSM", "caveats"] = f"{caveat} A step of it is one."
    view = problem_view.list_caveats(table, EPS)
    assert view is not None
    for model in ("LeNet", HOSTILE):
        lines = [line for line in view.rows if line[0] == format_text(model)]
        assert len(lines) == 2
        shared = next(line for line in lines if line[-1] == caveat)
        assert shared[1] == ", ".join(format_text(name) for name in ATTACKS if name != "FGSM")


def test_the_page_of_a_clean_run_opens_with_its_numbers(tmp_path: Path) -> None:
    table = made_up()
    table = table[table["status"] == "ok"].drop(columns=["caveats", "eps_text"])
    nothing = pd.DataFrame()
    pages = written(tmp_path, table=table, violations=nothing, crosschecks=nothing, notes=[])
    for page in pages:
        assert "Every returned image was verified, and none is a violation." in page
        assert "What went wrong" not in page
        assert "Notes and caveats" not in page
        assert "No cross-check was asked for." in page


def test_the_page_runs_no_script_and_fetches_nothing(pages: tuple[str, str]) -> None:
    html, _ = pages
    reader = read(html)
    assert "script" not in reader.tags
    assert "link" not in reader.tags
    assert reader.fetched
    assert all(source.startswith(("data:image/", "#section-")) for source in reader.fetched)
    assert not re.search(r"https?://|@import|url\(", html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_markdown_labels_stay_labels(pages: tuple[str, str]) -> None:
    _, markdown = pages
    assert "<script>" not in markdown
    assert "net \\| &lt;script&gt;alert(1)&lt;/script&gt; # \\`loud\\`" in markdown
    tables = re.findall(r"(?:^\|.*\|$\n?)+", markdown, flags=re.MULTILINE)
    for block in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block
    assert len(tables) >= 9


def test_markdown_points_to_figures_that_exist_beside_it(tmp_path: Path) -> None:
    small = made_up().query("model == 'LeNet'")
    _, markdown = written(tmp_path, table=small, plots=figures.draw_figures(small, [], tmp_path))
    paths = re.findall(r"^!\[.*\]\((.*)\)$", markdown, flags=re.MULTILINE)
    assert paths == [f"plots/{name}.png" for name in ("accuracy-lenet-linf", "success-linf",
                                                      "throughput")]  # fmt: skip
    assert all((tmp_path / path).is_file() for path in paths)


def test_crosschecks_are_counted_by_verdict_and_the_different_ones_are_open(
    pages: tuple[str, str],
) -> None:
    for page in pages:
        assert "10 comparisons of 2 pairs of attacks: 9 identical, 0 equal within noise, " in page
        assert "1 different." in page
        opened = re.findall(r"<details open><summary>(LeNet.*)</summary>", page)
        assert opened == ["LeNet: PGD-40 against toolbox PGD-40, L-inf"]
        assert "4 71 902" in page


def test_the_summary_names_suite_size_device_and_day(pages: tuple[str, str]) -> None:
    for page in pages:
        assert "Suite made-up, n = 1000, on cpu, 2025-03-04. 40 cells: 38 ok, 1 failed" in page


def test_violations_are_marked_on_the_number_they_touch(pages: tuple[str, str]) -> None:
    line = next(row for row in read(pages[0]).rows if row[:2] == ["FGSM", "bench"])
    assert line[6].endswith("[2]")
    assert "[2] 2 violations, each counted as a failed attack" in pages[0]


def test_targeted_attacks_are_shown_by_their_success(tmp_path: Path) -> None:
    html, _ = written(tmp_path, table=made_up().assign(goal="targeted"))
    assert "LeNet, L-inf, targeted: success rate; clean accuracy 98.5 % (985/1000)" in html
    assert "5.0 %[" not in html


def test_a_rate_without_a_denominator_is_a_dash(tmp_path: Path) -> None:
    table = made_up().assign(goal="targeted")
    table["attack_success_rate"] = float("nan")
    html, _ = written(tmp_path, table=table)
    line = next(row for row in read(html).rows if row[:2] == ["PGD-40", "bench"])
    assert line[2:] == ["—"] * 5


def test_a_run_in_which_everything_failed_still_has_a_report(tmp_path: Path) -> None:
    table = made_up()
    table["status"] = "failed"
    table[["n", "clean_correct", "robust_correct"]] = pd.NA
    html, markdown = written(tmp_path, table=table, worst=pd.DataFrame())
    assert "40 cells: 40 failed." in html
    assert "No attack produced a number." in markdown
    assert "0.0 %" not in html.split("All cells")[0].split("Worst case")[1]


def test_the_same_input_gives_the_same_bytes_and_leaves_no_partial_file(tmp_path: Path) -> None:
    assert written(tmp_path) == written(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
