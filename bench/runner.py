"""Cells -> records: loads what a suite names, runs what is not done yet, keeps what is finished.

The work is cut into shards of examples; a shard's records are written as soon as they are made and
never change, so a run can be interrupted anywhere and goes on where it was. A cell that crashes is
failed with its reason and the run goes on: the one broad except of bench is here.
"""

import dataclasses
import json
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from bench import files, loading, meter, plan, provenance, records
from bench.audit.probed import probed
from bench.entries import Suite
from bench.errors import SuiteError
from bench.session import Session

KEPT_IMAGES = 256
KEPT_BYTES = 4 * 2**20
"""Of each cell the adversarial images of the first examples are kept, for grids and
cross-checks: at most so many, and so many bytes, but never fewer than KEPT_LEAST."""
KEPT_LEAST = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line can say about a run, and the suite cannot."""

    device: str = "auto"
    limit: int | None = None
    batch_size: int | None = None
    data_dir: Path = Path()
    fresh: bool = False
    copied: bool = True
    """Whether attacks lead with a faster copy of the model."""
    command: str = dataclasses.field(default_factory=lambda: shlex.join(["bench", *sys.argv[1:]]))


def default_folder(suite: str) -> Path:
    """Where a suite's run goes when nothing else is said."""
    return Path("results") / "runs" / suite


class Event(NamedTuple):
    """What a listener hears of a run: work is measured in seconds of the bare loop's floor."""

    what: str
    """"start", "begin" (a shard of a task), "failed" (cells of it), "done" or "note"."""
    text: str
    work: float
    """"start": all the work ahead; "done": the work that this settles."""


class _Part(NamedTuple):
    """A shard of a task, of which only the cells that are missing there are left."""

    task: plan.Task
    first: int
    last: int
    work: float


def run(
    suite: Suite, out: Path, options: Options, listen: Callable[[Event], None] = lambda event: None
) -> None:
    """Run what `out` does not hold yet of `suite`.

    Raises: SuiteError for the user's mistakes, before anything runs where they can be known then.
    KeyboardInterrupt passes through; whatever was finished is kept.
    """
    session = prepare(suite, out, options)
    facts = {label: session.facts(label) for label in session.subjects}
    tasks = plan.tasks(suite, facts)
    if options.fresh:
        records.forget(out)
    document = _document(suite, options, session, tasks)
    earlier = {} if options.fresh else _earlier(out)
    document["probes"] = earlier.get("probes", {})
    _save(out, document)
    parts = _missing(session, tasks, out)
    listen(Event("start", suite.title, sum(part.work for part in parts)))
    for subject in session.subjects.values():
        for finding in subject.findings:
            listen(Event("note", finding, 0.0))
    if parts:
        _keep_clean(session, out)
    _work(session, parts, out, listen)
    document["probes"] = probed(session, tasks, document["probes"])
    document["sessions"][-1]["finished"] = _now()
    document["sessions"][-1]["copies"] = {label: session.told(label) for label in session.subjects}
    _save(out, document)


def prepare(suite: Suite, out: Path | None, options: Options) -> Session:
    """Load all that the suite names, to write into `out` if that is given; every mistake of the
    user's surfaces here.

    Raises: SuiteError in one sentence for each.
    """
    device = loading.device(options.device)
    if out is not None:
        files.check_writable(out / "records")
    data = loading.data(suite.data, suite.base, options.data_dir, options.limit)
    subjects, rows = {}, {}
    for entry in suite.models:
        subject = loading.subject(entry, suite.base, suite.seed, data, device, options.data_dir)
        sample = data.read(0, 1).to(device)
        rows[entry.label] = options.batch_size or meter.rows_per_pass(subject.model, sample)
        subjects[entry.label] = subject
        for attack in suite.attacks:
            if attack.goal == "targeted":
                plan.target_class(attack, subject.classes, data.classes)
    return Session(
        suite=suite.name,
        seed=suite.seed,
        device=device,
        data=data,
        subjects=subjects,
        rows=rows,
        fixed_rows=options.batch_size is not None,
        copied=options.copied,
    )


def _missing(session: Session, tasks: list[plan.Task], out: Path) -> list[_Part]:
    """Every shard that is not on disk, in the suite's order, a task's shards one after another.

    Two entries that mean the same cell share its records: it is run once."""
    done = {(piece.cell, piece.first, piece.last) for piece in records.pieces(out)}
    parts = []
    for task in tasks:
        for first, last in session.shards():
            wanted = {
                cell.identity
                for cell in task.cells
                if not cell.reason and (cell.identity, first, last) not in done
            }
            if wanted:
                done |= {(identity, first, last) for identity in wanted}
                part = task.only(wanted)
                parts.append(_Part(part, first, last, session.work(part) * (last - first)))
    return parts


def _work(session: Session, parts: list[_Part], out: Path, listen: Callable[[Event], None]) -> None:
    broken: set[str] = set()
    for task, first, last, work in parts:
        name = f"{task.model} · {task.entry.label}"
        left = task.only({cell.identity for cell in task.cells} - broken)
        listen(Event("begin", name, 0.0))
        for cells, reason in _attempt(session, left, first, last, out):
            for cell in cells:
                records.fail(out, cell.identity, reason)
                broken.add(cell.identity)
            radii = ", ".join(cell.eps_text for cell in cells)
            listen(Event("failed", f"{name} at eps {radii}: {reason}", 0.0))
        while session.notes:
            listen(Event("note", session.notes.pop(0), 0.0))
        listen(Event("done", name, work))


def _attempt(
    session: Session, task: plan.Task, first: int, last: int, out: Path
) -> Iterator[tuple[tuple[plan.Cell, ...], str]]:
    """Run one shard of a task and write its records; yields the cells that failed, with reasons.

    Where a stream of several cells fails, each is tried alone, so that one eps at which an attack
    crashes does not take the others with it.
    """
    if not task.cells:
        return
    try:
        shard = session.shard(task, first, last)
    except SuiteError:  # the user's: an image that is none, found only now
        raise
    except (Exception, SystemExit) as error:  # a stranger's attack or model may do anything
        if task.linked or len(task.cells) == 1:
            yield task.cells, _reason(error)
            return
        for cell in task.cells:
            yield from _attempt(session, task.only({cell.identity}), first, last, out)
        return
    kept = {} if first else _kept(task, shard.x_adv)
    stem = f"{task.model}-{task.entry.label}"
    records.write(out, stem, shard.frame, shard.pieces, kept)


def _keep_clean(session: Session, out: Path) -> None:
    """The first clean images, to be shown beside the adversarial ones."""
    first, last = session.shards()[0]
    images = {session.data.fingerprint: _first(session.data.read(first, last))}
    records.write_images(out, "clean", images)


def _first(images: Tensor) -> Tensor:
    size = images[0].numel() * images.element_size()
    return images[: max(KEPT_LEAST, min(KEPT_IMAGES, KEPT_BYTES // size))].clone()


def _kept(task: plan.Task, x_adv: Tensor) -> dict[str, Tensor]:
    """The first adversarial images of each cell."""
    pairs = zip(task.cells, x_adv, strict=True)
    return {cell.identity: _first(images) for cell, images in pairs}


def _reason(error: BaseException) -> str:
    """One line for the table: what was raised, and the last place in the code that it passed."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error) or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first} ({Path(where.filename).name}:{where.lineno})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# ------------------------------------------------------------------------------------- provenance


def _document(
    suite: Suite, options: Options, session: Session, tasks: list[plan.Task]
) -> dict[str, Any]:
    """provenance.json: the plan, what it was made from, and the sessions that worked on it."""
    return {
        "schema": records.SCHEMA,
        "suite": {
            "name": suite.name,
            "title": suite.title,
            "seed": suite.seed,
            "sweep": suite.sweep,
            "text": suite.text,
        },
        "data": {
            "name": session.data.name,
            "n": session.data.n,
            "shape": session.data.shape,
            "classes": session.data.classes,
            "fingerprint": session.data.fingerprint,
        },
        "models": {
            label: {
                "classes": subject.classes,
                "fingerprint": subject.fingerprint,
                "findings": subject.findings,
                "rows_per_pass": session.rows[label],
                "predictions": subject.predictions,
            }
            for label, subject in session.subjects.items()
        },
        "cells": [dataclasses.asdict(cell) for task in tasks for cell in task.cells],
        "crosschecks": [[pair.ours, pair.reference] for pair in suite.crosschecks],
        "published": [dataclasses.asdict(entry) for entry in suite.published],
        "sessions": [
            {
                "started": _now(),
                "finished": None,
                "command": options.command,
                "environment": provenance.environment(session.device),
            }
        ],
    }


def _earlier(out: Path) -> dict[str, Any]:
    """What provenance.json says already; empty where there is none that can be read."""
    try:
        found = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _save(out: Path, document: dict[str, Any]) -> None:
    """Write provenance.json, the sessions that came before kept."""
    path = out / "provenance.json"
    current = document["sessions"][-1]
    earlier = _earlier(out).get("sessions", [])
    sessions = [s for s in earlier if s["started"] != current["started"]] + [current]
    text = json.dumps({**document, "sessions": sessions}, indent=1, ensure_ascii=False)
    files.write_whole(path, text.encode())
