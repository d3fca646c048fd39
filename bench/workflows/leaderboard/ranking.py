"""Entries -> standings: who keeps most, and who only seems to.

An example counts for a model if every attack of the suite left it correct. Two models are told
apart only where the exact paired test on the same examples tells them apart, corrected for all
pairs (Holm); a model's rank is one more than the number of models that are better beyond chance,
so that those which nothing tells apart share a rank.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from bench.analysis.snapshot import unpack_outcomes
from bench.evaluation import metrics
from bench.evaluation.metrics import SIGNIFICANCE_LEVEL, Outcomes, Rate
from bench.suite.schema import Suite
from bench.workflows.leaderboard.entries import Entry


class RankedThreat(NamedTuple):
    """A ball that the attacker stays in, and the suite's attacks that were asked there."""

    norm: str
    eps: float
    eps_text: str
    attacks: tuple[str, ...]


class RankedModel(NamedTuple):
    """One model in one threat's order."""

    rank: int
    entry: Entry
    clean: Rate
    robust: Rate
    """Worst case over the attacks."""
    left: dict[str, int]
    """Attack -> examples that it alone leaves correct."""


def list_threats(suite: Suite) -> list[RankedThreat]:
    """Every norm and eps above 0 of the suite, the largest eps of a norm first."""
    places = dict.fromkeys(
        (entry.norm, eps.value) for entry in suite.attacks for eps in entry.eps if eps.value > 0
    )
    norms = list(dict.fromkeys(norm for norm, _ in places))
    found = []
    for norm, value in sorted(places, key=lambda place: (norms.index(place[0]), -place[1])):
        there = [
            (entry.label, eps.text)
            for entry in suite.attacks
            for eps in entry.eps
            if (entry.norm, eps.value) == (norm, value)
        ]
        found.append(RankedThreat(norm, value, there[0][1], tuple(label for label, _ in there)))
    return found


def rank_models(entries: Sequence[Entry], threat: RankedThreat) -> list[RankedModel]:
    """All entries under one threat, the best first; within a rank by what they keep, then name."""
    worst = [_worst(entry, threat) for entry in entries]
    ranks = _ranks(worst)
    found = [
        RankedModel(
            rank=rank,
            entry=entry,
            clean=metrics.rate(entry.snapshot.models[0].clean_correct, entry.snapshot.data.n),
            robust=metrics.rate(int(outcomes.sum()), len(outcomes)),
            left={attack: int(_robust(entry, attack, threat).sum()) for attack in threat.attacks},
        )
        for entry, outcomes, rank in zip(entries, worst, ranks, strict=True)
    ]
    return sorted(found, key=lambda each: (each.rank, -each.robust.k, each.entry.card.name))


def _ranks(outcomes: Sequence[Outcomes]) -> list[int]:
    pairs = list(itertools.combinations(range(len(outcomes)), 2))
    tests = [metrics.mcnemar_test(outcomes[a], outcomes[b]) for a, b in pairs]
    ranks = [1] * len(outcomes)
    p_values = metrics.holm_correction([test.p_value for test in tests])
    for (a, b), test, p_value in zip(pairs, tests, p_values, strict=True):
        if p_value <= SIGNIFICANCE_LEVEL:
            ranks[b if test.only_first > test.only_second else a] += 1
    return ranks


def _worst(entry: Entry, threat: RankedThreat) -> Outcomes:
    return metrics.worst_case([_robust(entry, attack, threat) for attack in threat.attacks])


def _robust(entry: Entry, attack: str, threat: RankedThreat) -> Outcomes:
    """Entries are read only with every cell of the suite, so that it is there."""
    snapshot = entry.snapshot
    place = attack, threat.eps
    cell = next(cell for cell in snapshot.cells if (cell.attack, cell.eps) == place)
    return unpack_outcomes(cell.robust, snapshot.data.n)
