"""Local optimality against AttackBench's library: an oracle where `attackbenchlib` is installed.

Neither package depends on the other; the library is installed beside bench with
`pip install --no-deps attackbenchlib`. Its file of metrics is loaded alone: the package itself
imports libraries that no metric needs.
"""

import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bench.analysis.min_norm import Distances, local_optimality

TOLERANCE = 1e-12


def load_metrics() -> ModuleType:
    """Load attackbench/metrics/distances.py."""
    package = importlib.util.find_spec("attackbench")
    if package is None or not package.submodule_search_locations:
        pytest.skip("needs attackbenchlib", allow_module_level=True)
    path = Path(package.submodule_search_locations[0]) / "metrics" / "distances.py"
    spec = importlib.util.spec_from_file_location("attackbench_distances", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


oracle = load_metrics()


def draw_searches(seed: int, n: int, searches: int, missed: float, wrong: float) -> Distances:
    """Draw distances (searches, n): some infinite (nothing found), some 0 (wrong when clean)."""
    generator = np.random.default_rng(seed)
    distances = generator.gamma(2.0, 0.3, (searches, n))
    distances[generator.random((searches, n)) < missed] = np.inf
    distances[:, generator.random(n) < wrong] = 0.0
    return distances


def their_optimality(values: Distances, best: Distances) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that some examples resist every search
        return float(oracle.eval_optimality(values, best))


@pytest.mark.parametrize("missed", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("wrong", [0.0, 0.1])
@pytest.mark.parametrize("n", [7, 100, 1000])
def test_local_optimality_is_that_of_attackbench(n: int, wrong: float, missed: float) -> None:
    for seed in range(5):
        searches = draw_searches(seed, n, 4, missed, wrong)
        best = searches.min(0)
        ours = [local_optimality(each, best) for each in (*searches, best)]
        theirs = [their_optimality(each, best) for each in (*searches, best)]
        assert ours == pytest.approx(theirs, rel=0, abs=TOLERANCE)
        assert len({round(score, 6) for score in theirs}) > 1  # else any constant would pass


def test_a_search_that_finds_nothing_scores_0_in_both() -> None:
    best = np.array([0.0, 0.5, 1.0, 2.0])
    nothing = np.array([0.0, np.inf, np.inf, np.inf])
    assert local_optimality(nothing, best) == their_optimality(nothing, best) == 0.0


def test_where_there_is_no_scale_neither_gives_a_number() -> None:
    for best in (np.full(4, np.inf), np.full(4, 2.0), np.zeros(4)):
        assert local_optimality(best, best) is None
        assert np.isnan(their_optimality(best, best))
