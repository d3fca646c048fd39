"""Compare our attacks with reference implementations, example by example, and name likely causes.

Both attacks ran on the same examples under the same threat model. Outcomes are compared over all
examples, images over the first ones, whose adversarial images the run's folder holds. Without them
no pair is called identical, so that a clone of a repository that omits images never reads better.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from torch import Tensor

from bench.evaluation import metrics
from bench.suite.plan import Cell

COLUMNS = (
    "model", "ours", "reference", "norm", "eps", "eps_text", "goal", "n", "differ", "differ_ids",
    "ours_robust_correct", "ours_robust_accuracy", "ours_low", "ours_high",
    "reference_robust_correct", "reference_robust_accuracy", "reference_low", "reference_high",
    "only_ours_broke", "only_reference_broke", "p_value", "largest_pixel_difference",
    "pixels_equal", "pixels_compared", "time_ratio", "verdict", "cause",
)  # fmt: skip
IDENTICAL, EQUAL, DIFFERENT = "identical", "equal within noise", "different"
SAME_PIXEL = 1e-5
"""Float rounding between two implementations of one formula stays below this."""
NO_IMAGES = "images were not compared: the run's folder lacks those of one attack or both"
IDS_SHOWN = 20
TRAITS = {
    "start": "start",
    "alpha": "step size",
    "steps": "number of steps",
    "restarts": "number of restarts",
    "loss": "loss",
    "momentum": "definition of momentum",
    "projection": "projection or clamp",
    "stop": "stop rule",
    "precision": "arithmetic",
    "samples": "number of passes averaged",
}
"""Property that two attacks may declare differently -> its name in sentences."""


class CrosscheckPair(NamedTuple):
    """The two cells of one cross-check."""

    ours: Cell
    reference: Cell


def pair_cells(plan: Sequence[Cell], wanted: Sequence[tuple[str, str]]) -> list[CrosscheckPair]:
    """Pair the cells of cross-checked attacks: same model, same eps.

    Args:
        plan: The cells of the suite.
        wanted: (label of our attack, label of the reference) of each cross-check.

    Returns:
        Pairs at eps above 0: at 0 nothing is attacked.
    """
    by_key = {(cell.model, cell.attack, cell.eps): cell for cell in plan}
    return [
        CrosscheckPair(cell, by_key[cell.model, reference, cell.eps])
        for ours, reference in wanted
        for cell in plan
        if cell.attack == ours and cell.eps > 0 and (cell.model, reference, cell.eps) in by_key
    ]


class MissingComparison(NamedTuple):
    """A cross-check that could not be made."""

    model: str
    ours: str
    reference: str
    reason: str
    """Which of the two attacks has no result, and why."""


def find_missing_comparisons(
    sides: Sequence[CrosscheckPair], table: pd.DataFrame
) -> list[MissingComparison]:
    """Find the cross-checks without a comparison, such as those of a missing library.

    Args:
        sides: Those of `pair_cells`.
        table: That of `tables.cell_table`.

    Returns:
        One entry per pair of attacks and reason, in the order of the plan.
    """
    cells = table.drop_duplicates("cell").set_index("cell")[["status", "reason"]]
    outcomes: dict[str, dict[str, str]] = cells.to_dict("index")  # type: ignore[assignment]
    found = []
    for pair in sides:
        for side, each in (("our attack", pair.ours), ("the reference", pair.reference)):
            status, reason = outcomes[each.identity]["status"], outcomes[each.identity]["reason"]
            if status != "ok":
                why = f"{side} is {status}" + (f" ({reason})" if reason else "")
                found.append(
                    MissingComparison(pair.ours.model, pair.ours.attack, pair.reference.attack, why)
                )
    return list(dict.fromkeys(found))


def compare_implementations(
    pairs: Sequence[CrosscheckPair],
    table: pd.DataFrame,
    robust: Mapping[str, "pd.Series[bool]"],
    confidence: Mapping[str, "pd.Series[float]"],
    images: Mapping[str, Tensor],
) -> pd.DataFrame:
    """Compare the outcomes and images of paired cells.

    Args:
        pairs: Those of `pair_cells`.
        table: That of `tables.cell_table`.
        robust: Identity of a cell -> which examples are robust, indexed by example.
        confidence: Identity of a cell -> confidence of the clean prediction, indexed by example.
        images: Identity of a cell -> adversarial images (k, c, h, w) of the first k examples.

    Returns:
        One row per pair of finished cells, columns COLUMNS.
    """
    cells = table.drop_duplicates("cell").set_index("cell")
    by_cell: dict[str, dict[str, Any]] = cells.to_dict("index")  # type: ignore[assignment]
    done = [
        pair for pair in pairs if all(by_cell[each.identity]["status"] == "ok" for each in pair)
    ]
    tests = [  # first: robust under theirs alone, so broken by ours
        metrics.mcnemar_test(robust[pair.reference.identity], robust[pair.ours.identity])
        for pair in done
    ]
    rows = []
    corrected = metrics.holm_correction([test.p_value for test in tests])
    for pair, test, p_value in zip(done, tests, corrected, strict=True):
        ours, reference = by_cell[pair.ours.identity], by_cell[pair.reference.identity]
        mine, theirs = robust[pair.ours.identity], robust[pair.reference.identity]
        differ = mine.index[mine != theirs]
        pixels = _pixels(pair, images)
        verdict = _verdict(len(differ), p_value, pixels)
        saturated = confidence[pair.ours.identity].loc[differ] == 1
        rows.append(
            {
                "model": pair.ours.model,
                "ours": pair.ours.attack,
                "reference": pair.reference.attack,
                "norm": pair.ours.norm,
                "eps": pair.ours.eps,
                "eps_text": pair.ours.eps_text,
                "goal": pair.ours.goal,
                "n": len(mine),
                "differ": len(differ),
                "differ_ids": _ids(differ.tolist()),
                **_side("ours", ours),
                **_side("reference", reference),
                "only_ours_broke": test.only_first,
                "only_reference_broke": test.only_second,
                "p_value": test.p_value,
                "largest_pixel_difference": pixels.largest,
                "pixels_equal": pixels.equal,
                "pixels_compared": pixels.images,
                "time_ratio": _ratio(ours["seconds"], reference["seconds"]),
                "verdict": verdict,
                "cause": ""
                if verdict == IDENTICAL
                else _cause(pair, len(differ), int(saturated.sum()), pixels),
            }
        )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _side(name: str, row: Mapping[str, Any]) -> dict[str, object]:
    return {
        f"{name}_robust_correct": row["robust_correct"],
        f"{name}_robust_accuracy": row["robust_accuracy"],
        f"{name}_low": row["robust_low"],
        f"{name}_high": row["robust_high"],
    }


class _Pixels(NamedTuple):
    """Largest difference of two sets of images, fraction of equal pixels, number of images."""

    largest: float | None
    equal: float | None
    images: int


def _pixels(pair: CrosscheckPair, images: Mapping[str, Tensor]) -> _Pixels:
    mine, theirs = images.get(pair.ours.identity), images.get(pair.reference.identity)
    if mine is None or theirs is None or not (compared := min(len(mine), len(theirs))):
        return _Pixels(None, None, 0)
    apart = (mine[:compared] - theirs[:compared]).abs()
    return _Pixels(float(apart.max()), float((apart <= SAME_PIXEL).float().mean()), compared)


def _verdict(differ: int, corrected: float, pixels: _Pixels) -> str:
    if differ == 0 and pixels.largest is not None and pixels.largest <= SAME_PIXEL:
        return IDENTICAL
    return DIFFERENT if corrected <= metrics.SIGNIFICANCE_LEVEL else EQUAL


def _cause(pair: CrosscheckPair, differ: int, saturated: int, pixels: _Pixels) -> str:
    """Say whether images were compared and name the likely causes of a difference."""
    causes = _declared_causes(pair)
    if saturated:
        causes.append(
            f"saturation: {saturated} of the differing examples have a clean confidence that "
            "rounds to 1, where the cross-entropy gradient is rounding error"
        )
    if not causes and (differ or pixels.images):
        causes.append("rounding: the same definition in another order of operations")
    return "; ".join([*causes, *([] if pixels.images else [NO_IMAGES])])


def _declared_causes(pair: CrosscheckPair) -> list[str]:
    """Name the properties that the two attacks declare differently."""
    causes = []
    one = {"samples": "1"}
    mine = {**one, **pair.ours.traits, "stop": pair.ours.stop, "precision": pair.ours.precision}
    theirs = {**one, "stop": "never", "precision": "float32", **pair.reference.traits}
    for trait, what in TRAITS.items():
        if trait in mine and trait in theirs and mine[trait] != theirs[trait]:
            causes.append(f"other {what}: {mine[trait]} against {theirs[trait]}")
    if "start" in mine and mine["start"] == theirs.get("start") != "clean":
        causes.append(f"other random draws for the same start ({mine['start']})")
    return causes


def _ratio(ours: float, reference: float) -> float | None:
    return ours / reference if ours and reference else None


def _ids(ids: list[int]) -> str:
    shown = " ".join(map(str, ids[:IDS_SHOWN]))
    return shown if len(ids) <= IDS_SHOWN else f"{shown} ..."
