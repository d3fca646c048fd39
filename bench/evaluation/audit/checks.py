"""Signs of failed attacks in the records of a run alone: attacks held against each other.

Each check looks through the finished cells of one model; the model itself is not needed.
Source: Carlini et al. 2019, section 5, https://arxiv.org/abs/1902.06705; Athalye et al. 2018,
section 3.1, https://arxiv.org/abs/1802.00420
"""

import dataclasses
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
"""Share of the survivors that the model was certain of. Measured on 300 MNIST images and a LeNet
that is certain of a quarter of them: 36 of the 43 that FGSM at 0.3 leaves, where the margin leaves
13; 72 of the 290 that it leaves at 0.05, where the margin leaves the same."""
USED_SHARE = 0.5
"""Of its eps, what an attack of fixed budget moves an image by at least, if it tries."""
NEARER_SHARE = 0.9
"""Of a search's distance, below which another's success shows the search to be far off: two good
searches differ by a few per cent on many images."""
SEARCH_SHARE = 0.1
"""Share of the attacked examples on which a search may be far off by bad luck."""
EXACT_LOSSES = {"margin", "logit-difference", "label-and-target", "dlr", "targeted dlr"}
"""Losses on logits, which do not saturate."""
VARIABLE_TRAITS = {"steps", "restarts", "alpha"}
"""Traits in which two runs of one attack may differ and still be the same attack."""

AT = operator.attrgetter("place")
ALL_WHITE_BOX = "all white-box attacks together"

Check = Callable[[AttackedCells, AttackedCells], list[ObservedSymptom] | None]
"""(finished runs on a model, those on all) -> signs; None if there was nothing to look at."""


# ------------------------------------------------------------------------- one attack, told twice


def _other_settings(runs: AttackedCells, kind: Symptom, field: str) -> list[ObservedSymptom] | None:
    """The same attack with more of `field` against itself with less."""
    known = [run for run in runs if run.cell.name and run.cell.traits.get(field, "").isdecimal()]
    found, pairs = [], 0
    for group in group_cells(known, _same_attack):
        for less, more in itertools.permutations(group, 2):
            had, has = _settings(less), _settings(more)
            others = all(had[key] == has[key] for key in had if key != field)
            if had[field] < has[field] and others:
                pairs += 1
                found += report_if_weaker(kind, more, less)
    return found if pairs else None


def _settings(run: AttackedCell) -> dict[str, int]:
    told = {key: run.cell.traits.get(key, "") for key in ("steps", "restarts")}
    return {key: int(text) if text.isdecimal() else 1 for key, text in told.items()}


def _same_attack(run: AttackedCell) -> Hashable:
    cell = run.cell
    traits = {key: value for key, value in cell.traits.items() if key not in VARIABLE_TRAITS}
    rest = cell.name, cell.source, cell.precision, cell.samples, cell.stop
    return *run.place, *rest, json.dumps(traits, sort_keys=True)


def _losses(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """The same attack with a loss that saturates against one that does not."""
    found, pairs = [], 0
    known = [run for run in runs if run.white and run.cell.name]

    def but_for_loss(run: AttackedCell) -> Hashable:
        traits = {key: value for key, value in run.cell.traits.items() if key != "loss"}
        return *run.place, run.cell.name, run.cell.stop, json.dumps(traits, sort_keys=True)

    for group in group_cells(known, but_for_loss):
        for exact, rounded in itertools.permutations(group, 2):
            told = exact.cell.traits.get("loss"), rounded.cell.traits.get("loss")
            if told == ("margin", "cross-entropy"):
                pairs += 1
                found += report_if_weaker(symptoms.SATURATED_LOSS, rounded, exact)
    return found if pairs else None


def _certain(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Images that survive all white-box attacks, which follow cross-entropy alone, where the clean
    confidence rounds to 1: the gradient starts there without the label's own share, or vanishes.
    What a loss on logits leaves standing at the same place is cleared of it."""
    found, looked = [], 0
    leaving = [run for run in runs if run.white and run.cell.goal == "untargeted"]
    for group in group_cells(leaving, AT):
        rounded = [run for run in group if run.cell.traits.get("loss") == "cross-entropy"]
        if not rounded:
            continue
        looked += 1
        exact = [run for run in group if run.cell.traits.get("loss") in EXACT_LOSSES]
        exact += [run for run in group if "parts" in run.cell.traits]
        together = _together(group) if len(group) > 1 else group[0]
        left = ~together.broken
        which = left & (rounded[0].records["clean_confidence"] == 1.0)
        if not exact and which.sum() >= max(MIN_EXAMPLES, CERTAIN_SHARE * left.sum()):
            told = (
                f"{int(which.sum())} of the {int(left.sum())} left standing have a clean "
                "confidence of exactly 1 in float32, where cross-entropy has lost its gradient"
            )
            limit = f"{MIN_EXAMPLES} examples and {CERTAIN_SHARE:.0%} of those left standing"
            found.append(report_symptom(symptoms.SATURATED_LOSS, together, which, told, limit))
    return found if looked else None


def _saturated(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Both signs of saturation that records hold; None if there was nothing for either."""
    seen = [each for each in (_losses(runs), _certain(runs)) if each is not None]
    return [sign for each in seen for sign in each] if seen else None


def _larger_eps(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """An attack at one eps against itself at the smaller one at which it broke most.

    One step may overshoot, noise may hit or miss, and what was crafted elsewhere promises nothing.
    """
    found, pairs = [], 0
    own = [run for run in runs if run.cell.threat_model.startswith(("white", "black-box, sc"))]
    several = [run for run in own if run.steps != 1]
    for group in group_cells(several, lambda run: (run.cell.attack, *run.place[:-1])):
        ordered = sorted(group, key=lambda run: run.cell.eps)
        for rank, larger in enumerate(ordered[1:], 1):
            pairs += 1
            found += report_if_weaker(
                symptoms.LARGER_EPS_WORSE, larger, find_strongest(ordered[:rank])
            )
    return found if pairs else None


# --------------------------------------------------------------------- one attack against another


def _noise(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Gradient attacks against noise of the same size, where noise leaves them something to do."""
    found, pairs = [], 0
    for group in group_cells(runs, AT):
        random = [run for run in group if run.unasking]
        if not random:
            continue
        floor = find_strongest(random)
        for run in (run for run in group if run.white):
            pairs += 1
            hit, n = int(floor.broken.sum()), len(floor.broken)
            split = metrics.mcnemar_test(run.broken, floor.broken)
            helped = split.only_first > 2 * split.only_second
            helped = helped or (
                split.p_value < SIGNIFICANCE_LEVEL and split.only_first > split.only_second
            )
            if MIN_EXAMPLES <= hit <= n - MIN_EXAMPLES and not helped:
                limit = f"{MIN_EXAMPLES} broken by noise and {MIN_EXAMPLES} left; "
                limit += f"no better by p < {SIGNIFICANCE_LEVEL:g}"
                found.append(
                    report_comparison(symptoms.NOISE_AS_STRONG, run, floor, floor.broken, limit)
                )
    return found if pairs else None


def _one_step(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Iterated attacks against the best of one gradient."""
    found, pairs = [], 0
    for group in group_cells([run for run in runs if run.white], AT):
        single = [run for run in group if not run.iterated]
        for run in (run for run in group if run.iterated and single):
            pairs += 1
            found += report_if_weaker(symptoms.ONE_STEP_STRONGER, run, find_strongest(single))
    return found if pairs else None


def _black_box(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """All white-box attacks together against each attack that sees less. An ensemble says nothing
    here: it may hold the very attack by scores that it is held against."""
    found, pairs = [], 0
    for group in group_cells(runs, AT):
        white = [run for run in group if run.white and "parts" not in run.cell.traits]
        for run in (run for run in group if run.black and white):
            pairs += 1
            together = _together(white)
            new = run.broken & ~together.broken
            many = "score" in run.cell.threat_model and new.sum() >= max(
                MIN_EXAMPLES, NEW_SHARE * len(new)
            )
            if many or is_stronger(run, together):
                newly = f"by scores also {MIN_EXAMPLES} and {NEW_SHARE:.0%} newly broken"
                limit = f"{STRONGER_THRESHOLD}; {newly}"
                found.append(
                    report_comparison(symptoms.BLACK_BOX_STRONGER, together, run, new, limit)
                )
    return found if pairs else None


def _together(runs: AttackedCells) -> AttackedCell:
    """Several attacks as one, which breaks what any of them breaks."""
    broken = runs[0].broken
    for run in runs[1:]:
        broken = broken | run.broken
    return runs[0]._replace(
        cell=dataclasses.replace(runs[0].cell, attack=ALL_WHITE_BOX), broken=broken
    )


def _transfer(runs: AttackedCells, everywhere: AttackedCells) -> list[ObservedSymptom] | None:
    """Attacks crafted on another model, beside what the same broke there; `everywhere` are the
    runs on all models. None where each is accompanied by an attack that sees the model."""
    seen = {run.place for run in runs if run.white}
    there = {(run.cell.model, run.cell.family, run.place): run for run in everywhere if run.white}
    found, pairs = [], 0
    for run in (run for run in runs if run.cell.threat_model == "black-box, transfer"):
        origin = there.get((run.cell.source, run.cell.family, run.place))
        if origin is None or run.place in seen:
            continue
        pairs += 1
        ids = origin.broken.index.intersection(run.broken.index)
        lost = origin.broken.loc[ids] & ~run.broken.loc[ids]
        told = (
            f"{int(lost.sum())} of {int(origin.broken.loc[ids].sum())} that fool {run.cell.source}"
        )
        if are_enough(lost, origin.broken.loc[ids]):
            found.append(
                report_symptom(
                    symptoms.TRANSFER_FAILURE,
                    run,
                    lost,
                    f"{told} do not fool this model",
                    LOST_THRESHOLD,
                )
            )
    return found if pairs else None


# -------------------------------------------------------------------------------- one attack alone


def _whole_cube(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Iterated gradient attacks in the ball that holds every image."""
    found, pairs = [], 0
    for run in (run for run in runs if run.iterated and run.cell.goal == "untargeted"):
        classes = run.records["label"].nunique()
        if run.cell.norm != "linf" or run.cell.eps < 1 or classes < 2:
            continue
        pairs += 1
        left = ~run.broken
        if left.sum() >= max(MIN_EXAMPLES, LEFT_SHARE * len(left)):
            told = f"{int(left.sum())} of {len(left)} are left where every image is allowed"
            limit = f"{MIN_EXAMPLES} examples and {LEFT_SHARE:.0%} of those attacked"
            found.append(report_symptom(symptoms.UNCONSTRAINED_FAILURE, run, left, told, limit))
    return found if pairs else None


def _unused(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Attacks of fixed budget that left images standing and hardly moved them. An ensemble and most
    libraries return the clean image where nothing was found: that says nothing of the way there."""
    found, looked = [], 0
    for run in runs:
        cell = run.cell
        if cell.budget != "fixed" or cell.norm == "l0" or "parts" in cell.traits:
            continue
        looked += 1
        moved, allowed = run.records[cell.norm], cell.eps
        if cell.norm == "linf":  # no image need be farther than that from the walls of the box
            allowed = min(allowed, 0.5)
        left = ~run.broken & (run.records["violation"].astype(str) == "")
        if cell.implementation != "bench":
            left &= moved > 0
        short = left & (moved < USED_SHARE * allowed)
        if are_enough(short, left) or (short.any() and short.sum() == left.sum()):
            told = (
                f"{int(short.sum())} of the {int(left.sum())} left standing were moved by less "
                f"than half of what is allowed, by {moved[short].median() / cell.eps:.2g} of eps "
                "in the median"
            )
            limit = f"{MIN_EXAMPLES} examples and {MIN_SHARE:.0%} of those left standing"
            limit += ", or all of them"
            found.append(report_symptom(symptoms.UNUSED_BUDGET, run, short, told, limit))
    return found if looked else None


def _farther(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Each search for the least distance against everything else that broke the same images."""
    found, looked = [], 0

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
                times = f"{ratio:.2f} times as far" if ratio < math.inf else "found nothing"
                told = (
                    f"{int(which.sum())} of {len(own)} images were broken by another run at less "
                    f"than {NEARER_SHARE:.0%} of the distance that it reports; in the median it is "
                    f"{times}"
                )
                limit = f"{MIN_EXAMPLES} examples and {SEARCH_SHARE:.0%} of those attacked"
                sign = report_symptom(symptoms.BEATEN_SEARCH, run, which, told, limit)
                found.append(dataclasses.replace(sign, eps=math.nan))
    return found if looked else None


def _distances(run: AttackedCell) -> "pd.Series[float]":
    """How far the images are that broke the model; infinite where none did."""
    far: pd.Series[float] = run.records[run.cell.norm]
    if run.cell.budget == "minimum":
        return run.records["distance"].fillna(math.inf)
    return far.where(run.broken, math.inf)


def _claims(runs: AttackedCells, kind: Symptom, stop: str) -> list[ObservedSymptom] | None:
    """Successes that the attack saw on its way, and the judge did not find in what it returned; not
    of a model that answers at random, nor of a search, which returns the nearest it saw."""
    told = [run for run in runs if run.cell.stop == stop and run.white and _sure(run)]
    found = []
    for run in told:
        seen = run.records["first_success_step"] >= 0
        sound = run.records["violation"].astype(str) == ""
        lost = seen & ~run.broken & sound
        if are_enough(lost, lost | run.broken):
            text = f"{int(lost.sum())} of {int((lost | run.broken).sum())} successes are not there"
            found.append(
                report_symptom(
                    kind, run, lost, f"{text} when the model is asked again", LOST_THRESHOLD
                )
            )
    return found if told else None


def _sure(run: AttackedCell) -> bool:
    drawn = max(run.cell.samples, run.cell.predictions) > 1
    return not drawn and not run.records["distance"].notna().any()


def _rounded(runs: AttackedCells) -> list[ObservedSymptom] | None:
    """Successes that the image file would lose."""
    found = []
    for run in runs:
        after = run.records["adv_pred_8bit"]
        aim = "label" if run.cell.goal == "untargeted" else "target"
        held = (after == run.records[aim]) == (aim == "target")
        lost = run.broken & ~held
        if are_enough(lost, run.broken):
            told = f"{int(lost.sum())} of {int(run.broken.sum())} successes go with rounding"
            found.append(report_symptom(symptoms.LOST_BY_ROUNDING, run, lost, told, LOST_THRESHOLD))
    return found if runs else None


CHECKS: dict[str, tuple[Check, str]] = {
    symptoms.SATURATED_LOSS.name: (
        lambda runs, _: _saturated(runs),
        "no attack was run with cross-entropy",
    ),
    symptoms.UNCONSTRAINED_FAILURE.name: (
        lambda runs, _: _whole_cube(runs),
        "no iterated gradient attack was run at L-inf eps 1",
    ),
    symptoms.MORE_STEPS_WORSE.name: (
        lambda runs, _: _other_settings(runs, symptoms.MORE_STEPS_WORSE, "steps"),
        "no attack was run with more steps beside itself with fewer",
    ),
    symptoms.MORE_RESTARTS_WORSE.name: (
        lambda runs, _: _other_settings(runs, symptoms.MORE_RESTARTS_WORSE, "restarts"),
        "no attack was run with more restarts beside itself with fewer",
    ),
    symptoms.UNUSED_BUDGET.name: (
        lambda runs, _: _unused(runs),
        "no attack of fixed budget was run",
    ),
    symptoms.BEATEN_SEARCH.name: (
        lambda runs, _: _farther(runs),
        "no search for the least distance was run beside another attack",
    ),
    symptoms.LARGER_EPS_WORSE.name: (
        lambda runs, _: _larger_eps(runs),
        "no iterated attack was run at several eps",
    ),
    symptoms.NOISE_AS_STRONG.name: (
        lambda runs, _: _noise(runs),
        "no noise was run beside a gradient attack",
    ),
    symptoms.ONE_STEP_STRONGER.name: (
        lambda runs, _: _one_step(runs),
        "no attack of one gradient was run beside an iterated one",
    ),
    symptoms.BLACK_BOX_STRONGER.name: (
        lambda runs, _: _black_box(runs),
        "no attack by scores, by decisions or by transfer was run beside a white-box one",
    ),
    symptoms.TRANSFER_FAILURE.name: (
        _transfer,
        "no attack crafted on another model stands alone with what it did there beside it",
    ),
    symptoms.LOST_SUCCESS.name: (
        lambda runs, _: _claims(runs, symptoms.LOST_SUCCESS, "first-success"),
        "no attack was run that bench stops at its first success",
    ),
    symptoms.SILENT_SUCCESS.name: (
        lambda runs, _: _claims(runs, symptoms.SILENT_SUCCESS, "never"),
        "no attack was run that bench watches and lets go on after a success",
    ),
    symptoms.LOST_BY_ROUNDING.name: (lambda runs, _: _rounded(runs), "no attack was run"),
}
"""For each sign how it is looked for in the records of one model, and why it could not be."""
