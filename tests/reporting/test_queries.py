"""Results within a number of queries, from a run to its files, figures and the published page."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cheap_runs import no_figures
from matplotlib.collections import PolyCollection
from query_suite import SUITE
from reported_runs import copy_without_records, publish_page, run_with_report

from bench.analysis import results
from bench.evaluation import metrics
from bench.reporting.plots.query_curves import iter_query_figures
from bench.reporting.site import svg_chart

__all__ = ["no_figures"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_with_report(SUITE, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def bare(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run without its records."""
    return copy_without_records(folder, tmp_path_factory.mktemp("bare") / "run")


@pytest.fixture(scope="module")
def robust(folder: Path) -> dict[int, int]:
    """Budget -> examples that are robust within it, counted from the records."""
    frame = pd.concat(map(pd.read_parquet, (folder / "records").glob("*.parquet")))
    own = frame[frame["attack"] == "Square"]
    fell = own["queries"].where(own["fooled"], np.inf)
    return {q: int((own["clean_correct"] & ~(fell <= q)).sum()) for q in (20, 60, 150)}


def test_a_publication_states_the_counts_of_the_records_with_their_intervals(
    folder: Path, robust: dict[int, int], tmp_path: Path
) -> None:
    assert robust[20] > robust[60] > robust[150]
    page = publish_page(folder, tmp_path)
    section = page.partition('<section id="queries">')[2].partition("</section>")[0]
    assert "LeNet, L-inf, eps 0.2, targeted next: within a number of queries" in section
    for queries, k in robust.items():
        rate = metrics.rate(k, 40)
        text = f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        row = re.search(rf"<tr>\s*<td[^>]*>Square</td>\s*<td[^>]*>{queries}</td>.*?</tr>", section,
                        re.DOTALL)  # fmt: skip
        assert row is not None
        assert text in re.sub("<[^>]+>", "", row[0])


def test_a_chart_has_a_point_at_every_budget_on_a_logarithmic_axis(
    folder: Path, robust: dict[int, int]
) -> None:
    (chart,) = svg_chart.build_query_charts(results.read_results(folder).queries)
    assert chart.title == "LeNet, L-inf, eps 0.2, n = 40"
    assert chart.axis == "queries (logarithmic)"
    assert chart.points == ["20 queries", "60 queries", "150 queries"]
    first, middle, last = chart.places
    share = np.log(60 / 20) / np.log(150 / 20)
    assert middle == pytest.approx(first + share * (last - first), abs=0.1)
    (line,) = chart.lines
    counts = [re.search(r"\((\d+)/40\)", value) for value in line.values]
    assert [int(match[1]) for match in counts if match] == list(robust.values())


def test_a_run_without_its_records_has_the_same_page(
    folder: Path, bare: Path, tmp_path: Path
) -> None:
    assert publish_page(folder, tmp_path / "a") == publish_page(bare, tmp_path / "b")


def test_a_run_of_before_queries_is_published_without_them(bare: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(bare, old, ignore=shutil.ignore_patterns("queries.csv"))
    assert 'id="queries"' not in publish_page(old, tmp_path / "out")


def test_a_single_budget_is_no_curve(folder: Path) -> None:
    frame = results.read_results(folder).queries
    assert svg_chart.build_query_charts(frame[frame["budget"] == 60]) == []


def test_the_band_of_a_figure_is_the_interval_of_the_curve_at_every_query(
    folder: Path, robust: dict[int, int]
) -> None:
    found = results.read_results(folder)
    (figure,) = [figure for _, _, figure in iter_query_figures(found.query_curves, found.queries)]
    (band,) = [each for each in figure.axes[0].collections if isinstance(each, PolyCollection)]
    outline = band.get_paths()[0].vertices
    for k in robust.values():
        rate = metrics.rate(k, 40)
        for bound in (rate.low, rate.high):
            assert np.isclose(outline[:, 1], 100 * bound).any()
