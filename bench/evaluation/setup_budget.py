"""Bound what is found out about a model before a single attack, by its passes.

A pass is a forward with its backward of one image; a forward alone counts as half of one. Set-up
takes at most LEAST_PASSES for each image or MAX_SHARE of the attack, whichever is more. Preflight
comes first. What is left goes to an accelerated model where the attack is long enough to earn it
back, then to timing its layouts, then to timing the floor. Passes are counted and not timed, and
as if nothing were known of the model from earlier calls, so that one call always has the same
records.
"""

from typing import NamedTuple

from bench.engine import timing
from bench.engine.acceleration import accelerate, calibration
from bench.models.preflight import checks, preprocessing

LEAST_PASSES = 3.0
"""Passes of each image that set-up may take, however short the attack."""
MAX_SHARE = 0.05
"""Share of the attack's passes that it may take."""
MAX_COST = 0.25
"""Share of the attack's passes that comparing an accelerated model may cost: on nets of real size
it saves no more."""


class SetupPlan(NamedTuple):
    """What is done before an attack."""

    accelerates: bool
    """Whether an accelerated model is compared with the model."""
    calibrates: bool
    """Whether layouts and rows a pass may be timed."""
    floor_calls: int
    """Calls by which the floor is timed; 0 if it is not."""


def plan_setup(n: int, ahead: float, rows: int, accelerable: bool, models: int = 1) -> SetupPlan:
    """Decide what the passes of an attack leave room for.

    Args:
        n: Images.
        ahead: Passes of the attack at most, of all images and eps.
        rows: Images that it passes at once.
        accelerable: Whether the attack could use an accelerated model.
        models: Models that are checked: the judged one, and a source.

    Returns:
        What is done.
    """
    left = max(LEAST_PASSES * n, MAX_SHARE * ahead) - models * count_check_passes(n)
    compared = accelerate.count_probe_passes(min(n, accelerate.PROBED), rows)
    accelerates = accelerable and compared <= min(left, MAX_COST * ahead)
    left -= compared if accelerates else 0.0
    timed = compared + calibration.TIMINGS * rows  # the two other layouts are compared as well
    calibrates = accelerates and calibration.is_worth_timing(rows, ahead) and timed <= left
    left -= timed if calibrates else 0.0
    calls = int(left / timing.count_floor_passes(rows, 0)) - 1  # the first call warms up
    calls = min(calls, timing.MAX_CALLS) if calls >= timing.MIN_CALLS else 0
    return SetupPlan(accelerates, calibrates, calls)


def count_check_passes(n: int) -> float:
    """Count the passes by which a sound model is checked.

    Args:
        n: Images.

    Returns:
        Those of preflight and those that the judge compares two layouts by.
    """
    first = min(n, checks.N_IMAGES)
    spread = preprocessing.count_other_images(n, first)
    forwards, backwards = 3 * first + spread, first
    layouts = first if n > first else first / 2  # else one of the two is the clean pass
    return (forwards + backwards + 1) / 2 + layouts  # one more counts the bytes of a row
