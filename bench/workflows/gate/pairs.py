"""Pair the accuracies that a baseline and a run both have, on the same examples."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import (
    CellSnapshot,
    ExampleClasses,
    ModelSnapshot,
    Snapshot,
    unpack_outcomes,
)
from bench.analysis.snapshot_matching import SettingChange
from bench.reporting.formats import numbers
from bench.suite.thresholds import Threshold, Thresholds
from bench.suite.unions import ThreatUnion
from bench.workflows.gate import joint_accuracy
from bench.workflows.gate.accuracy_pair import AccuracyPair, PooledPair
from bench.workflows.gate.unions import pair_unions
from bench.workflows.gate.verdicts import Outcome, Verdict
from bench.workflows.gate.worst_class import WorstClasses, compare_worst_classes

_UNION = "union of threat models"
_WITHIN, _QUERY_METRIC = "robust accuracy within queries", "query_robust_accuracy"
_WORST_CLASS, _METRIC = "worst class", "worst_class_robust_accuracy"


def pair_accuracies(
    before: Snapshot,
    now: Snapshot,
    limits: Thresholds,
    unions: Sequence[ThreatUnion],
    classes: ExampleClasses | None,
) -> list[AccuracyPair | PooledPair | Verdict]:
    """Pair the clean accuracies, and the robust ones of cells, unions, worst classes and budgets.

    The robust accuracies are those of every cell, of the worst case over the attacks of a threat
    model at each eps, and of all cells of a model together.

    Args:
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        limits: Thresholds and alpha.
        unions: Unions of the suite, beside that of all its threat models.
        classes: Classes of the run's examples; None if no cell is finished.

    Returns:
        In this order, each pair that can be judged, and a verdict in place of each that cannot.
    """
    cells = [*_robust(before, now, limits)]
    compared = [each for each in cells if isinstance(each, AccuracyPair)]
    return [
        *_clean(before, now, limits),
        *cells,
        *(each.join() for each in joint_accuracy.group_by_ball(now, compared)),
        *joint_accuracy.pool_cells(now, compared),
        *_unions(before, now, limits, unions),
        *_worst_classes(before, now, limits, cells, classes),
        *_within_queries(before, now, limits, cells),
    ]


def _clean(before: Snapshot, now: Snapshot, limits: Thresholds) -> Iterator[AccuracyPair | Verdict]:
    earlier, later = snapshot_matching.index_models(before), snapshot_matching.index_models(now)
    other, n = snapshot_matching.describe_data_change(before, now), now.data.n
    for model in dict.fromkeys([*earlier, *later]):
        place = ("clean accuracy", model, "", "")
        if model not in earlier:
            yield Verdict(*place, "new", "the baseline has no numbers of this model")
        elif model not in later:
            yield Verdict(*place, "not compared", "the run has no numbers of this model")
        elif other:
            yield Verdict(*place, "not compared", other)
        else:
            was, clean = (unpack_outcomes(side[model].clean, n) for side in (earlier, later))
            yield AccuracyPair(*place, was, clean, limits.find("clean_accuracy", model))


def _in_words(changes: Sequence[SettingChange]) -> str:
    """Name the settings that differ, each with both values."""
    known = [
        (name, *("unknown" if value is None else numbers.format_text(str(value)) for value in pair))
        for name, *pair in changes
    ]
    return "; ".join(f"{name} {before} → {now}" for name, before, now in known)


def _robust(
    before: Snapshot, now: Snapshot, limits: Thresholds
) -> Iterator[AccuracyPair | Verdict]:
    earlier, later, n = (
        snapshot_matching.index_cells(before),
        snapshot_matching.index_cells(now),
        now.data.n,
    )
    tasks, were = snapshot_matching.index_attacks(now), snapshot_matching.index_attacks(before)
    for key in dict.fromkeys([*later, *earlier]):
        model, attack, eps = key
        was, cell = earlier.get(key), later.get(key)
        place = ("robust accuracy", model, attack, (cell or earlier[key]).eps_text)
        if verdict := _judge_missing(was, cell):
            yield Verdict(*place, *verdict)
        elif other := snapshot_matching.describe_data_change(before, now):
            yield Verdict(*place, "not compared", other)
        elif changed := snapshot_matching.find_setting_changes(
            were[model, attack], tasks[model, attack]
        ):
            yield Verdict(*place, "not compared", f"other settings: {_in_words(changed)}")
        else:
            names = (attack, tasks[model, attack].family)
            sides = [unpack_outcomes(side[key].robust, n) for side in (earlier, later)]
            limit = limits.find("robust_accuracy", model, names, eps)
            yield AccuracyPair(*place, sides[0], sides[1], limit)


def _unions(
    before: Snapshot, now: Snapshot, limits: Thresholds, unions: Sequence[ThreatUnion]
) -> Iterator[AccuracyPair | Verdict]:
    """Pair the unions of models that a threshold is set for."""
    known = snapshot_matching.index_models(before)
    other = snapshot_matching.describe_data_change(before, now)
    if other:  # outcomes of other examples are not unpacked
        before = dataclasses.replace(before, cells=[])
    found = list(pair_unions(before, now, unions))
    asked = [
        model
        for model in snapshot_matching.index_models(now)
        if limits.covers("union_robust_accuracy", model)
    ]
    for model in asked:
        if all(each.model != model for each in found):
            yield Verdict(_UNION, model, "", "", "not judged", "it is attacked in one norm only")
    for each in found:
        place = (_UNION, each.model, each.name, "")
        if each.model not in asked:
            continue
        if each.model not in known:
            yield Verdict(*place, "new", "the baseline has no numbers of this model")
        elif other or each.outcomes is None:
            yield Verdict(*place, "not compared", other or each.reason)
        else:
            limit = limits.find("union_robust_accuracy", each.model)
            yield AccuracyPair(*place, *each.outcomes, limit)


def _worst_classes(
    before: Snapshot,
    now: Snapshot,
    limits: Thresholds,
    cells: Sequence[AccuracyPair | Verdict],
    classes: ExampleClasses | None,
) -> Iterator[AccuracyPair | Verdict]:
    """Pair the worst classes of the compared cells, and of the worst case over attacks at each eps.

    A cell that is not compared has none here: the verdict on its robust accuracy says why. Targeted
    attacks are left out, since most of them do not aim at what would make an example of a class
    fall.
    """
    compared = _index_pairs(cells)
    tasks, were = snapshot_matching.index_attacks(now), snapshot_matching.index_models(before)
    attacked = [
        (cell, compared.get((cell.model, cell.attack, cell.eps_text)))
        for cell in joint_accuracy.select_untargeted(now)
    ]
    for cell, pair in attacked:
        names = (cell.attack, tasks[cell.model, cell.attack].family)
        if pair and limits.covers(_METRIC, cell.model, names, cell.eps):
            limit = limits.find(_METRIC, cell.model, names, cell.eps)
            yield _pair_worst_class(pair, were, limit, limits.alpha, classes)
    for joint in joint_accuracy.group_by_ball(now, [*compared.values()]):
        if limits.covers(_METRIC, joint.model, (), joint.eps):
            limit = limits.find(_METRIC, joint.model, (), joint.eps)
            yield _pair_worst_class(joint.join(), were, limit, limits.alpha, classes)

    without = {cell.model for cell in now.cells} - {pair.model for _, pair in attacked if pair}
    for model in snapshot_matching.index_models(now):
        if model in without and limits.mentions(_METRIC, model):
            reason = "no cell of an untargeted attack is compared"
            yield Verdict(_WORST_CLASS, model, "", "", "not judged", reason)


def _pair_worst_class(
    pair: AccuracyPair,
    models: Mapping[str, ModelSnapshot],
    limit: Threshold,
    alpha: float,
    classes: ExampleClasses | None,
) -> AccuracyPair | Verdict:
    """Reduce the outcomes of all examples to those of the class that is judged."""
    clean = unpack_outcomes(models[pair.model].clean, len(pair.before))
    worst: WorstClasses | str = "the classes of the examples are not known"
    if classes is not None:
        worst = compare_worst_classes(pair.before, pair.after, clean, classes, alpha)
    if isinstance(worst, str):
        return Verdict(_WORST_CLASS, pair.model, pair.attack, pair.eps, "not judged", worst)
    before, after = worst.outcomes
    return pair._replace(
        gate=_WORST_CLASS, before=before, after=after, threshold=limit, worst=worst
    )


def _within_queries(
    before: Snapshot,
    now: Snapshot,
    limits: Thresholds,
    cells: Sequence[AccuracyPair | Verdict],
) -> Iterator[AccuracyPair | Verdict]:
    """Pair the robust accuracy of the compared cells within each budget of queries."""
    compared = _index_pairs(cells)
    earlier, tasks = snapshot_matching.index_cells(before), snapshot_matching.index_attacks(now)
    without = set(snapshot_matching.index_models(now))
    for key, cell in snapshot_matching.index_cells(now).items():
        pair = compared.get((cell.model, cell.attack, cell.eps_text))
        if pair is None:
            continue
        names = (cell.attack, tasks[cell.model, cell.attack].family)
        sides = earlier[key].robust_within, cell.robust_within
        for budget in sorted({int(text) for side in sides for text in side}):
            if not limits.covers(_QUERY_METRIC, cell.model, names, cell.eps, budget):
                continue
            without.discard(cell.model)
            place = (_WITHIN, cell.model, f"{cell.attack}, {budget} queries", cell.eps_text)
            was, is_now = (side.get(str(budget)) for side in sides)
            if was is None or is_now is None:
                outcome: Outcome = "new" if was is None else "not compared"
                lacking = "baseline" if was is None else "run"
                yield Verdict(*place, outcome, f"the {lacking} has no outcomes within this budget")
                continue
            first, second = (unpack_outcomes(text, now.data.n) for text in (was, is_now))
            limit = limits.find(_QUERY_METRIC, cell.model, names, cell.eps, budget)
            yield AccuracyPair(*place, first, second, limit)
    for model in snapshot_matching.index_models(now):
        if model in without and limits.mentions(_QUERY_METRIC, model):
            reason = "no cell that is compared has a budget of queries with this threshold"
            yield Verdict(_WITHIN, model, "", "", "not judged", reason)


def _index_pairs(
    cells: Sequence[AccuracyPair | Verdict],
) -> dict[tuple[str, str, str], AccuracyPair]:
    """Index the compared cells by model, attack and eps as written."""
    return {
        (each.model, each.attack, each.eps): each
        for each in cells
        if isinstance(each, AccuracyPair)
    }


def _judge_missing(
    was: CellSnapshot | None, cell: CellSnapshot | None
) -> tuple[Outcome, str] | None:
    """Return outcome and sentence of a cell that a side has no numbers of; None if both have."""
    had = was is not None and was.status == "ok"
    if cell is None:
        return ("not compared" if had else "not judged"), "the suite no longer has this cell"
    if cell.status == "failed":
        again = "; it failed before, too" if was is not None and was.status == "failed" else ""
        return "failed", f"{cell.reason}{again}"
    if cell.status == "missing":
        return "not compared", cell.reason
    if cell.status == "skipped":
        return ("not compared" if had else "not judged"), f"skipped: {cell.reason}"
    if not had:
        missing = "has no such cell" if was is None else f"has it {was.status}"
        violations = f"; {cell.violations} violations" if cell.violations else ""
        return "new", f"the baseline {missing}{violations}"
    return None
