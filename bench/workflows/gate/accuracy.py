"""Compare clean and robust accuracies example by example, with one multiple-test correction."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.analysis import snapshot_matching
from bench.analysis.snapshot import CellSnapshot, Snapshot, unpack_outcomes
from bench.analysis.snapshot_matching import SettingChange
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.reporting.formats import numbers
from bench.suite.thresholds import Threshold, Thresholds
from bench.suite.unions import ThreatUnion
from bench.workflows.gate.unions import pair_unions
from bench.workflows.gate.verdicts import AccuracyChange, Outcome, Verdict

_UNION = "union of threat models"


class _Pair(NamedTuple):
    """An accuracy that both sides have, with the outcomes of the same examples."""

    gate: str
    model: str
    attack: str
    eps: str
    before: Outcomes
    after: Outcomes
    threshold: Threshold

    @property
    def allowed(self) -> int:
        """The largest net loss within the threshold, in examples."""
        return math.floor(self.threshold.allowed(int(self.before.sum()), len(self.before)))


class AccuracyVerdicts(NamedTuple):
    """A verdict on each accuracy, and the power of the tests."""

    verdicts: list[Verdict]
    power: str
    """The smallest loss that can fail the check, in a sentence."""


def judge_accuracies(
    before: Snapshot, now: Snapshot, limits: Thresholds, unions: Sequence[ThreatUnion] = ()
) -> AccuracyVerdicts:
    """Compare every model's clean accuracy, then the robust accuracy of cells and of unions.

    Args:
        before: Snapshot of the baseline.
        now: Snapshot of the run.
        limits: Thresholds and alpha.
        unions: Unions of the suite, beside that of all its threat models.

    Returns:
        Verdicts in this order, and the power of the tests.
    """
    items = [
        *_clean(before, now, limits),
        *_robust(before, now, limits),
        *_unions(before, now, limits, unions),
    ]
    pairs = [each for each in items if isinstance(each, _Pair)]
    judged = iter(_judge_pairs(pairs, limits.alpha))
    verdicts = [next(judged) if isinstance(each, _Pair) else each for each in items]
    return AccuracyVerdicts(verdicts, _power(pairs, limits.alpha))


def _clean(before: Snapshot, now: Snapshot, limits: Thresholds) -> Iterator[_Pair | Verdict]:
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
            yield _Pair(*place, was, clean, limits.find("clean_accuracy", model))


def _in_words(changes: Sequence[SettingChange]) -> str:
    """Name the settings that differ, each with both values."""
    known = [
        (name, *("unknown" if value is None else numbers.format_text(str(value)) for value in pair))
        for name, *pair in changes
    ]
    return "; ".join(f"{name} {before} → {now}" for name, before, now in known)


def _robust(before: Snapshot, now: Snapshot, limits: Thresholds) -> Iterator[_Pair | Verdict]:
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
            yield _Pair(*place, sides[0], sides[1], limit)


def _unions(
    before: Snapshot, now: Snapshot, limits: Thresholds, unions: Sequence[ThreatUnion]
) -> Iterator[_Pair | Verdict]:
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
            yield _Pair(*place, *each.outcomes, limit)


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


def _judge_pairs(pairs: list[_Pair], alpha: float) -> Iterator[Verdict]:
    """Judge each pair, with p values corrected over all pairs (Holm)."""
    losses = [metrics.one_sided_mcnemar_test(pair.before, pair.after) for pair in pairs]
    gains = [metrics.one_sided_mcnemar_test(pair.after, pair.before) for pair in pairs]
    p_lost = metrics.holm_correction([loss.p_value for loss in losses])
    p_gained = metrics.holm_correction([gain.p_value for gain in gains])
    for pair, loss, *p_values in zip(pairs, losses, p_lost, p_gained, strict=True):
        counts = int(pair.before.sum()), int(pair.after.sum()), len(pair.before)
        change = AccuracyChange(*counts, loss.lost, loss.gained, *p_values)
        outcome, sentence = _judge_change(change, pair, alpha)
        place = pair.gate, pair.model, pair.attack, pair.eps
        yield Verdict(*place, outcome, sentence, change)


def _judge_change(change: AccuracyChange, pair: _Pair, alpha: float) -> tuple[Outcome, str]:
    lost, gained = len(change.lost), len(change.gained)
    fell = lost - gained
    if not lost and not gained:
        return "passed", f"{change.after} of {change.n}, the same examples as before"
    difference = numbers.format_points(-100 * fell / change.n)
    counts = f"{change.before} → {change.after} of {change.n} ({difference}): "
    counts += f"lost {lost}, gained {gained}"
    limit = pair.threshold.text.partition(":")[2]
    if fell > pair.allowed:
        if change.p_lost <= alpha:
            return "regressed", f"{counts}, beyond {limit} and {_chance(change.p_lost)}"
        return "passed", f"{counts}, beyond {limit} but no more than chance ({_p(change.p_lost)})"
    if -fell > pair.allowed and change.p_gained <= alpha:
        return "improved", f"{counts}, {_chance(change.p_gained)}"
    return "passed", f"{counts}, within {limit}" if fell > 0 else counts


def _chance(p_value: float) -> str:
    return f"beyond chance ({_p(p_value)})"


def _p(p_value: float) -> str:
    return "p < 0.0001, corrected" if p_value < 1e-4 else f"p = {p_value:.2g}, corrected"


def find_smallest_detectable_loss(
    n: int, before: int, allowed: int, family: int, alpha: float
) -> int | None:
    """Find the smallest loss that fails a check if nothing is gained.

    Args:
        n: Examples.
        before: Examples that counted before.
        allowed: Largest loss within the threshold, in examples.
        family: Accuracies compared, by which p values are corrected.
        alpha: Significance level.

    Returns:
        Number of lost examples; None if even the loss of all would pass.

    >>> cases = [(200, 180, 2, 1, 0.01), (1000, 900, 10, 50, 0.01), (200, 5, 2, 1, 0.01)]
    >>> [find_smallest_detectable_loss(*case) for case in cases]
    [7, 13, None]
    """
    seen = math.ceil(math.log2(family / alpha))
    k = max(seen, allowed + 1)
    return k if k <= min(n, before) else None


def _power(pairs: list[_Pair], alpha: float) -> str:
    if not pairs:
        return "No accuracy was compared."
    n, family = len(pairs[0].before), len(pairs)
    needs = [
        find_smallest_detectable_loss(n, int(p.before.sum()), p.allowed, family, alpha)
        for p in pairs
    ]
    known = [need for need in needs if need is not None]
    shared = f"{numbers.format_plural(family, 'comparison')}, alpha = {alpha:g} for all together"
    if not known:
        return f"No loss at all can turn this check red: {n} examples are too few ({shared})."
    k = min(known)
    share = numbers.format_percent(k / n).removesuffix(" %")
    blind = len(needs) - len(known)
    more = f" Of the accuracies, {blind} cannot fall by enough to turn red." if blind else ""
    return (
        f"No loss of fewer than {k} of {n} examples ({share} pp) can turn this check red "
        f"({shared}).{more}"
    )
