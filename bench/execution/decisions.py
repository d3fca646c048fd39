"""Events of kind "why": what a run decided before its first cell, and the reasons.

Nothing is decided here. Decisions during the run (accelerated models, rows per pass) are reported
by the evaluator.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.core.contracts.types import GPUS
from bench.evaluation import chunk_sizes
from bench.execution.events import Event
from bench.execution.loaded_suite import LoadedSuite
from bench.execution.options import RunOptions
from bench.execution.sharding import WHOLE, Shard
from bench.execution.work import WorkUnit
from bench.storage.schema import Piece
from bench.suite import plan


def _count_chunks(k: int) -> str:
    return f"{k} chunk" if k == 1 else f"{k} chunks"


def describe_loaded_suite(
    loaded: LoadedSuite, unfit: Mapping[str, str], options: RunOptions, out: Path
) -> Iterator[Event]:
    """Describe device, data, models and folder.

    Args:
        loaded: Description of the suite.
        unfit: Model -> why it cannot be attacked.
        options: Options of the run.
        out: Folder of the run.

    Yields:
        One event for each decision.
    """
    seen = "torch sees a GPU" if loaded.device.startswith(GPUS) else "torch sees no GPU"
    reason = seen if options.device == "auto" else "as asked for"
    yield _explain(f"device {loaded.device}: {reason}")
    data, most = loaded.data, loaded.chunk_examples
    size = "x".join(map(str, data.shape))
    grid = chunk_sizes.chunk_bounds(data.n, most)
    standard = chunk_sizes.standard_size(data.shape)
    why = "by the size of an image"
    if most != standard:
        why = f"as this folder was created; of {standard} where outcomes depend on the batch"
    yield _explain(
        f"data {data.name}: {data.n} examples of {size}, fingerprint {data.fingerprint[:16]}, in "
        f"{_count_chunks(len(grid))} of at most {min(most, data.n)}, {why}"
    )
    for label, model in loaded.models.items():
        if label in unfit:
            yield _explain(f"{label}: {unfit[label]}", model=label)
            continue
        fixed = options.batch_size is not None
        rows = "as --batch-size says" if fixed else "by the memory that one row takes"
        yield _explain(f"{label}: {model.facts.rows} rows a pass, {rows}", model=label)
        if not model.findings:
            yield _explain(f"{label}: preflight found nothing wrong", model=label)
        if model.facts.random:
            count = f"{model.facts.predictions} predictions for a verdict"
            yield _explain(f"{label}: answers at random, so {count}", model=label)
    yield _explain(f"records go to {out / 'records'}, a file for each chunk, its hash in its name")


def describe_units(
    tasks: Sequence[plan.AttackTask], loaded: LoadedSuite, stored: Collection[Piece],
    units: Sequence[WorkUnit], shard: Shard,
) -> Iterator[Event]:  # fmt: skip
    """Describe what is skipped, what has records and what is run, task by task.

    Args:
        tasks: All tasks of the suite.
        loaded: Description of the suite.
        stored: Pieces that have records.
        units: Work units that are run.
        shard: Part of the run.

    Yields:
        One event for each decision.
    """
    done: Counter[str] = Counter()
    for piece in stored:
        done[piece.cell] += piece.last - piece.first
    ahead = {number: len([*some]) for number, some in groupby(units, lambda unit: unit.number)}
    for number, task in enumerate(tasks):
        name = f"{task.model} · {task.entry.label}"
        about: Mapping[str, Any] = {"model": task.model, "attack": task.entry.label}
        for reason in dict.fromkeys(cell.reason for cell in task.cells if cell.reason):
            radii = [cell.eps_text for cell in task.cells if cell.reason == reason]
            text = f"{name}: skipped at eps {', '.join(radii)}: {reason}"
            yield _explain(text, **about, eps=radii, reason=reason)
        wanted = [cell.identity for cell in task.cells if not cell.reason]
        if not wanted:
            continue
        held = sum(done[cell] for cell in wanted)
        ahead_here = ahead.get(number, 0)
        left = f"{_count_chunks(ahead_here)} of examples {'is' if ahead_here == 1 else 'are'} run"
        text = f"{held} of {len(wanted) * loaded.data.n} outcomes are on disk, {left}"
        yield _explain(f"{name}: {text}", **about)
    if shard != WHOLE:
        yield _explain(
            f"shard {shard.number} of {shard.of}: {len(units)} work units are run here, of every "
            f"task each {shard.of}th chunk, staggered so that every shard receives all tasks"
        )


def describe_certificates(
    tasks: Sequence[plan.CertificationTask],
    missing: Sequence[tuple[plan.CertificationTask, int, int]],
) -> Iterator[Event]:
    """Describe which models are certified, which cannot be, and what is stored already.

    Args:
        tasks: All certification tasks of the suite.
        missing: (task, first, last) of each chunk without certificates.

    Yields:
        One event for each task.
    """
    for task in tasks:
        about = {"model": task.model, "method": task.method}
        name = f"{task.model} · certified by {task.name}"
        if task.reason:
            yield _explain(f"{name}: skipped: {task.reason}", **about, reason=task.reason)
            continue
        ahead = sum(each.identity == task.identity for each, _, _ in missing)
        yield _explain(f"{name}: {ahead} chunks are not on disk and are made", **about)


def describe_certified(units: Sequence[WorkUnit]) -> Iterator[Event]:
    """Describe how many examples are not attacked because they are certified.

    Args:
        units: Work units that are run.

    Yields:
        One event for each model and attack that leaves certified examples out.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    for unit in units:
        if unit.task.entry.skip_certified:
            own = counts.setdefault((unit.task.model, unit.task.entry.label), Counter())
            own.update({c.eps_text: len(unit.certified[c.identity]) for c in unit.task.cells})
    for (model, attack), by_eps in counts.items():
        listed = ", ".join(f"{count} at eps {eps}" for eps, count in by_eps.items())
        text = f"{model} · {attack}: not attacked, since they are certified: {listed}"
        yield _explain(text, model=model, attack=attack)


def describe_probes(earlier: Mapping[str, Any], current: Mapping[str, Any]) -> Iterator[Event]:
    """Describe which models were probed in this session and which before.

    Args:
        earlier: Model -> probes of earlier sessions.
        current: Model -> probes as stored now.

    Yields:
        One event for each model.
    """
    for label in current:
        is_same = earlier.get(label) == current[label]
        why = "of the same cells were kept" if is_same else "were made, for cells that are new"
        yield _explain(f"{label}: the audit's probes {why}", model=label)


def _explain(text: str, **about: Any) -> Event:
    return Event("why", text, 0.0, about)
