"""Admit a model to a leaderboard: check its run against the suite, and run the model again.

A card and a run are a claim. The run must have the suite's settings and examples and the model that
the card builds. Then the suite, or its first examples, is run here and every outcome is compared.
The new outcomes are stored if all examples were run again, with the claimed audit symptoms that
were not checked again; else the claimed outcomes with the symptoms of both.
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
from bench.workflows.leaderboard.entries import Recheck, list_other_versions, list_shortcomings
from bench.workflows.leaderboard.model_card import ModelCard

DRIFT = 0.01
"""Fraction of a cell's examples whose outcome may differ: processors round differently."""
SHOWN = 10
"""Example ids shown per difference."""


class Admission(NamedTuple):
    """The result of an admission."""

    problems: list[str]
    """Why the model is not admitted, a sentence each; empty if it is."""
    snapshot: Snapshot | None
    recheck: Recheck | None


class Difference(NamedTuple):
    """A cell, or the clean pass, with different outcomes."""

    name: str
    claimed: int
    found: int
    examples: list[int]


def read_claim(run: Path, label: str) -> Snapshot:
    """Read the outcomes of one model of a run.

    Args:
        run: Folder of the run.
        label: The model's label in it.

    Returns:
        A snapshot of this model alone.

    Raises:
        SuiteError: There is no run.
        RecordError: The run is damaged or lacks the model.
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
    on_event: Callable[[Event], None] = lambda event: None,
) -> Admission:
    """Check a claim against the suite, then run the model again and compare.

    Args:
        card: Card of the model.
        claimed: Its outcomes, see `read_claim`.
        suite: The threat model.
        options: How to run; `options.limit` restricts the examples.
        on_event: Called with the progress of the run.

    Returns:
        Problems, or the outcomes to store.

    Raises:
        SuiteError: The card's model cannot be built, or the data are missing.
    """
    problems = [*list_shortcomings(claimed, suite), *list_other_versions(claimed, suite)]
    if problems:
        return Admission(problems, None, None)
    own = dataclasses.replace(suite, models=(card.model,), crosschecks=(), published=())
    problems = _find_mismatches(card, claimed, own, options)
    if problems:
        return Admission(problems, None, None)
    with tempfile.TemporaryDirectory() as folder:
        runner.run_suite(own, Path(folder), options, on_event)
        again_results = results.read_results(Path(folder))
        again = snapshot.take_snapshot(again_results)
    broken = [f"run again: {row.attack}, eps {row.eps_text}: {row.reason}"
              for row in again_results.table.itertuples() if row.status != "ok"]  # fmt: skip
    # What a claim states of its settings need not be what the card's model has.
    other = [] if broken else list_shortcomings(_as_whole(again, claimed), suite)
    if broken or other:
        return Admission(broken or [f"run again: {each}" for each in other], None, None)
    return _compare(claimed, again)


def _as_whole(again: Snapshot, claimed: Snapshot) -> Snapshot:
    """The new run, as if it were of all examples that were claimed."""
    return dataclasses.replace(again, data=dataclasses.replace(again.data, n=claimed.data.n))


def _find_mismatches(
    card: ModelCard, claimed: Snapshot, suite: Suite, options: RunOptions
) -> list[str]:
    """Describe how model and examples differ from those of the claim."""
    evaluator = preparation.load_evaluator(suite, None, dataclasses.replace(options, limit=None))
    built = evaluator.models[card.model.label].fingerprint
    problems = []
    if built != claimed.models[0].fingerprint:
        problems.append(
            f"model: the card builds one of fingerprint {built[:16]}, the run attacked one of "
            f"{claimed.models[0].fingerprint[:16]}; run the suite with the model of the card"
        )
    if evaluator.data.fingerprint != claimed.data.fingerprint:
        problems.append("data: other examples than the suite's here; run it on the same data")
    return problems


def _compare(claimed: Snapshot, again: Snapshot) -> Admission:
    pairs = list(_pairs(claimed, again))
    examples = again.data.n
    allowed = int(DRIFT * examples)
    different = list_differences(claimed, again)
    problems = [_describe(each) for each in different if len(each.examples) > allowed]
    if problems:
        return Admission(problems, None, None)
    recheck = Recheck(
        schema=1,
        examples=examples,
        compared=len(pairs) * examples,
        differ=sum(len(each.examples) for each in different),
        packages=again.provenance["packages"],  # type: ignore[arg-type]  # strings, as written
    )
    return Admission([], merge_symptoms(claimed, again), recheck)


def merge_symptoms(claimed: Snapshot, again: Snapshot) -> Snapshot:
    """Merge a claim and the new run into the outcomes to store.

    After a run of all examples, a claimed symptom is refuted if it was checked again and not found.

    Args:
        claimed: Outcomes of the claim.
        again: Outcomes of the new run, possibly on the first examples only.

    Returns:
        The outcomes of more examples, with every symptom that was not refuted.
    """
    before, after = claimed.models[0], again.models[0]
    complete = again.data.n == claimed.data.n
    unrefuted = {*before.signs} & {*after.unchecked} if complete else {*before.signs}
    stored, model = (again, after) if complete else (claimed, before)
    symptoms = sorted({*after.signs, *unrefuted})
    return dataclasses.replace(stored, models=[dataclasses.replace(model, signs=symptoms)])


def list_differences(claimed: Snapshot, again: Snapshot) -> list[Difference]:
    """List the cells whose outcomes differ, and the clean pass if it does.

    Args:
        claimed: Outcomes of the claim.
        again: Outcomes of the new run, possibly on the first examples only.

    Returns:
        Differences on the examples of `again`.
    """
    n, different = again.data.n, []
    for name, before, after in _pairs(claimed, again):
        sides = unpack_outcomes(before, claimed.data.n)[:n], unpack_outcomes(after, n)
        apart = (sides[0] != sides[1]).to_numpy().nonzero()[0].tolist()
        if apart:
            different.append(Difference(name, int(sides[0].sum()), int(sides[1].sum()), apart))
    return different


def _pairs(claimed: Snapshot, again: Snapshot) -> list[tuple[str, str, str]]:
    """Return name, claimed and new packed outcomes of the clean pass and of every cell."""
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
