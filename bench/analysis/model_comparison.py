"""Compare models of several runs by example, where the runs share data and attacks.

Models are compared under one attack by the examples on which each is robust, and by their worst
case where both met the same attacks, as `pairwise` compares models of one run. Only records have
single examples: a model of a run without them is in no pair.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bench.analysis import tables
from bench.analysis.pairwise import OutcomePair
from bench.analysis.results import RunResults
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.suite.labels import WORST_CASE
from bench.suite.plan import Cell


class ModelOutcomes(NamedTuple):
    """Which examples a model is robust on, under the attacks that it met at one eps."""

    model: str
    """Label, unique among the models that are compared."""
    robust: dict[str, Outcomes]
    """Name of the attack, common to all models -> outcomes, indexed by example."""


def describe_attack(run: RunResults, cell: Cell) -> str:
    """Describe what an attack asks, to tell whether two runs made the same one.

    Args:
        run: The run.
        cell: A cell of the run.

    Returns:
        Text that is equal for cells of one attack, whatever the judged model and the seed.
    """
    settings: dict[str, Any] = dict(cell.settings) or {
        "name": cell.name, "stop": cell.stop, "target": cell.target, "source": cell.source,
        "precision": cell.precision, "samples": cell.samples, **cell.traits,
        # One attack under a step size that depends on eps has one description at each eps.
        "eps": cell.eps,
    }  # fmt: skip
    ensemble = settings.get("ensemble") or {}
    sources = [cell.source, *ensemble.get("models", [])]
    known = run.provenance["models"]
    # Sources of one label may have other weights.
    prints = [known[source]["fingerprint"] for source in sources if source in known]
    return json.dumps([cell.attack, cell.threat_model, prints, settings], sort_keys=True)


def read_outcomes(run: RunResults) -> dict[str, Outcomes]:
    """Read which examples of each cell are robust.

    Args:
        run: A run.

    Returns:
        Identity of a cell -> outcomes, indexed by example; empty if the run has no records.
    """
    if run.stored.frame.empty:
        return {}
    outcomes = tables.outcomes_by_cell(run.plan, run.stored)
    return {cell: rows.sort_index() for cell, rows in outcomes.items()}


def pair_models(members: Sequence[ModelOutcomes], place: dict[str, Any]) -> Iterator[OutcomePair]:
    """Pair models under each attack that both met.

    Args:
        members: The models.
        place: Norm, goal, target, eps and eps_text, common to all outcomes.

    Yields:
        The pairs, for `pairwise.tabulate_pairs`.
    """
    for a, b in itertools.combinations(members, 2):
        for attack in a.robust:
            if attack in b.robust:
                sides = a.robust[attack], b.robust[attack]
                yield OutcomePair("models", {**place, "attack": attack}, a.model, b.model, sides)


def pair_worst_cases(
    members: Sequence[ModelOutcomes], place: dict[str, Any]
) -> Iterator[OutcomePair]:
    """Pair models by their worst case, where both met the same attacks.

    Args:
        members: The models.
        place: Norm, goal, target, eps and eps_text, common to all outcomes.

    Yields:
        The pairs, for `pairwise.tabulate_pairs`.
    """
    about = {**place, "attack": WORST_CASE}
    for a, b in itertools.combinations(members, 2):
        if a.robust and a.robust.keys() == b.robust.keys():
            left, right = (metrics.worst_case([*each.robust.values()]) for each in (a, b))
            yield OutcomePair("models", about, a.model, b.model, (left, right))
