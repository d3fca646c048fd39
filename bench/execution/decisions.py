"""What was decided before a run's first cell, and why, as events for a listener who asks.

Nothing is decided here: each function puts into words what its arguments hold. What is decided on
the way (which copy of a model leads, how many rows a pass holds) the session says itself.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.evaluation.evaluator import Evaluator
from bench.execution.events import Event
from bench.execution.sharding import WHOLE, Shard
from bench.execution.work import WorkUnit
from bench.storage.schema import Piece
from bench.suite import plan
from bench.suite.plan import AttackTask


def describe_loaded_suite(session: Evaluator, asked: str, out: Path) -> Iterator[Event]:
    """Device, data, models and folder; `asked` is the device as the user named it."""
    seen = "torch sees a GPU" if session.device.type == "cuda" else "torch sees no GPU"
    yield _why(f"device {session.device}: {seen if asked == 'auto' else 'as asked for'}")
    data, shards = session.data, session.shards()
    size = "x".join(map(str, data.shape))
    yield _why(
        f"data {data.name}: {data.n} examples of {size}, fingerprint {data.fingerprint[:16]}, in "
        f"{len(shards)} shards of at most {max(last - first for first, last in shards)}, by the "
        "size of an image"
    )
    for label, subject in session.subjects.items():
        if label in session.unfit:
            yield _why(f"{label}: {session.unfit[label]}", model=label)
            continue
        rows = "as --batch-size says" if session.fixed_rows else "by the memory that one row takes"
        yield _why(f"{label}: {session.rows[label]} rows a pass, {rows}", model=label)
        if not subject.findings:
            yield _why(f"{label}: preflight found nothing wrong", model=label)
        if subject.random:
            asked_for = f"{subject.predictions} predictions for a verdict"
            yield _why(f"{label}: answers at random, so {asked_for}", model=label)
    yield _why(f"records go to {out / 'records'}, a file for each shard, its hash in its name")


def describe_units(
    tasks: Sequence[AttackTask], session: Evaluator, there: Collection[Piece], parts: Sequence[WorkUnit],
    share: Shard,
) -> Iterator[Event]:  # fmt: skip
    """What is skipped, what is on disk already, and what is run, task by task."""
    done = {(piece.cell, piece.first) for piece in there}
    firsts = [first for first, _ in session.shards()]
    ahead = {number: len([*some]) for number, some in groupby(parts, lambda part: part.number)}
    for number, task in enumerate(tasks):
        name = f"{task.model} · {task.entry.label}"
        about: Mapping[str, Any] = {"model": task.model, "attack": task.entry.label}
        for reason in dict.fromkeys(cell.reason for cell in task.cells if cell.reason):
            radii = [cell.eps_text for cell in task.cells if cell.reason == reason]
            told = f"{name}: skipped at eps {', '.join(radii)}: {reason}"
            yield _why(told, **about, eps=radii, reason=reason)
        wanted = [cell.identity for cell in task.cells if not cell.reason]
        if not wanted:
            continue
        held = sum((cell, first) in done for cell in wanted for first in firsts)
        left = f"{ahead.get(number, 0)} of {len(firsts)} shards of examples are run"
        told = f"{held} of {len(wanted) * len(firsts)} shards of cells are on disk, {left}"
        yield _why(f"{name}: {told}", **about)
    if share != WHOLE:
        yield _why(
            f"share {share.number} of {share.of}: {len(parts)} parts are run here, of every task "
            f"each {share.of}th shard, staggered so that every share meets all tasks"
        )


def describe_certificates(
    bounds: Sequence[plan.CertificationTask],
    missing: Sequence[tuple[plan.CertificationTask, int, int]],
) -> Iterator[Event]:
    """Which models are bounded, which cannot be, and what is on disk already."""
    for task in bounds:
        about = {"model": task.model, "method": task.method}
        name = f"{task.model} · certified by {task.method}"
        if task.reason:
            yield _why(f"{name}: skipped: {task.reason}", **about, reason=task.reason)
            continue
        ahead = sum(each.identity == task.identity for each, _, _ in missing)
        yield _why(f"{name}: {ahead} shards are not on disk and are made", **about)


def describe_probes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Event]:
    """Which models were probed for signs of a failed attack, and which had been."""
    for label in after:
        kept = before.get(label) == after[label]
        why = "of the same cells were kept" if kept else "were made, for cells that are new"
        yield _why(f"{label}: the audit's probes {why}", model=label)


def _why(text: str, **about: Any) -> Event:
    return Event("why", text, 0.0, about)
