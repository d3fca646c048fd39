"""Score minimum-norm searches by the distances that they found.

d_i is the distance of the example that a search found for example i: 0 if the model misclassifies
it without attack, infinite if nothing was found. Untargeted searches are scored over all n
examples, targeted ones over those that could be attacked. A search that failed or is not finished
has its reason and no numbers.
  security curve      rho(eps) = share of examples with d_i > eps: a step function
  A(a)                = its integral from 0 to eps_max = mean over i of min(d_i(a), eps_max)
  local optimality    = 1 - (A(a) - A*) / (rho(0) eps_max - A*), A* from the least d_i that any
                        search of the run found, eps_max the largest finite one of these
The best search at every eps has optimality 1, one that never succeeds has 0.
Source: Cinà et al. 2025 (AttackBench), https://arxiv.org/abs/2404.19460
Equal to `eval_optimality` of its library, attackbenchlib 2.0.2, to rounding. Its first code
interpolated the steps linearly, so that finding nothing scored 0.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binom

from bench.evaluation import metrics
from bench.storage.reader import StoredRecords
from bench.suite.plan import Cell

Distances = npt.NDArray[np.float64]
"""d_i of each scored example; infinite if nothing was found."""
COLUMNS = (
    "model", "attack", "implementation", "norm", "goal", "target", "status", "reason", "n",
    "attacked", "found", "median_distance", "median_low", "median_high", "mean_clipped_distance",
    "largest_eps", "local_optimality", "forwards_per_example", "backwards_per_example",
)  # fmt: skip
_GROUP = ("model", "norm", "goal", "target")


class Search(NamedTuple):
    """The search of one attack on one model, for all eps."""

    model: str
    attack: str
    implementation: str
    norm: str
    goal: str
    target: str
    status: str
    """Status of its cells: "ok", or why it is not scored."""
    reason: str
    distances: Distances
    """Empty unless the status is "ok"."""
    attacked: int = 0
    forwards: float = 0.0
    """Forward passes per attacked example."""
    backwards: float = 0.0
    """Backward passes per attacked example."""

    @property
    def rivals(self) -> tuple[str, ...]:
        """What searches that are ranked against each other have in common."""
        return tuple(getattr(self, name) for name in _GROUP)


class MedianDistance(NamedTuple):
    """A median with its 95 % interval."""

    value: float
    low: float
    high: float


class SecurityCurve(NamedTuple):
    """From eps[k] up to eps[k + 1] the share of robust examples is rho[k]."""

    eps: Distances
    """Ascending, from 0 to the largest distance found."""
    rho: Distances


def collect_searches(
    plan: Sequence[Cell], table: pd.DataFrame, stored: StoredRecords
) -> list[Search]:
    """Collect the minimum-norm searches of a run.

    Args:
        plan: The cells of the suite.
        table: That of `tables.cell_table`.
        stored: Records of the run.

    Returns:
        One search per model, attack, norm, goal and target, in the order of the plan.
    """
    status = table.drop_duplicates("cell").set_index("cell")[["status", "reason"]]
    places = stored.row_positions()
    groups: dict[tuple[str, ...], list[Cell]] = {}
    for cell in plan:
        if cell.budget == "minimum" and cell.eps > 0:
            key = (cell.model, cell.attack, cell.norm, cell.goal, cell.target)
            groups.setdefault(key, []).append(cell)
    return [_search(cells, status, stored, places) for cells in groups.values()]


def _search(
    cells: Sequence[Cell], status: pd.DataFrame, stored: StoredRecords, places: Mapping[Any, Any]
) -> Search:
    """Combine the cells of one search; each of them has all its distances."""
    statuses = [status.loc[cell.identity] for cell in cells]
    bad = next((each for each in statuses if each["status"] != "ok"), None)
    first = cells[0]
    search = Search(
        first.model, first.attack, first.implementation, first.norm, first.goal, first.target,
        "ok" if bad is None else str(bad["status"]), "" if bad is None else str(bad["reason"]),
        np.empty(0),
    )  # fmt: skip
    if bad is not None:
        return search
    records = stored.frame.iloc[places[first.identity]]
    far = compute_distances(records)
    if np.isnan(far).any():
        reason = "its records were made before distances were kept; run it again with --fresh"
        return search._replace(status="missing", reason=reason)
    attacked = int(records["attacked"].sum())
    passes = [
        stored.frame.iloc[places[identity]][["forwards", "backwards"]].sum()
        for identity in dict.fromkeys(cell.identity for cell in cells)
    ]
    forwards, backwards = (
        float(sum(each[way] for each in passes)) / max(attacked, 1)
        for way in ("forwards", "backwards")
    )
    return search._replace(distances=far, attacked=attacked, forwards=forwards, backwards=backwards)


def compute_distances(records: pd.DataFrame) -> Distances:
    """Compute d_i of each scored example.

    Args:
        records: Those of one cell, in the order of the examples.

    Returns:
        Distances (scored examples,).
    """
    far = records["distance"].to_numpy(dtype=np.float64)
    wrong = ~records["clean_correct"].to_numpy(dtype=bool)
    if (records["goal"] == "untargeted").all():
        return np.where(wrong, 0.0, far)
    return far[metrics.eligible_examples(records).to_numpy(dtype=bool)]


# ----------------------------------------------------------------------------------------- scores


def median_distance(values: Distances) -> MedianDistance:
    """Compute the median and a distribution-free 95 % interval between two order statistics.

    The number of values below the true median is binomial(n, 1/2), so x_(l) and x_(n + 1 - l)
    enclose it with a probability of at least 95 % for the largest l with P(B < l) <= 0.025; with
    fewer than six values there is none, and the interval is all distances.
    Source: David and Nagaraja 2003, Order Statistics, section 7.1

    Args:
        values: Distances (n,).

    Returns:
        The median and its interval.

    Raises:
        ValueError: There are no values.
    """
    if not len(values):
        raise ValueError("expected at least one distance, got none")
    ordered, n = np.sort(values), len(values)
    place = int(binom.ppf(0.025, n, 0.5))
    low, high = (ordered[place - 1], ordered[n - place]) if place else (0.0, np.inf)
    middle = ordered[(n - 1) // 2] / 2 + ordered[n // 2] / 2
    return MedianDistance(float(middle), float(low), float(high))


def quantile_distance(values: Distances, share: float) -> float:
    """Compute a quantile that is one of the distances, as an interpolated one may not be finite.

    Source: Hyndman and Fan 1996, definition 1, https://doi.org/10.2307/2684934

    Args:
        values: Distances (n,), n > 0.
        share: Share of the examples that are at most as far, in (0, 1].

    Returns:
        The smallest distance that at least this share does not exceed.
    """
    return float(np.quantile(values, share, method="inverted_cdf"))


def security_curve(values: Distances) -> SecurityCurve:
    """Compute the share of robust examples as a function of eps.

    Source: Cinà et al. 2025, rho(eps); see the module.

    Args:
        values: Distances (n,).

    Returns:
        A step function; it ends at the largest finite distance.
    """
    eps = np.unique(np.append(values[np.isfinite(values)], 0.0))
    beyond = len(values) - np.searchsorted(np.sort(values), eps, side="right")
    return SecurityCurve(eps, beyond / len(values))


def area_under_curve(values: Distances, most: float) -> float:
    """Integrate the security curve from 0 to `most`, exactly for its steps.

    Source: Cinà et al. 2025, A(a); see the module.

    Args:
        values: Distances (n,).
        most: Upper end of the integral, eps_max.

    Returns:
        The area, in units of distance.
    """
    return float(np.minimum(values, most).mean())


def local_optimality(values: Distances, best: Distances) -> float | None:
    """Compare a search with the best distance of each example.

    Source: Cinà et al. 2025, local optimality; see the module.

    Args:
        values: Distances (n,) of the search.
        best: Least distances (n,) that any search found.

    Returns:
        1 for the best search at every eps, 0 for one that found nothing. None if no search found
        anything, or all distances found are equal: then there is no scale.
    """
    most = largest_distance(best)
    if most is None:
        return None
    least, whole = area_under_curve(best, most), float((best > 0).mean()) * most
    return 1 - (area_under_curve(values, most) - least) / (whole - least) if whole > least else None


def largest_distance(best: Distances) -> float | None:
    """Find eps_max, the largest finite distance among the best of all searches.

    Args:
        best: Least distances (n,) that any search found.

    Returns:
        The distance; None if no search found any above 0.
    """
    positive = best[np.isfinite(best) & (best > 0)]
    return float(positive.max()) if len(positive) else None


def search_table(searches: Iterable[Search]) -> pd.DataFrame:
    """Score searches.

    Args:
        searches: Searches; those with the same `rivals` are compared with each other.

    Returns:
        One row per search, columns COLUMNS.
    """
    searches = list(searches)
    best: dict[tuple[str, ...], Distances] = {}
    for search in searches:
        if search.status == "ok":
            known = best.get(search.rivals, search.distances)
            best[search.rivals] = np.minimum(known, search.distances)
    frame = pd.DataFrame(
        [_row(each, best.get(each.rivals)) for each in searches], columns=[*COLUMNS]
    )
    counts = ["n", "attacked", "found"]
    frame[counts] = frame[counts].astype("Int64")
    return frame


def _row(search: Search, best: Distances | None) -> dict[str, object]:
    about = {name: getattr(search, name) for name in (*_GROUP, "attack", "implementation")}
    about |= {"status": search.status, "reason": search.reason}
    far = search.distances
    if search.status != "ok" or best is None:
        return about
    if not len(far):
        return {**about, "reason": "no example could be attacked"}
    middle, most = median_distance(far), largest_distance(best)
    return {
        **about,
        "n": len(far),
        "attacked": search.attacked,
        "found": int((np.isfinite(far) & (far > 0)).sum()),
        "median_distance": middle.value,
        "median_low": middle.low,
        "median_high": middle.high,
        "mean_clipped_distance": None if most is None else area_under_curve(far, most),
        "largest_eps": most,
        "local_optimality": local_optimality(far, best),
        "forwards_per_example": search.forwards,
        "backwards_per_example": search.backwards,
    }
