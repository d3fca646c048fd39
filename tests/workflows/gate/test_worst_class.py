"""The gate on the worst class: equal to a pivot over the outcomes, decided by enough images."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.analysis.snapshot import ExampleClasses, Snapshot
from bench.core.validation import Validator
from bench.evaluation import metrics
from bench.suite import thresholds
from bench.workflows.gate.check import check_against_baseline
from bench.workflows.gate.verdicts import Check, Verdict
from bench.workflows.gate.worst_class import compare_worst_classes

Make = Callable[..., Snapshot]
N, NAMES = 200, ["cat", "dog", "owl", "elk"]
CELL = ("net", "walk", 0.1)
EVEN = ExampleClasses(np.repeat(np.arange(4), N // 4), NAMES)
"""Four classes of 50 images: the examples 0-49 are cats, 50-99 dogs and so on."""


def check(
    before: Snapshot,
    now: Snapshot,
    *texts: str,
    classes: ExampleClasses | None = EVEN,
) -> Check:
    limits = thresholds.override_thresholds(
        texts or ["worst_class_robust_accuracy:-3pp"],
        thresholds.read_thresholds(Validator(""), {}, ["net"], {}),
    )
    return check_against_baseline(before, now, limits, (), classes)


def select(result: Check, gate: str = "worst class") -> list[Verdict]:
    return [verdict for verdict in result.verdicts if verdict.gate == gate]


def robust(*counts: int, size: int = 50) -> list[bool]:
    """The first images of each class are robust, as many as counted."""
    return [index < k for k in counts for index in range(size)]


def test_a_model_weak_in_one_class_alone_fails_this_threshold_and_passes_the_overall_one(
    make: Make,
) -> None:
    before = make({CELL: robust(40, 40, 40, 40)}, n=N)
    now = make({CELL: robust(45, 24, 45, 45)}, n=N)
    result = check(before, now)
    (overall,) = select(result, "robust accuracy")
    (worst,) = select(result)
    assert (overall.outcome, worst.outcome, result.exit_code) == ("passed", "regressed", 1)
    low, high = (100 * each for each in metrics.rate(24, 50)[3:])
    assert worst.sentence.startswith(
        f"class dog is the worst, 24 of 50 robust, 48.0 % [{low:.1f}, {high:.1f}]; "
        "in the baseline class cat, 40 of 50 (-32.0 pp); class dog lost 16, gained 0, "
        "more than the 3 pp allowed and beyond chance"
    )
    assert worst.change is not None
    assert worst.change.lost == tuple(range(74, 90))
    assert check(before, now, "robust_accuracy:-1pp").exit_code == 0


def test_a_fall_within_the_threshold_passes_as_a_change_or_as_a_share(make: Make) -> None:
    before = make({CELL: robust(50, 40, 50, 50)}, n=N)
    now = make({CELL: robust(50, 20, 50, 50)}, n=N)
    for text, code in [("-40pp", 0), ("-39pp", 1), ("-50%", 0), ("-49%", 1)]:
        texts = (f"worst_class_robust_accuracy:{text}", "robust_accuracy:-50pp")
        assert check(before, now, *texts).exit_code == code


def test_a_loss_of_a_class_that_is_not_the_worst_does_not_count(make: Make) -> None:
    before = make({CELL: robust(10, 50, 50, 50)}, n=N)
    (verdict,) = select(check(before, make({CELL: robust(10, 30, 50, 50)}, n=N)))
    assert verdict.outcome == "passed"
    assert "class cat is the worst, 10 of 50" in verdict.sentence


def test_a_gain_of_the_worst_class_is_an_improvement(make: Make) -> None:
    before = make({CELL: robust(10, 40, 40, 40)}, n=N)
    (verdict,) = select(check(before, make({CELL: robust(45, 40, 40, 40)}, n=N)))
    assert verdict.outcome == "improved"
    assert "class dog is the worst, 40 of 50" in verdict.sentence
    assert (
        "in the baseline class cat, 10 of 50 (+60.0 pp); class cat lost 0, gained 35"
        in verdict.sentence
    )


def test_a_class_that_loses_every_correct_image_is_the_worst(make: Make) -> None:
    before = make({CELL: robust(40, 40, 40, 40)}, n=N)
    now = make({CELL: robust(40, 40, 40, 0)}, clean={"net": robust(50, 50, 50, 0)}, n=N)
    (verdict,) = select(check(before, now))
    assert verdict.outcome == "regressed"
    assert verdict.sentence.startswith("class elk is the worst, 0 of 50 robust")


def test_a_class_that_the_baseline_never_classifies_correctly_is_left_out(make: Make) -> None:
    clean = {"net": robust(50, 50, 50, 0)}
    before = make({CELL: robust(40, 40, 40, 0)}, clean=clean, n=N)
    (verdict,) = select(check(before, make({CELL: robust(40, 10, 40, 0)}, clean=clean, n=N)))
    assert verdict.outcome == "regressed"
    assert verdict.sentence.startswith("class dog is the worst")


def test_a_class_of_few_images_neither_decides_nor_hides_the_others(make: Make) -> None:
    sizes = [100, 91, 6, 3]
    classes = ExampleClasses(np.repeat(np.arange(4), sizes), NAMES)
    before = [True] * 191 + [False] * 9
    fewer = [True] * 150 + [False] * 50
    (verdict,) = select(check(make({CELL: before}, n=N), make({CELL: fewer}, n=N), classes=classes))
    assert verdict.outcome == "regressed"
    assert verdict.sentence.startswith("class dog is the worst, 50 of 91")
    assert verdict.sentence.endswith("2 classes of fewer than 9 images left out")


def test_without_a_class_of_enough_images_nothing_is_judged(make: Make) -> None:
    classes = ExampleClasses(np.arange(N) % 50, None)
    snap = make({CELL: [True] * N}, n=N)
    (verdict,) = select(check(snap, snap, classes=classes))
    assert verdict.outcome == "not judged"
    assert verdict.sentence == "no class has at least 13 images"


def test_the_p_value_grows_with_the_classes_that_the_worst_is_selected_from(make: Make) -> None:
    """Ten lost of ten: 1 in 1,024 by chance; of 3 comparisons one has a smaller p value."""
    found = {}
    for n_classes in (2, 8):
        classes = ExampleClasses(np.arange(N) % n_classes, None)
        members = np.flatnonzero(classes.labels == 1)
        now = np.ones(N, dtype=bool)
        now[members[:10]] = False
        (verdict,) = select(check(make({CELL: [True] * N}, n=N), make({CELL: now}, n=N),
                                  classes=classes))  # fmt: skip
        assert verdict.change is not None
        found[n_classes] = verdict.change.p_lost
    assert found == {2: pytest.approx(2 * 2 / 1024), 8: pytest.approx(2 * 8 / 1024)}


def test_the_worst_case_over_the_attacks_at_an_eps_has_a_verdict(make: Make) -> None:
    other = ("net", "leap", 0.1)
    before = make({CELL: robust(50, 50, 50, 50), other: robust(50, 50, 50, 50)}, n=N)
    low = [True] * 38 + [False] * 12 + [True] * 150
    high = [False] * 12 + [True] * 188
    result = check(before, make({CELL: low, other: high}, n=N))
    last = select(result)[-1]
    assert last.where == "net, worst case (linf, 2 attacks), eps 0.1"
    assert last.sentence.startswith("class cat is the worst, 26 of 50 robust")
    assert last.outcome == "regressed"


def test_a_single_attack_at_an_eps_is_not_judged_twice(make: Make) -> None:
    snap = make({CELL: robust(50, 50, 50, 50), ("net", "walk", 0.2): robust(9, 9, 9, 9)}, n=N)
    assert [verdict.attack for verdict in select(check(snap, snap))] == ["walk", "walk"]


def test_without_a_threshold_no_class_is_compared(make: Make) -> None:
    before = make({CELL: robust(50, 50, 50, 50)}, n=N)
    now = make({CELL: robust(50, 0, 50, 50)}, n=N)
    assert select(check(before, now, "clean_accuracy:-1pp")) == []


def test_a_targeted_attack_alone_is_not_judged(make: Make) -> None:
    snap = make({CELL: robust(50, 50, 50, 50)}, n=N, settings={"goal": "targeted"})
    (verdict,) = select(check(snap, snap))
    assert (verdict.outcome, verdict.where) == ("not judged", "net")


def test_other_examples_are_compared_in_no_class(make: Make) -> None:
    snap = make({CELL: robust(50, 50, 50, 50)}, n=N)
    data = dataclasses.replace(snap.data, fingerprint="other")
    assert all(
        verdict.change is None
        for verdict in check(dataclasses.replace(snap, data=data), snap).verdicts
    )


def test_a_loss_of_one_class_that_is_enough_to_fail_is_stated(make: Make) -> None:
    snap = make({CELL: robust(40, 50, 50, 50)}, n=N)
    texts = ("worst_class_robust_accuracy:-3pp", "robust_accuracy:-50pp")
    power = check(snap, snap, *texts).power
    (k,) = (k for k in range(50) if f"The loss of {k} images of one class may" in power)
    fewer, enough = (make({CELL: robust(40 - lost, 50, 50, 50)}, n=N) for lost in (k // 2, k))
    assert check(snap, fewer, *texts).exit_code == 0
    assert check(snap, enough, *texts).exit_code == 1


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), n_classes=st.integers(1, 6))
def test_the_figures_are_those_of_a_pivot_over_the_outcomes(seed: int, n_classes: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(n_classes, size=N)
    clean = pd.Series(generator.random(N) < 0.9)
    sides = [clean & (generator.random(N) < 0.3 + 0.6 * generator.random()) for _ in range(2)]
    worst = compare_worst_classes(*sides, clean, ExampleClasses(labels, None), 0.01)
    assert not isinstance(worst, str)
    for side, index, name in zip(
        sides, (worst.before, worst.after), ("before", "after"), strict=True
    ):
        pivot: Any = pd.DataFrame({"label": labels, "robust": side}).groupby("label")["robust"]
        assert pivot.mean().min() == pivot.mean()[index]
        rate = getattr(worst.rates[index], name)
        assert rate == metrics.rate(int(pivot.sum()[index]), int(pivot.size()[index]))
    judged = worst.outcomes
    assert len(judged[0]) == (labels == worst.judged).sum()
    own_fall = judged[0].mean() - judged[1].mean()
    assert abs(own_fall) >= abs(float(worst.fell)) - 1e-12
    assert own_fall * float(worst.fell) >= 0


def test_draws_of_the_same_model_seldom_fail(make: Make) -> None:
    """No true change: at most alpha = 1 % of the checks may be red, here none of 60 is expected."""
    generator = np.random.default_rng(0)
    hard = generator.random(N) * 0.6 + 0.2

    def draw() -> Sequence[bool]:
        return [bool(value) for value in generator.random(N) < hard]

    red = sum(
        check(make({CELL: draw()}, n=N), make({CELL: draw()}, n=N)).exit_code == 1
        for _ in range(60)
    )
    assert red <= 2
