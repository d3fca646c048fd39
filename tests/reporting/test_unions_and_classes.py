"""Threat models together and classes, from a run to its files, pages, figures and publication."""

import io
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from cheap_runs import no_figures
from reported_runs import copy_without_records, publish_page, run_with_report
from rich.console import Console

from bench.analysis import classes, results, results_from_csv, unions
from bench.evaluation import metrics
from bench.reporting import terminal
from bench.reporting.plots.class_heatmap import iter_class_figures, plot_class_heatmap
from bench.reporting.report import class_view, union_view
from bench.reporting.site import sources, writer
from bench.suite.labels import WORST_CASE

__all__ = ["no_figures"]
SUITE = """
schema = 1
name = "two"
[data]
name = "digits"
limit = 60
[[models]]
name = "lenet"
label = "LeNet <1>"
weights = "digits"
[[attacks]]
name = "fgsm"
label = "FGSM"
norm = "linf"
eps = [0, 0.05, 0.1]
[[attacks]]
name = "pgd"
label = "PGD"
norm = "l2"
eps = [0.5, 1.5]
params = { steps = 3, alpha = "eps/2" }
[[attacks]]
name = "noise"
label = "noise"
norm = "l2"
eps = [1.5]
[[unions]]
label = "small & cheap"
threats = [{ norm = "linf", eps = 0.07 }, { norm = "l2", eps = 0.5 }]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with_report(SUITE, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without its records."""
    return copy_without_records(folder, tmp_path_factory.mktemp("bare") / "run")


@pytest.fixture(scope="module")
def records(folder: Path) -> pd.DataFrame:
    return pd.concat(map(pd.read_parquet, (folder / "records").glob("*.parquet")))


# --------------------------------------------------------------------------------------- the files


def test_unions_csv_is_what_the_records_say(folder: Path, records: pd.DataFrame) -> None:
    table = pd.read_csv(folder / "unions.csv")
    assert table["label"].tolist() == ["all threat models", "small & cheap"]
    assert table["threats"].tolist() == ["linf 0.1, l2 1.5", "linf 0.07, l2 0.5"]
    attacked = records[records["eps"] > 0].assign(kept=lambda rows: rows["clean_correct"])
    attacked["kept"] &= ~attacked["fooled"]
    small = attacked[attacked["eps"].isin([0.05]) | attacked["eps"].isin([0.5])]
    for row, members in zip(table.to_dict("records"), (attacked, small), strict=True):
        k = int(members.pivot_table(values="kept", index="example", aggfunc="all")["kept"].sum())
        rate = metrics.rate(k, 60)
        assert (row["robust_correct"], row["n"], row["cells"]) == (
            k, 60, members["cell"].nunique(),
        )  # fmt: skip
        assert (row["robust_low"], row["robust_high"]) == pytest.approx((rate.low, rate.high))


def test_classes_csv_is_a_pivot_over_the_records(folder: Path, records: pd.DataFrame) -> None:
    table = pd.read_csv(folder / "classes.csv")
    keys = ["attack", "norm", "eps"]
    cells = table[table["attack"] != WORST_CASE].set_index([*keys, "class"]).sort_index()
    counted = records.assign(robust_correct=records["clean_correct"] & ~records["fooled"], n=1)
    names = ["n", "clean_correct", "fooled", "robust_correct"]
    pivot = counted.pivot_table(values=names, index=[*keys, "label"], aggfunc="sum")
    assert (cells[names].to_numpy() == pivot[names].to_numpy()).all()
    assert set(table.groupby(keys)["n"].sum()) == {60}


def test_a_run_is_read_from_its_tables_as_from_its_records(folder: Path, bare: Path) -> None:
    found, again = results.read_results(folder), results_from_csv.read_results_from_csv(bare)
    for name in ("unions", "classes"):
        first, second = (
            frame.astype(object).where(frame.notna() & (frame != ""), None)
            for frame in (getattr(found, name), getattr(again, name))
        )
        pd.testing.assert_frame_equal(first, second)


def test_the_suite_in_the_manifest_names_the_chosen_unions(folder: Path) -> None:
    (union,) = results.read_results(folder).provenance["unions"]
    assert union == {
        "label": "small & cheap",
        "threats": [
            {"norm": "linf", "eps": 0.07, "eps_text": "0.07"},
            {"norm": "l2", "eps": 0.5, "eps_text": "0.5"},
        ],
    }


# --------------------------------------------------------------------------------------- the pages


def test_the_report_shows_unions_and_classes_in_both_formats(folder: Path) -> None:
    row = pd.read_csv(folder / "unions.csv").iloc[0]
    shown = f"{row['robust_correct']}/60"
    for name in ("report.html", "report.md"):
        page = (folder / name).read_text(encoding="utf-8")
        for heading in ("Threat models together", "By class"):
            assert re.search(rf"(<h2 id=.*>|## ){heading}", page)
        assert shown in page
        broken = dict(part.split(": ") for part in row["broken_by"].split(", "))
        assert f"L-inf 0.1: {broken['linf']} (" in page
        assert f"L2 1.5: {broken['l2']} (" in page
        assert "attacked up to L-inf 0.05, L2 0.5" in page
        assert "small &amp; cheap" in page or name == "report.md"


def test_the_terminal_ends_with_a_sentence_for_each_union_and_norm(folder: Path) -> None:
    screen = Console(file=io.StringIO(), width=200)
    terminal.print_summary(results.read_results(folder), screen)
    assert isinstance(screen.file, io.StringIO)
    text = screen.file.getvalue()
    assert "LeNet <1> is robust to all threat models (L-inf 0.1, L2 1.5) on " in text
    assert len(re.findall(r"LeNet <1>, (linf|l2) [\d.]+: worst class \d", text)) == 2


def test_a_publication_has_the_unions_and_the_worst_classes(
    folder: Path, bare: Path, tmp_path: Path
) -> None:
    pages = []
    for name, run in (("a", folder), ("b", bare)):
        pages.append(publish_page(run, tmp_path / name))
        text = (tmp_path / name / "tables.md").read_text(encoding="utf-8")
        assert "Robust accuracy in percent to all threat models, untargeted" in text
        assert "Robust accuracy in percent of the worst class, L2, untargeted" in text
    assert pages[0] == pages[1]
    assert 'id="unions"' in pages[0]
    assert 'id="classes"' in pages[0]


def test_a_run_of_before_unions_and_classes_is_published_without_them(
    bare: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(bare, old, ignore=shutil.ignore_patterns("unions.csv", "classes.csv"))
    writer.publish(sources.gather([old]), tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Threat models together" not in page
    assert "By class" not in page


# --------------------------------------------------------------------------------------- the views


def make_union(**keys: Any) -> pd.DataFrame:
    row = {
        "model": "net", "dataset": "d", "label": "all threat models", "goal": "untargeted",
        "threats": "linf 8/255, l2 0.5", "largest_eps": "linf 8/255, l2 0.5", "status": "ok",
        "reason": "", "n": 10, "clean_correct": 9, "robust_correct": 4, "robust_accuracy": 0.4,
        "robust_low": 0.1682, "robust_high": 0.6873, "cells": 3, "cells_planned": 4,
        "absent": "PGD at linf 4/255: failed", "broken_by": "linf: 3, l2: 4",
        "broken_only_by": "linf: 1, l2: 2",
    }  # fmt: skip
    return pd.DataFrame([{**row, **keys}], columns=list(unions.COLUMNS))


def test_a_union_over_fewer_attacks_says_which_are_absent() -> None:
    view = union_view.tabulate_unions(make_union())
    assert view is not None
    assert view.rows[0][2:] == [
        "40.0 % [16.8, 68.7] [1]", "4/10", "3 of 4", "L-inf 8/255: 3 (1), L2 0.5: 4 (2)",
    ]  # fmt: skip
    assert view.notes == ["without PGD at linf 4/255: failed: an upper bound of the union"]


def test_a_targeted_union_says_so() -> None:
    view = union_view.tabulate_unions(make_union(goal="targeted"))
    assert view is not None
    assert view.rows[0][1] == "all threat models, targeted"


def test_a_union_without_a_number_is_a_dash_with_its_reason() -> None:
    frame = make_union(
        status="incomplete", reason="no finished attack at l2 0.5", robust_correct=pd.NA,
        robust_accuracy=float("nan"), n=pd.NA, broken_by="", broken_only_by="",
    )  # fmt: skip
    view = union_view.tabulate_unions(frame)
    assert view is not None
    assert view.rows[0][2:4] == ["— [1]", "—"]
    assert view.rows[0][5] == "L-inf 8/255, L2 0.5"
    (sentence,) = union_view.describe_unions(frame)
    assert sentence == (
        "net, all threat models (L-inf 8/255, L2 0.5): —, no finished attack at l2 0.5 "
        "(PGD at linf 4/255: failed)"
    )
    assert union_view.tabulate_unions(frame.iloc[:0]) is None


def make_classes(
    counts: dict[int, tuple[int, int]], eps: float = 0.1, idle: tuple[int, ...] = ()
) -> pd.DataFrame:
    """(robust, n) by class, under the worst case."""
    rows = []
    for index, (k, n) in counts.items():
        rate = metrics.rate(k, n)
        fooled = 0 if index in idle else n - k
        rows.append(
            {
                "model": "net",
                "dataset": "d",
                "attack": WORST_CASE,
                "norm": "linf",
                "goal": "untargeted",
                "eps": eps,
                "eps_text": f"{eps:g}",
                "class": index,
                "class_name": f"kind {index}",
                "n": n,
                "clean_correct": 0 if index in idle else n,
                "eligible": 0 if index in idle else n,
                "fooled": fooled,
                "robust_correct": k,
                "robust_accuracy": rate.value,
                "robust_low": rate.low,
                "robust_high": rate.high,
                "wrong_class": 1,
                "wrong_class_name": "kind 1" if fooled else "",
                "wrong_count": fooled,
            }
        )
    return pd.DataFrame(rows, columns=list(classes.COLUMNS))


TEXTS = {0.1: "0.1"}


def test_the_worst_class_is_shown_with_count_interval_wrong_class_best_class_and_spread() -> None:
    views = class_view.build_class_views(make_classes({0: (9, 10), 1: (5, 10), 2: (2, 10)}), TEXTS)
    assert views is not None
    assert views.worst.rows == [
        ["net", "L-inf", "untargeted", "0.1", "kind 2", "20.0 % [5.7, 51.0]", "2/10", "kind 1 (8)",
         "kind 0: 90.0 % [59.6, 98.2]", "70.0 pp"]
    ]  # fmt: skip
    assert views.details[0].columns == ["class", "name", "n", "eps 0.1"]
    assert views.details[0].rows[2] == ["2", "kind 2", "10", "20.0 % [5.7, 51.0]"]


def test_classes_that_are_alike_have_no_worst_and_an_idle_one_is_named() -> None:
    frame = make_classes({0: (0, 10), 1: (0, 10), 2: (0, 10)}, idle=(2,))
    views = class_view.build_class_views(frame, TEXTS)
    assert views is not None
    assert views.worst.rows[0][4:] == ["— [1]", "—", "—", "—", "—", "0.0 pp"]
    assert views.worst.notes == [
        "all classes alike, 0.0 %; 1 class left out, of which no example could be attacked"
    ]
    assert views.details[0].notes == ["no example could be attacked"]
    assert class_view.describe_worst_classes(frame) == []


def test_one_class_alone_has_no_section() -> None:
    assert class_view.build_class_views(make_classes({0: (3, 10)}), TEXTS) is None
    assert class_view.build_class_views(make_classes({}), TEXTS) is None


def test_of_a_thousand_classes_the_ten_lowest_are_shown() -> None:
    frame = make_classes({index: (index, 1000) for index in range(1000)})
    views = class_view.build_class_views(frame, TEXTS)
    assert views is not None
    assert [row[0] for row in views.details[0].rows] == [str(index) for index in range(10)]
    assert views.details[0].caption.endswith("the lowest 10 of 1000 classes")
    axes = plot_class_heatmap(frame).axes[0]
    assert len(axes.get_yticklabels()) == 10
    assert axes.get_ylabel() == "the lowest 10 of 1000 classes"


def test_the_heat_map_has_the_percent_of_every_class_at_every_eps() -> None:
    frame = pd.concat(
        [make_classes({0: (9, 10), 1: (10, 10)}, eps=0.0), make_classes({0: (3, 10), 1: (5, 10)})]
    )
    ((name, caption, figure),) = iter_class_figures(frame)
    assert name == "classes-net-linf"
    assert caption.startswith("Robust accuracy of net by class under the worst case, L-inf")
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["90.0", "30.0", "100.0", "50.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "kind 0 (n = 10)", "kind 1 (n = 10)",
    ]  # fmt: skip
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.1"]
    assert list(iter_class_figures(make_classes({0: (9, 10), 1: (0, 10)}, idle=(1,)))) == []


def test_the_sentence_on_the_worst_class_counts_the_classes_that_it_leaves_out() -> None:
    frame = make_classes({0: (0, 10), 1: (5, 10), 2: (8, 10)}, idle=(0,))
    (sentence,) = class_view.describe_worst_classes(frame)
    assert "worst class kind 1" in sentence
    assert sentence.endswith("1 class left out, of which no example could be attacked")
