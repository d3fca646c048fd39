"""Which search is nearer at equal queries: counts by hand, and those of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

import bench
from bench.analysis import query_pairs
from bench.analysis.queries import QueryCurve
from bench.reporting.report import query_view
from bench.reporting.run_output import write_run_output
from bench.suite.plan import Cell

BUDGETS = (20, 80)
SUITE = """
schema = 1
name = "pairs"
budgets = [20, 80]

[data]
name = "digits"
limit = 12

[[models]]
name = "lenet"
weights = "digits"

[[attacks]]
name = "hopskipjump"
norm = "l2"
eps = [1, 2]
params = { steps = 80, directions = 10 }

[[attacks]]
name = "surfree"
norm = "l2"
eps = [1]
params = { steps = 80 }

[[attacks]]
name = "surfree"
label = "short"
norm = "l2"
eps = [1]
params = { steps = 20 }
budgets = [20]

[[attacks]]
name = "rays"
norm = "linf"
eps = [0.1]
params = { steps = 80 }
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "suite.toml").write_text(SUITE, encoding="utf-8")
    results = bench.run(str(folder / "suite.toml"), folder / "run")
    write_run_output(results, folder / "run")
    return results, folder / "run"


def curve(attack: str, distances: list[list[float]], **keys: Any) -> QueryCurve:
    """A search with a distance for each budget of each example, the first one misclassified."""
    n = len(distances)
    given: dict[str, Any] = {
        "model": "net", "implementation": "bench", "norm": "l2", "eps": 1.0, "eps_text": "1",
        "goal": "untargeted", "target": "", "stop": "never", "reason": "", "passes": 1.0,
        "gradients": 0.0, "traits": {}, "caveats": (), "budget": "minimum", "budgets": BUDGETS,
    }  # fmt: skip
    records = pd.DataFrame(
        {
            "attacked": [False] + [True] * n,
            "clean_correct": [False] + [True] * n,
            "goal": "untargeted",
            "distance": np.nan,
            "distance_within": [None, *distances],
        }
    )
    cell = Cell(attack=attack, identity=attack, **{**given, **keys})
    return QueryCurve(cell, "ok", "", records, 80.0)


def test_nearer_examples_are_counted_and_equal_ones_left_out_of_the_test() -> None:
    inf = float("inf")
    first = curve("a", [[1.0, 0.5], [2.0, 0.5], [3.0, 0.5], [inf, 0.5], [inf, 0.5], [inf, 1.0]])
    second = curve(
        "b", [[2.0, 0.4], [1.0, 0.4], [3.0 + 1e-6, 0.4], [inf, 0.4], [9.0, 0.4], [9.0, 1.0]]
    )
    at = query_pairs.compare_searches([first, second]).set_index("budget")
    # Equal: the misclassified image, a difference of rounding, and where neither found anything.
    assert at.loc[20, ["n", "nearer_first", "nearer_second", "equal"]].tolist() == [7, 1, 3, 3]
    assert at.loc[80, ["nearer_first", "nearer_second", "equal"]].tolist() == [0, 5, 2]
    assert at["p_value"].tolist() == pytest.approx([0.625, 2 * 0.5**5])
    assert at["p_corrected"].tolist() == pytest.approx([0.625, 2 * 2 * 0.5**5])
    assert at["median_second"].tolist() == [3.0 + 1e-6, 0.4]


@pytest.mark.parametrize(
    "keys",
    [
        {"norm": "linf"}, {"model": "other"}, {"goal": "targeted"}, {"budget": "fixed"},
        {"budgets": (30, 90)},
    ],
)  # fmt: skip
def test_searches_of_another_kind_are_not_compared(keys: dict[str, Any]) -> None:
    far = [[1.0, 0.5], [2.0, 0.5]]
    assert query_pairs.compare_searches([curve("a", far), curve("b", far, **keys)]).empty
    assert list(query_pairs.compare_searches([])) == list(query_pairs.COLUMNS)


def test_pairs_of_a_run_are_those_counted_from_its_records(run: Any) -> None:
    results, folder = run
    frame, table = results.stored.frame, pd.read_csv(folder / "query_pairs.csv")
    assert set(table["norm"]) == {"l2"}  # rays has no rival
    pairs = table.groupby(["first", "second"])["budget"].apply(list).to_dict()
    assert pairs == {
        ("hopskipjump", "surfree"): [20, 80], ("hopskipjump", "short"): [20],
        ("surfree", "short"): [20],
    }  # fmt: skip
    for row in table.to_dict("records"):
        far = []
        for attack in (row["first"], row["second"]):
            cells = frame[(frame["attack"] == attack) & (frame["eps"] == 1) & frame["attacked"]]
            within = cells.sort_values("example")["distance_within"]
            far.append(np.array([values[BUDGETS.index(row["budget"])] for values in within]))
        nearer = [int((far[0] < far[1]).sum()), int((far[1] < far[0]).sum())]
        if row["second"] == "short" and row["first"] == "surfree":
            assert (nearer, row["equal"]) == ([0, 0], 12)  # the same attack, which is anytime
        assert [row["nearer_first"], row["nearer_second"]] == nearer
        expected = binomtest(nearer[0], sum(nearer)).pvalue if sum(nearer) else 1.0
        assert row["p_value"] == pytest.approx(expected)
        assert row["p_corrected"] >= row["p_value"]


def test_quartiles_are_distances_of_the_examples(run: Any) -> None:
    results, folder = run
    table = pd.read_csv(folder / "queries.csv")
    row = table[(table["attack"] == "rays") & (table["budget"] == 80)].iloc[0]
    cells = results.stored.frame[results.stored.frame["attack"] == "rays"]
    far = sorted(values[1] if values is not None else 0.0 for values in cells["distance_within"])
    assert len(far) == 12
    assert (row["lower_quartile_distance"], row["upper_quartile_distance"]) == (far[2], far[8])
    assert far[2] < row["median_distance"] < far[8]


def test_the_report_shows_the_counts_of_each_pair(run: Any) -> None:
    results, folder = run
    pair = results.query_pairs.iloc[0]
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text(encoding="utf-8")
        assert "the first : the second attack is nearer within a number of queries" in text
        assert f"{pair['nearer_first']} : {pair['nearer_second']} (p " in text
    (view,) = query_view.tabulate_pairs(results.query_pairs)
    assert view.columns == ["first", "second", "20", "80"]
    assert view.rows[1][3] == "—"  # the short one has no second budget
