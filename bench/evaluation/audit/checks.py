"""Look for symptoms of failed attacks in the records alone, by comparing attacks with each other.

Each check goes through the finished cells of one model; the model itself is not needed.
Source: Carlini et al. 2019, section 5, https://arxiv.org/abs/1902.06705; Athalye et al. 2018,
section 3.1, https://arxiv.org/abs/1802.00420
"""

import dataclasses
import functools
import itertools
import json
import math
import operator
from collections.abc import Callable, Hashable

import pandas as pd

from bench.evaluation import metrics
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.evidence import (
    LOST_THRESHOLD,
    MIN_EXAMPLES,
    MIN_SHARE,
    SIGNIFICANCE_LEVEL,
    STRONGER_THRESHOLD,
    AttackedCell,
    AttackedCells,
    are_enough,
    find_strongest,
    group_cells,
    is_stronger,
    report_comparison,
    report_if_weaker,
    report_symptom,
)
from bench.evaluation.audit.symptoms import ObservedSymptom, Symptom

NEW_SHARE = 0.01
"""Share of the attacked examples that only an attack by scores breaks. AutoAttack's flag is raised
at 0.002, which of the hundreds of examples common here is one or none."""
LEFT_SHARE = 0.01
"""Share of the attacked examples that may be left at L-inf eps 1, where all can be broken."""
CERTAIN_SHARE = 0.5
"""Share of the survivors with confidence 1. Measured on 300 MNIST images and a LeNet
that is certain of a quarter of them: 36 of the 43 that FGSM at 0.3 leaves, where the margin leaves
13; 72 of the 290 that it leaves at 0.05, where the margin leaves the same."""
USED_SHARE = 0.5
"""Share of eps by which a working attack of fixed budget moves an image at least."""
NEARER_SHARE = 0.9
"""Share of a search's distance below which another attack's success shows that the search failed:
two good searches differ by a few per cent on many images."""
SEARCH_SHARE = 0.1
"""Share of the attacked examples on which a search may fail by chance."""
EXACT_LOSSES = {"margin", "logit-difference", "label-and-target", "dlr", "targeted dlr"}
"""Losses on logits, which do not saturate."""
VARIABLE_TRAITS = {"steps", "restarts", "alpha"}
"""Traits in which two cells of the same attack may differ."""

AT = operator.attrgetter("place")
ALL_WHITE_BOX = "all white-box attacks together"

Check = Callable[[AttackedCells, AttackedCells], list[ObservedSymptom] | None]
"""(finished cells on a model, those on all) -> symptoms; None if nothing could be checked."""


# ------------------------------------------------------------------------ one attack, two settings


def _compare_settings(
    runs: AttackedCells, kind: Symptom, field: str
) -> list[ObservedSymptom] | None:
    """Compare the same attack with more and with less of `field`."""
    known = [run for run in runs if run.cell.name and run.cell.traits.get(field, "").isdecimal()]
    observed, pairs = [], 0
    for group in group_cells(known, _attack_key):
        for less, more in itertools.permutations(group, 2):
            fewer, greater = _step_counts(less), _step_counts(more)
            others = all(fewer[key] == greater[key] for key in fewer if key != field)
            if fewer[field] < greater[field] and others:
                pairs += 1
                observed += report_if_weaker(kind, more, less)
    return observed if pairs else None


def _step_counts(run: AttackedCell) -> dict[str, int]:
    texts = {key: run.cell.traits.get(key, "") for key in ("steps", "restarts")}
    return {key: int(text) if text.isdecimal() else 1 for key, text in texts.items()}


def _attack_key(run: AttackedCell) -> Hashable:
    cell = run.cell
    traits = {key: value for key, value in cell.traits.items() if key not in VARIABLE_TRAITS}
    rest = cell.name, cell.source, cell.precision, cell.samples, cell.stop
    return *run.place, *rest, json.dumps(traits, sort_keys=True)


def _compare_losses(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Compare the same attack with a loss that saturates and with one that does not."""
    observed, pairs = [], 0
    known = [run for run in runs if run.white and run.cell.name]

    def but_for_loss(run: AttackedCell) -> Hashable:
        traits = {key: value for key, value in run.cell.traits.items() if key != "loss"}
        return *run.place, run.cell.name, run.cell.stop, json.dumps(traits, sort_keys=True)

    for group in group_cells(known, but_for_loss):
        for exact, rounded in itertools.permutations(group, 2):
            losses = exact.cell.traits.get("loss"), rounded.cell.traits.get("loss")
            if losses == ("margin", "cross-entropy"):
                pairs += 1
                observed += report_if_weaker(symptoms.SATURATED_LOSS, rounded, exact)
    return observed if pairs else None


def _check_confident_survivors(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Find images of clean confidence 1 that survive white-box attacks along cross-entropy alone.

    There the gradient starts without the label's own term, or vanishes. Survivors of a loss on
    logits are not counted.
    """
    observed, looked = [], 0
    leaving = [run for run in runs if run.white and run.cell.goal == "untargeted"]
    for group in group_cells(leaving, AT):
        rounded = [run for run in group if run.cell.traits.get("loss") == "cross-entropy"]
        if not rounded:
            continue
        looked += 1
        exact = [run for run in group if run.cell.traits.get("loss") in EXACT_LOSSES]
        exact += [run for run in group if "parts" in run.cell.traits]
        together = _join_attacks(group) if len(group) > 1 else group[0]
        left = _left_by_all(group)
        which = left & (rounded[0].records["clean_confidence"] == 1.0)
        if not exact and which.sum() >= max(MIN_EXAMPLES, CERTAIN_SHARE * left.sum()):
            evidence = (
                f"{int(which.sum())} of the {int(left.sum())} left standing have a clean "
                "confidence of exactly 1 in float32, where cross-entropy has lost its gradient"
            )
            limit = f"{MIN_EXAMPLES} examples and {CERTAIN_SHARE:.0%} of those left standing"
            observed.append(
                report_symptom(symptoms.SATURATED_LOSS, together, which, evidence, limit)
            )
    return observed if looked else None


def _check_saturation(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Look for both symptoms of saturation in records; None if neither could be checked."""
    results = [
        each
        for each in (_compare_losses(runs), _check_confident_survivors(runs))
        if each is not None
    ]
    return [symptom for each in results for symptom in each] if results else None


def _compare_eps(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Compare an attack at one eps with itself at the smaller one at which it broke most.

    Single steps, which may overshoot, noise and transferred images are left out.
    """
    observed, pairs = [], 0
    own = [run for run in runs if run.cell.threat_model.startswith(("white", "black-box, sc"))]
    several = [run for run in own if run.steps != 1]
    for group in group_cells(several, lambda run: (run.cell.attack, *run.place[:-1])):
        ordered = sorted(group, key=lambda run: run.cell.eps)
        for rank, larger in enumerate(ordered[1:], 1):
            pairs += 1
            observed += report_if_weaker(
                symptoms.LARGER_EPS_WORSE, larger, find_strongest(ordered[:rank])
            )
    return observed if pairs else None


# --------------------------------------------------------------------- one attack against another


def _compare_with_noise(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Compare gradient attacks with noise of the same size, where noise breaks some but not all."""
    observed, pairs = [], 0
    for group in group_cells(runs, AT):
        random = [run for run in group if run.is_noise]
        if not random:
            continue
        floor = find_strongest(random)
        for run in (run for run in group if run.white):
            pairs += 1
            hit, n = int(floor.broken.sum()), int((~(floor.certified | run.certified)).sum())
            split = metrics.mcnemar_test(run.broken, floor.broken)
            helped = split.only_first > 2 * split.only_second
            helped = helped or (
                split.p_value < SIGNIFICANCE_LEVEL and split.only_first > split.only_second
            )
            if MIN_EXAMPLES <= hit <= n - MIN_EXAMPLES and not helped:
                limit = f"{MIN_EXAMPLES} broken by noise and {MIN_EXAMPLES} left; "
                limit += f"no better by p < {SIGNIFICANCE_LEVEL:g}"
                observed.append(
                    report_comparison(symptoms.NOISE_AS_STRONG, run, floor, floor.broken, limit)
                )
    return observed if pairs else None


def _compare_with_one_step(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Compare iterated attacks with the strongest of one gradient."""
    observed, pairs = [], 0
    for group in group_cells([run for run in runs if run.white], AT):
        single = [run for run in group if not run.iterated]
        for run in (run for run in group if run.iterated and single):
            pairs += 1
            observed += report_if_weaker(symptoms.ONE_STEP_STRONGER, run, find_strongest(single))
    return observed if pairs else None


def _compare_with_black_box(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Compare all white-box attacks together with each attack that sees less.

    Ensembles are left out: they may contain the attack by scores that they are compared with.
    """
    observed, pairs = [], 0
    for group in group_cells(runs, AT):
        white = [run for run in group if run.white and "parts" not in run.cell.traits]
        for run in (run for run in group if run.black and white):
            pairs += 1
            together = _join_attacks(white)
            new = run.broken & ~together.broken
            many = "score" in run.cell.threat_model and new.sum() >= max(
                MIN_EXAMPLES, NEW_SHARE * len(new)
            )
            if many or is_stronger(run, together):
                newly = f"by scores also {MIN_EXAMPLES} and {NEW_SHARE:.0%} newly broken"
                limit = f"{STRONGER_THRESHOLD}; {newly}"
                observed.append(
                    report_comparison(symptoms.BLACK_BOX_STRONGER, together, run, new, limit)
                )
    return observed if pairs else None


def _join_attacks(runs: AttackedCells) -> AttackedCell:
    """Join several attacks into one, which breaks what any of them breaks."""
    broken = runs[0].broken
    for run in runs[1:]:
        broken = broken | run.broken
    return runs[0]._replace(
        cell=dataclasses.replace(runs[0].cell, attack=ALL_WHITE_BOX), broken=broken
    )


def _left_by_all(runs: AttackedCells) -> metrics.Outcomes:
    """Select what was attacked in vain by every attack, certified examples left out."""
    return functools.reduce(operator.and_, (run.left for run in runs))


def _compare_with_source(
    runs: AttackedCells, everywhere: AttackedCells
) -> list[ObservedSymptom] | None:
    """Compare transferred attacks with what they broke on their source.

    `everywhere` are the cells on all models. None where each is accompanied by a white-box attack.
    """
    white_box = {run.place for run in runs if run.white}
    there = {(run.cell.model, run.cell.family, run.place): run for run in everywhere if run.white}
    observed, pairs = [], 0
    for run in (run for run in runs if run.cell.threat_model.startswith("black-box, transfer")):
        origin = there.get((run.cell.source, run.cell.family, run.place))
        if origin is None or run.place in white_box:
            continue
        pairs += 1
        ids = origin.broken.index.intersection(run.broken.index)
        lost = origin.broken.loc[ids] & ~run.broken.loc[ids]
        evidence = (
            f"{int(lost.sum())} of {int(origin.broken.loc[ids].sum())} that fool {run.cell.source}"
        )
        if are_enough(lost, origin.broken.loc[ids]):
            observed.append(
                report_symptom(
                    symptoms.TRANSFER_FAILURE,
                    run,
                    lost,
                    f"{evidence} do not fool this model",
                    LOST_THRESHOLD,
                )
            )
    return observed if pairs else None


# -------------------------------------------------------------------------------- one attack alone


def _check_unit_cube(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Check iterated gradient attacks at L-inf eps 1, where every image is allowed."""
    observed, pairs = [], 0
    for run in (run for run in runs if run.iterated and run.cell.goal == "untargeted"):
        classes = run.records["label"].nunique()
        if run.cell.norm != "linf" or run.cell.eps < 1 or classes < 2:
            continue
        pairs += 1
        left = run.left
        if left.sum() >= max(MIN_EXAMPLES, LEFT_SHARE * len(left)):
            evidence = f"{int(left.sum())} of {len(left)} are left where every image is allowed"
            limit = f"{MIN_EXAMPLES} examples and {LEFT_SHARE:.0%} of those attacked"
            observed.append(
                report_symptom(symptoms.UNCONSTRAINED_FAILURE, run, left, evidence, limit)
            )
    return observed if pairs else None


def _check_budget_use(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Find attacks of fixed budget that hardly moved the images that survive.

    Ensembles and most libraries return the clean image where they found nothing, which says nothing
    about their iterates.
    """
    observed, looked = [], 0
    for run in runs:
        cell = run.cell
        if cell.budget != "fixed" or cell.norm == "l0" or "parts" in cell.traits:
            continue
        looked += 1
        moved, allowed = run.records[cell.norm], cell.eps
        if cell.norm == "linf":  # no image need be farther than that from the walls of the box
            allowed = min(allowed, 0.5)
        left = run.left & (run.records["violation"].astype(str) == "")
        if cell.implementation != "bench":
            left &= moved > 0
        short = left & (moved < USED_SHARE * allowed)
        if are_enough(short, left) or (short.any() and short.sum() == left.sum()):
            evidence = (
                f"{int(short.sum())} of the {int(left.sum())} left standing were moved by less "
                f"than half of what is allowed, by {moved[short].median() / cell.eps:.2g} of eps "
                "in the median"
            )
            limit = f"{MIN_EXAMPLES} examples and {MIN_SHARE:.0%} of those left standing"
            limit += ", or all of them"
            observed.append(report_symptom(symptoms.UNUSED_BUDGET, run, short, evidence, limit))
    return observed if looked else None


def _compare_distances(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Compare each minimum-norm search with all other attacks that broke the same images."""
    observed, looked = [], 0

    def aim(run: AttackedCell) -> Hashable:
        return run.place[:-1]

    for group in group_cells(runs, aim):
        searches = {run.cell.attack: run for run in group if run.cell.budget == "minimum"}
        for attack, run in searches.items():
            others = [each for each in group if each.cell.attack != attack]
            if not others:
                continue
            looked += 1
            nearest = pd.concat([_distances(other) for other in others], axis=1).min(axis=1)
            own = run.records["distance"].fillna(math.inf)
            beaten_by = nearest.reindex(own.index).fillna(math.inf)
            which = beaten_by < NEARER_SHARE * own
            if which.sum() >= max(MIN_EXAMPLES, SEARCH_SHARE * len(own)):
                ratio = (own[which] / beaten_by[which]).median()
                median = f"is {ratio:.2f} times as far" if ratio < math.inf else "found nothing"
                evidence = (
                    f"{int(which.sum())} of {len(own)} images were broken by another run at less "
                    f"than {NEARER_SHARE:.0%} of the distance that it reports; in the median it "
                    f"{median}"
                )
                limit = f"{MIN_EXAMPLES} examples and {SEARCH_SHARE:.0%} of those attacked"
                symptom = report_symptom(symptoms.BEATEN_SEARCH, run, which, evidence, limit)
                observed.append(dataclasses.replace(symptom, eps=math.nan))
    return observed if looked else None


def _distances(run: AttackedCell) -> "pd.Series[float]":
    """Distances of the images that broke the model; infinite where none did."""
    far: pd.Series[float] = run.records[run.cell.norm]
    if run.cell.budget == "minimum":
        return run.records["distance"].fillna(math.inf)
    return far.where(run.broken, math.inf)


def _check_claims(runs: AttackedCells, kind: Symptom, stop: str) -> list[ObservedSymptom] | None:
    """Find successes that the attack saw and the judge did not confirm in what it returned.

    Random models are left out, and searches, which return the nearest success.
    """
    watched = [
        run for run in runs if run.cell.stop == stop and run.white and _is_deterministic(run)
    ]
    observed = []
    for run in watched:
        claimed = run.records["first_success_step"] >= 0
        sound = run.records["violation"].astype(str) == ""
        lost = claimed & ~run.broken & sound
        if are_enough(lost, lost | run.broken):
            text = f"{int(lost.sum())} of {int((lost | run.broken).sum())} successes are not there"
            observed.append(
                report_symptom(
                    kind, run, lost, f"{text} when the model is asked again", LOST_THRESHOLD
                )
            )
    return observed if watched else None


def _is_deterministic(run: AttackedCell) -> bool:
    drawn = max(run.cell.samples, run.cell.predictions) > 1
    return not drawn and not run.records["distance"].notna().any()


def _check_rounding(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Find successes that are lost by rounding to 8 bits."""
    observed = []
    for run in runs:
        if run.cell.goal == "untargeted":
            held = ~metrics.accepted_answers(run.records, "adv_pred_8bit")
        else:
            held = run.records["adv_pred_8bit"] == run.records["target"]
        lost = run.broken & ~held
        if are_enough(lost, run.broken):
            evidence = f"{int(lost.sum())} of {int(run.broken.sum())} successes go with rounding"
            observed.append(
                report_symptom(symptoms.LOST_BY_ROUNDING, run, lost, evidence, LOST_THRESHOLD)
            )
    return observed if runs else None


CHECKS: dict[str, tuple[Check, str]] = {
    symptoms.SATURATED_LOSS.name: (
        lambda runs, _: _check_saturation(runs),
        "no attack was run with cross-entropy",
    ),
    symptoms.UNCONSTRAINED_FAILURE.name: (
        lambda runs, _: _check_unit_cube(runs),
        "no iterated gradient attack was run at L-inf eps 1",
    ),
    symptoms.MORE_STEPS_WORSE.name: (
        lambda runs, _: _compare_settings(runs, symptoms.MORE_STEPS_WORSE, "steps"),
        "no attack was run with more steps beside itself with fewer",
    ),
    symptoms.MORE_RESTARTS_WORSE.name: (
        lambda runs, _: _compare_settings(runs, symptoms.MORE_RESTARTS_WORSE, "restarts"),
        "no attack was run with more restarts beside itself with fewer",
    ),
    symptoms.UNUSED_BUDGET.name: (
        lambda runs, _: _check_budget_use(runs),
        "no attack of fixed budget was run",
    ),
    symptoms.BEATEN_SEARCH.name: (
        lambda runs, _: _compare_distances(runs),
        "no search for the least distance was run beside another attack",
    ),
    symptoms.LARGER_EPS_WORSE.name: (
        lambda runs, _: _compare_eps(runs),
        "no iterated attack was run at several eps",
    ),
    symptoms.NOISE_AS_STRONG.name: (
        lambda runs, _: _compare_with_noise(runs),
        "no noise was run beside a gradient attack",
    ),
    symptoms.ONE_STEP_STRONGER.name: (
        lambda runs, _: _compare_with_one_step(runs),
        "no attack of one gradient was run beside an iterated one",
    ),
    symptoms.BLACK_BOX_STRONGER.name: (
        lambda runs, _: _compare_with_black_box(runs),
        "no attack by scores, by decisions or by transfer was run beside a white-box one",
    ),
    symptoms.TRANSFER_FAILURE.name: (
        _compare_with_source,
        "no attack crafted on another model stands alone with what it did there beside it",
    ),
    symptoms.LOST_SUCCESS.name: (
        lambda runs, _: _check_claims(runs, symptoms.LOST_SUCCESS, "first-success"),
        "no attack was run that bench stops at its first success",
    ),
    symptoms.SILENT_SUCCESS.name: (
        lambda runs, _: _check_claims(runs, symptoms.SILENT_SUCCESS, "never"),
        "no attack was run that bench watches and lets go on after a success",
    ),
    symptoms.LOST_BY_ROUNDING.name: (lambda runs, _: _check_rounding(runs), "no attack was run"),
}
"""Symptom -> its check, and why it could not be checked where that returns None."""
