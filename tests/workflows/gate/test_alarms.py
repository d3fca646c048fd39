"""How often a check is red: by chance under 1 %, and where 3 points are lost over 95 %.

Simulated as attacks behave: an example is robust with a chance of its own (most always or never,
those at the boundary now and then), drawn anew by every seed. In eight runs of PGD-20, APGD-20 and
noise on LeNet, 500 digits, that differed in their seed alone, 0.5 % of the examples of a cell were
lost from one run to another, on average, and as many gained (TYPICAL); in the cell that varied
most, 1.1 % (MOST). Alarms are counted with 2.8 %, too (MUCH).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from bench.analysis.snapshot import Snapshot
from bench.core.validation import Validator
from bench.suite import thresholds
from bench.workflows.gate import check, power

Make = Callable[..., Snapshot]
Chances = npt.NDArray[np.float64]
LIMITS = thresholds.read_thresholds(Validator(""), {}, [], {})
EPS = (0.05, 0.1, 0.2)
ATTACKS = ("fast", "walk")
TYPICAL, MOST, MUCH = 1 / 35, 1 / 15, 1 / 6
"""Shares of undecided examples: their chances are uniform, so that from one run to another a sixth
of them is lost and a sixth gained."""


def chances(n: int, undecided: float, generator: np.random.Generator) -> Chances:
    """For each cell and example, how often it is robust, (6, n)."""
    sure = generator.random((len(EPS) * len(ATTACKS), n)) < 0.5
    between = generator.random(sure.shape)
    return np.where(generator.random(sure.shape) < undecided, between, sure)


def drawn(make: Make, robust: Chances, generator: np.random.Generator) -> Snapshot:
    outcomes = generator.random(robust.shape) < robust
    keys = [("net", attack, eps) for attack in ATTACKS for eps in EPS]
    n = robust.shape[1]
    return make(dict(zip(keys, outcomes, strict=True)), n=n)


def red(make: Make, before: Chances, after: Chances, generator: np.random.Generator) -> bool:
    sides = drawn(make, before, generator), drawn(make, after, generator)
    return check.check_against_baseline(*sides, LIMITS).exit_code == 1


@pytest.mark.parametrize(("n", "undecided"), [(200, MUCH), (1000, MUCH), (1000, TYPICAL)])
def test_with_nothing_changed_but_the_seed_under_1_percent_of_checks_are_red(
    make: Make, n: int, undecided: float
) -> None:
    generator = np.random.default_rng(n)
    robust = chances(n, undecided, generator)
    alarms = sum(red(make, robust, robust, generator) for _ in range(200))
    assert alarms < 2


def test_the_paired_test_and_not_the_threshold_keeps_the_alarms_away(make: Make) -> None:
    """On 200 examples the seed alone moves most checks beyond one point somewhere."""
    generator = np.random.default_rng(1)
    robust = chances(200, MUCH, generator)
    beyond = 0
    for _ in range(100):
        sides = drawn(make, robust, generator), drawn(make, robust, generator)
        result = check.check_against_baseline(*sides, LIMITS)
        beyond += bool(result.select("lost, not proven"))
    assert beyond > 50


def test_a_loss_of_3_points_on_1000_examples_in_one_cell_is_red_over_95_percent(
    make: Make,
) -> None:
    generator = np.random.default_rng(2)
    robust = chances(1000, TYPICAL, generator)
    worse = robust.copy()
    worse[3, np.flatnonzero(robust[3] == 1)[:30]] = 0  # 30 that stood fall, the rest is as before
    seen = sum(red(make, robust, worse, generator) for _ in range(100))
    assert seen > 95


def test_a_loss_of_3_points_in_every_cell_is_red_over_95_percent_with_noise(
    make: Make,
) -> None:
    """A model trained anew: 1.5 % of the examples are lost and as many gained beside the loss."""
    generator = np.random.default_rng(3)
    robust = chances(1000, MOST, generator)
    seen = 0
    for _ in range(100):
        worse = robust.copy()
        for row in worse:
            stood = generator.permutation(np.flatnonzero(row == 1))
            row[stood[: 30 + 15]] = 0
            row[generator.permutation(np.flatnonzero(row == 0))[:15]] = 1
        seen += red(make, robust, worse, generator)
    assert seen > 95


def test_a_loss_of_1_8_points_everywhere_that_no_cell_proves_is_red_over_95_percent(
    make: Make,
) -> None:
    """Other examples in every cell: all cells together count what each of them loses."""
    generator = np.random.default_rng(4)
    robust = chances(1000, MOST, generator)
    seen = alone = 0
    for _ in range(50):
        worse = robust.copy()
        for row in worse:
            stood = generator.permutation(np.flatnonzero(row == 1))
            row[stood[: 18 + 15]] = 0
            row[generator.permutation(np.flatnonzero(row == 0))[:15]] = 1
        sides = drawn(make, robust, generator), drawn(make, worse, generator)
        result = check.check_against_baseline(*sides, LIMITS)
        seen += result.exit_code == 1
        alone += any(verdict.eps for verdict in result.select("regressed"))
    assert seen > 47
    assert alone < 25


def test_cells_that_change_together_give_no_alarm_by_chance(make: Make) -> None:
    """The same examples change in all cells: six cells prove no more than one of them."""
    generator = np.random.default_rng(5)
    robust = chances(1000, MUCH, generator)[:1]
    alarms = 0
    for _ in range(100):
        sides = []
        for _ in range(2):
            outcomes = generator.random(robust.shape[1]) < robust[0]
            keys = [("net", attack, eps) for attack in ATTACKS for eps in EPS]
            sides.append(make(dict.fromkeys(keys, outcomes), n=len(outcomes)))
        alarms += check.check_against_baseline(*sides, LIMITS).exit_code == 1
    assert alarms < 2


@pytest.mark.parametrize(("n", "family"), [(100, 1), (200, 7), (1000, 50), (10000, 113)])
def test_the_smallest_loss_that_is_announced_is_the_smallest_that_turns_red(
    make: Make, n: int, family: int
) -> None:
    keys = [("net", "walk", (eps + 1) / 1000) for eps in range(family - 1)] or [("net", "w", 0.1)]
    even = thresholds.override_thresholds(["clean_accuracy:-1pp"], LIMITS)
    stood = np.arange(n) < n // 2
    count = len(keys) + 1 + (len(keys) > 1)  # with the clean accuracy and all cells together
    least = power.find_smallest_detectable_loss(n, n // 2, n // 100, count, thresholds.ALPHA)
    assert least is not None
    before = make(dict.fromkeys(keys, stood), n=n)
    for lost, code in ((least - 1, 0), (least, 1)):
        fewer = stood & (np.arange(n) >= lost)
        now = make(dict.fromkeys(keys, stood) | {keys[0]: fewer}, n=n)
        result = check.check_against_baseline(before, now, even)
        assert result.exit_code == code
        assert f"No loss of fewer than {least} of {n} examples" in result.power


def test_too_few_examples_are_reported_as_too_few(make: Make) -> None:
    snap = make({("net", "walk", 0.1): [True] * 5}, n=5)
    result = check.check_against_baseline(snap, snap, LIMITS)
    assert "No loss at all can turn this check red: 5 examples are too few" in result.power


QUIET = (0.378, 0.382, 0.403)
LOADED = (0.434, 0.377, 0.465, 0.421, 0.398, 0.393)
SLOWED = (0.623, 0.685, 0.604)
"""Floor ratios of PGD-20 on LeNet, as recorded on two cores: alone, beside two busy loops, and with
every turn of the engine made 1.5 times as long; about 2 s of the processor's time each."""


@pytest.mark.parametrize(("ratios", "code"), [(QUIET, 0), (LOADED, 0), (SLOWED, 1)])
def test_throughput_is_red_for_a_slower_engine_and_not_for_a_busy_machine(
    make: Make, ratios: tuple[float, ...], code: int
) -> None:
    """Judged as if the processor had been free: else no verdict is given at all."""
    cells = {("net", "walk", 0.1): [True] * 100}
    for before in QUIET:
        for now in ratios:
            sides = make(cells, ratio=before), make(cells, ratio=now)
            assert check.check_against_baseline(*sides, LIMITS).exit_code == code
