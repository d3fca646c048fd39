"""The gate on threat models together: which cells are compared, and what turns red."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from bench.analysis.snapshot import Snapshot
from bench.suite import thresholds
from bench.suite.unions import ThreatUnion, UnionThreat
from bench.workflows.gate.check import check_against_baseline
from bench.workflows.gate.verdicts import Verdict

N = 100
UNION = "union of threat models"
LIMITS = thresholds.override_thresholds(
    ["union_robust_accuracy:-1pp"], thresholds.Thresholds(
        tuple((thresholds.Scope(), thresholds.parse_threshold(text))
              for text in thresholds.DEFAULTS)
    ),
)  # fmt: skip
SMALL = ThreatUnion(
    label="small",
    threats=(
        UnionThreat(norm="linf", eps=0.1, eps_text="0.1"),
        UnionThreat(norm="l2", eps=1.0, eps_text="1"),
    ),
)


def robust(*lost: int) -> list[bool]:
    """All examples but those in range(*lost)."""
    return [example not in range(*lost) for example in range(N)]


@pytest.fixture
def take(make: Callable[..., Snapshot]) -> Callable[..., Snapshot]:
    """(cells by (attack, eps)) -> the snapshot of one model; an attack's label begins with its
    norm."""

    def build(cells: Mapping[tuple[str, float], Sequence[bool] | str], **keys: Any) -> Snapshot:
        made = make({("net", *key): value for key, value in cells.items()}, n=N, **keys)
        tasks = [
            dataclasses.replace(
                task, settings={**task.settings, "norm": task.attack.split()[0],
                                "goal": "untargeted"},
            )
            for task in made.tasks
        ]  # fmt: skip
        return dataclasses.replace(made, tasks=tasks)

    return build


def judge(
    before: Snapshot,
    now: Snapshot,
    *chosen: ThreatUnion,
    limits: thresholds.Thresholds = LIMITS,
) -> list[Verdict]:
    found = check_against_baseline(before, now, limits, chosen).verdicts
    return [verdict for verdict in found if verdict.gate == UNION]


def test_losses_that_no_single_norm_shows_add_up_in_the_union(
    take: Callable[..., Snapshot],
) -> None:
    before = take({("linf PGD", 0.3): robust(0), ("l2 PGD", 2.0): robust(0)})
    now = take({("linf PGD", 0.3): robust(0, 12), ("l2 PGD", 2.0): robust(50, 62)})
    (verdict,) = judge(before, now)
    assert (verdict.outcome, verdict.model) == ("regressed", "net")
    assert verdict.attack == "all threat models (linf 0.3, l2 2)"
    assert verdict.change is not None
    assert (verdict.change.before, verdict.change.after) == (100, 76)
    assert verdict.change.lost == (*range(12), *range(50, 62))


def test_the_outcome_of_a_union_is_the_conjunction_of_its_cells(
    take: Callable[..., Snapshot],
) -> None:
    generator = np.random.default_rng(0)
    keys = [("linf PGD", 0.1), ("linf PGD", 0.3), ("l2 PGD", 1.0), ("l2 PGD", 2.0)]
    before, now = (
        {key: [bool(value) for value in generator.random(N) < 0.8] for key in keys}
        for _ in range(2)
    )
    everything, small = judge(take(before), take(now), SMALL)
    for verdict, members in ((everything, keys), (small, [keys[0], keys[2]])):
        assert verdict.change is not None
        sides = [np.all([side[key] for key in members], axis=0) for side in (before, now)]
        assert verdict.change.before == sides[0].sum()
        assert verdict.change.after == sides[1].sum()


def test_without_a_threshold_no_union_is_compared(take: Callable[..., Snapshot]) -> None:
    taken = take({("linf PGD", 0.3): robust(0), ("l2 PGD", 2.0): robust(0)})
    limits = thresholds.Thresholds(LIMITS.rules[:-1])
    assert judge(taken, taken, limits=limits) == []


def test_an_attack_that_was_added_is_no_loss_of_the_union(take: Callable[..., Snapshot]) -> None:
    cells: dict[tuple[str, float], Sequence[bool] | str] = {
        ("linf PGD", 0.3): robust(0), ("l2 PGD", 2.0): robust(0),
    }  # fmt: skip
    (verdict,) = judge(take(cells), take({**cells, ("l2 FMN", 2.0): robust(0, 50)}))
    assert verdict.outcome == "passed"
    assert verdict.attack == "all threat models (linf 0.3, l2 2), 2 of 3 cells"


@pytest.mark.parametrize("value", ["failed", "missing"])
def test_a_norm_without_a_finished_cell_at_its_largest_eps_is_not_compared(
    take: Callable[..., Snapshot], value: str
) -> None:
    cells: dict[tuple[str, float], Sequence[bool] | str] = {
        ("linf PGD", 0.3): robust(0), ("l2 PGD", 1.0): robust(0), ("l2 PGD", 2.0): robust(0),
    }  # fmt: skip
    (verdict,) = judge(take(cells), take({**cells, ("l2 PGD", 2.0): value}))
    assert verdict.outcome == "not compared"
    assert verdict.sentence == "no cell at l2 2 that both finished with these settings"


def test_other_data_and_an_unknown_model_are_not_compared(take: Callable[..., Snapshot]) -> None:
    taken = take({("linf PGD", 0.3): robust(0), ("l2 PGD", 2.0): robust(0)})
    data = dataclasses.replace(taken.data, fingerprint="other")
    (verdict,) = judge(dataclasses.replace(taken, data=data), taken)
    assert verdict.outcome == "not compared"
    empty = dataclasses.replace(taken, models=[], tasks=[], cells=[])
    (verdict,) = judge(empty, taken)
    assert verdict.outcome == "new"


def test_a_model_attacked_in_one_norm_is_not_judged(take: Callable[..., Snapshot]) -> None:
    taken = take({("linf PGD", 0.3): robust(0)})
    (verdict,) = judge(taken, taken)
    assert (verdict.outcome, verdict.sentence) == ("not judged", "it is attacked in one norm only")
