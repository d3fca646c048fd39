"""Rank entries by robust accuracy, with equal ranks where differences are not significant.

An example counts as robust if every attack of the suite left it correct. Two models differ if the
exact paired test (McNemar) on the same examples is significant after Holm's correction over all
pairs. A model's rank is one more than the number of significantly better models.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from bench.analysis.snapshot import CellSnapshot, unpack_outcomes
from bench.evaluation import metrics
from bench.evaluation.metrics import SIGNIFICANCE_LEVEL, Outcomes, Rate
from bench.suite.schema import Suite
from bench.workflows.leaderboard.entries import Entry


class RankedThreat(NamedTuple):
    """A norm and eps, and the attacks of the suite at them."""

    norm: str
    eps: float
    eps_text: str
    attacks: tuple[str, ...]


class RankedModel(NamedTuple):
    """One model in the ranking of one threat."""

    rank: int
    entry: Entry
    clean: Rate
    robust: Rate
    """Worst case over the attacks."""
    left: dict[str, int]
    """Attack -> number of examples that are robust to it."""
    certified: int = 0
    """Examples that an attack left out because they are certified."""


def list_threats(suite: Suite) -> list[RankedThreat]:
    """List every norm and eps above 0 of a suite.

    Args:
        suite: The threat model.

    Returns:
        Threats in the suite's order of norms, the largest eps first.
    """
    pairs = dict.fromkeys(
        (entry.norm, eps.value) for entry in suite.attacks for eps in entry.eps if eps.value > 0
    )
    norms = list(dict.fromkeys(norm for norm, _ in pairs))
    threats = []
    for norm, value in sorted(pairs, key=lambda pair: (norms.index(pair[0]), -pair[1])):
        there = [
            (entry.label, eps.text)
            for entry in suite.attacks
            for eps in entry.eps
            if (entry.norm, eps.value) == (norm, value)
        ]
        threats.append(RankedThreat(norm, value, there[0][1], tuple(label for label, _ in there)))
    return threats


def rank_models(entries: Sequence[Entry], threat: RankedThreat) -> list[RankedModel]:
    """Rank all entries under one threat.

    Args:
        entries: At least one.
        threat: A threat of the suite.

    Returns:
        Models by rank, then by robust examples, then by name.
    """
    worst = [_worst(entry, threat) for entry in entries]
    ranks = _ranks(worst)
    ranked = [
        RankedModel(
            rank=rank,
            entry=entry,
            clean=metrics.rate(entry.snapshot.models[0].clean_correct, entry.snapshot.data.n),
            robust=metrics.rate(int(outcomes.sum()), len(outcomes)),
            left={attack: int(_robust(entry, attack, threat).sum()) for attack in threat.attacks},
            certified=max(_find_cell(entry, attack, threat).certified for attack in threat.attacks),
        )
        for entry, outcomes, rank in zip(entries, worst, ranks, strict=True)
    ]
    return sorted(ranked, key=lambda each: (each.rank, -each.robust.k, each.entry.card.name))


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
    """Unpack the outcomes of one cell; `read_entries` refuses entries without it."""
    return unpack_outcomes(_find_cell(entry, attack, threat).robust, entry.snapshot.data.n)


def _find_cell(entry: Entry, attack: str, threat: RankedThreat) -> CellSnapshot:
    place = attack, threat.eps
    return next(cell for cell in entry.snapshot.cells if (cell.attack, cell.eps) == place)
