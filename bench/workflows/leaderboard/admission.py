"""Before a model enters: its run is held against the suite, and the model is run again.

A card and a run are a claim. The claim must answer exactly what the suite asks, on its examples,
with the model that the card builds; then the suite, or its first examples, is run here and every
outcome is compared. What enters is what was measured here, where all of it was; else the claim,
with the audit signs of both.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.analysis import results, snapshot
from bench.analysis.snapshot import Snapshot, unpack_outcomes
from bench.core.errors import RecordError, nearest
from bench.execution import preparation, runner
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.reporting.formats.numbers import format_plural
from bench.suite.schema import Suite
from bench.workflows.leaderboard.entries import Recheck, list_shortcomings
from bench.workflows.leaderboard.model_card import ModelCard

DRIFT = 0.01
"""Share of a cell's examples whose outcome may differ: another processor rounds otherwise, and an
example at the edge falls the other way."""
SHOWN = 10
"""Example ids that are shown of a difference."""


class Admission(NamedTuple):
    """What came of a claim."""

    problems: list[str]
    """Why the model does not enter, a sentence each; empty if it does."""
    snapshot: Snapshot | None
    recheck: Recheck | None


class Difference(NamedTuple):
    """One cell, or the clean pass, that came out otherwise."""

    name: str
    claimed: int
    found: int
    examples: list[int]


def read_claim(run: Path, label: str) -> Snapshot:
    """What a run says of the model that it calls `label`.

    Raises: SuiteError if there is no run; RecordError if it is damaged or lacks the model.
    """
    whole = snapshot.take_snapshot(results.read_results(run))
    known = [model.model for model in whole.models]
    if label not in known:
        raise RecordError(
            f"{run}: no finished cell of model '{label}', which the card names; "
            f"{nearest(label, known)}"
        )
    return dataclasses.replace(
        whole,
        models=[model for model in whole.models if model.model == label],
        tasks=[task for task in whole.tasks if task.model == label],
        cells=[cell for cell in whole.cells if cell.model == label],
    )


def admit_model(
    card: ModelCard,
    claimed: Snapshot,
    suite: Suite,
    options: RunOptions,
    listen: Callable[[Event], None] = lambda event: None,
) -> Admission:
    """Hold a claim against the suite, then run the model again, on `options.limit` examples if
    that is given.

    Raises: SuiteError if the card's model cannot be built, or the data are missing.
    """
    problems = list_shortcomings(claimed, suite)
    if problems:
        return Admission(problems, None, None)
    own = dataclasses.replace(suite, models=(card.model,), crosschecks=(), published=())
    problems = _find_mismatches(card, claimed, own, options)
    if problems:
        return Admission(problems, None, None)
    with tempfile.TemporaryDirectory() as folder:
        runner.run_suite(own, Path(folder), options, listen)
        found = results.read_results(Path(folder))
        again = snapshot.take_snapshot(found)
    broken = [f"run again: {row.attack}, eps {row.eps_text}: {row.reason}"
              for row in found.unfinished().itertuples()]  # fmt: skip
    if broken:
        return Admission(broken, None, None)
    return _compare(claimed, again)


def _find_mismatches(
    card: ModelCard, claimed: Snapshot, suite: Suite, options: RunOptions
) -> list[str]:
    """Whether the claim is of another model, or of other examples, than are here."""
    session = preparation.load_evaluator(suite, None, dataclasses.replace(options, limit=None))
    built = session.subjects[card.model.label].fingerprint
    problems = []
    if built != claimed.models[0].fingerprint:
        problems.append(
            f"model: the card builds one of fingerprint {built[:16]}, the run attacked one of "
            f"{claimed.models[0].fingerprint[:16]}; run the suite with the model of the card"
        )
    if session.data.fingerprint != claimed.data.fingerprint:
        problems.append("data: other examples than the suite's here; run it on the same data")
    return problems


def _compare(claimed: Snapshot, again: Snapshot) -> Admission:
    pairs = list(_pairs(claimed, again))
    examples = again.data.n
    allowed = int(DRIFT * examples)
    different = list_differences(claimed, again)
    problems = [_describe(each) for each in different if len(each.examples) > allowed]
    problems += [
        f"{cell.attack}, eps {cell.eps_text}: run again, {format_plural(cell.violations, 'image')} broke "
        "the threat model"
        for cell in again.cells
        if cell.violations
    ]
    if problems:
        return Admission(problems, None, None)
    recheck = Recheck(
        schema=1,
        examples=examples,
        compared=len(pairs) * examples,
        differ=sum(len(each.examples) for each in different),
        packages=again.provenance["packages"],  # type: ignore[arg-type]  # strings, as written
    )
    return Admission(
        [], again if examples == claimed.data.n else _merge_symptoms(claimed, again), recheck
    )


def _merge_symptoms(claimed: Snapshot, again: Snapshot) -> Snapshot:
    """The claim, with the audit signs of both."""
    signs = sorted({*claimed.models[0].signs, *again.models[0].signs})
    return dataclasses.replace(
        claimed, models=[dataclasses.replace(claimed.models[0], signs=signs)]
    )


def list_differences(claimed: Snapshot, again: Snapshot) -> list[Difference]:
    """Where a claim and what was found disagree, on the first examples, those of `again`."""
    n, found = again.data.n, []
    for name, before, after in _pairs(claimed, again):
        sides = unpack_outcomes(before, claimed.data.n)[:n], unpack_outcomes(after, n)
        apart = (sides[0] != sides[1]).to_numpy().nonzero()[0].tolist()
        if apart:
            found.append(Difference(name, int(sides[0].sum()), int(sides[1].sum()), apart))
    return found


def _pairs(claimed: Snapshot, again: Snapshot) -> list[tuple[str, str, str]]:
    """(name, packed outcomes claimed, packed outcomes found) of the clean pass and every cell."""
    before = {(cell.attack, cell.eps): cell.robust for cell in claimed.cells}
    cells = [
        (f"{cell.attack}, eps {cell.eps_text}", before[cell.attack, cell.eps], cell.robust)
        for cell in again.cells
    ]
    return [("without attack", claimed.models[0].clean, again.models[0].clean), *cells]


def _describe(each: Difference) -> str:
    ids = ", ".join(map(str, each.examples[:SHOWN]))
    more = ", ..." if len(each.examples) > SHOWN else ""
    return (
        f"{each.name}: the run says {each.claimed} stay correct, run again {each.found} do; "
        f"{format_plural(len(each.examples), 'outcome')} differ: examples {ids}{more}"
    )
