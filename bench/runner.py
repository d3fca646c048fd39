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
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from bench import loading, measure, meter, plan, provenance, records, rng
from bench.contracts import Data
from bench.errors import SuiteError
from bench.suite import Suite

SHARD_EXAMPLES = 1000
SHARD_BYTES = 64 * 2**20
"""A shard holds at most so many examples, and so many bytes of images."""
KEPT_IMAGES = 256
KEPT_BYTES = 4 * 2**20
"""Of each cell the adversarial images of the first examples are kept, for grids and
cross-checks: at most so many, and so many bytes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line can say about a run, and the suite cannot."""

    device: str = "auto"
    limit: int | None = None
    batch_size: int | None = None
    data_dir: Path = Path()
    fresh: bool = False
    command: str = dataclasses.field(default_factory=lambda: shlex.join(["bench", *sys.argv[1:]]))


class Event(NamedTuple):
    """What a listener hears of a run: work is measured in seconds of the bare loop's floor."""

    what: str
    """"start", "begin" (a task's shard), "done", "failed" or "note"."""
    text: str
    work: float
    """"start": all the work ahead; "done" and "failed": the work that this settles."""


Listen = Callable[[Event], None]


def run(suite: Suite, out: Path, options: Options, listen: Listen = lambda event: None) -> None:
    """Run what `out` does not hold yet of `suite`.

    Raises: SuiteError for the user's mistakes, before anything runs where they can be known then.
    KeyboardInterrupt passes through; whatever was finished is kept.
    """
    run_ = _prepare(suite, out, options)
    if options.fresh:
        records.forget(out)
    started = _now()
    _write_provenance(run_, started, finished=None)
    missing = _missing(run_)
    listen(Event("start", suite.title, sum(work for *_, work in missing)))
    for finding in (finding for s in run_.subjects.values() for finding in s.findings):
        listen(Event("note", finding, 0.0))
    broken: set[str] = set()
    for task, first, last, work in missing:
        name = f"{task.model} · {task.entry.label}"
        if broken & {cell.identity for cell in task.cells}:
            listen(Event("failed", name, work))
            continue
        listen(Event("begin", f"{name} · examples {first}-{last - 1}", 0.0))
        try:
            _shard(run_, task, first, last)
        except SuiteError:
            raise
        except (Exception, SystemExit) as error:  # a stranger's attack or model may do anything
            reason = _reason(error)
            for cell in task.cells:
                records.fail(out, cell.identity, reason)
                broken.add(cell.identity)
            listen(Event("failed", f"{name}: {reason}", work))
        else:
            listen(Event("done", name, work))
    _write_provenance(run_, started, finished=_now())


@dataclasses.dataclass(frozen=True)
class _Run:
    """A suite with everything it names loaded, and what has been measured on the way."""

    suite: Suite
    out: Path
    options: Options
    device: torch.device
    data: Data
    subjects: dict[str, loading.Subject]
    rows: dict[str, int]
    tasks: list[plan.Task]
    clean: dict[str, measure.Clean] = dataclasses.field(default_factory=dict)
    floors: dict[tuple[str, int], meter.Floor] = dataclasses.field(default_factory=dict)

    def rows_for(self, task: plan.Task) -> int:
        """Rows a pass holds: by the attack's entry, else the command line, else by rule."""
        return task.entry.batch_size or self.rows[task.model]

    def clean_pass(self, model: str) -> measure.Clean:
        """The model's answers to all clean images; asked once."""
        if model not in self.clean:
            subject, rows = self.subjects[model], self.rows[model]
            parts = [
                measure.judge(subject.model, self.data.read(a, b).to(self.device), rows)
                for a, b in _shards(self.data)
            ]
            pred, confidence, least = (torch.cat(column) for column in zip(*parts, strict=True))
            labels = self.data.labels
            label = pred if labels is None else labels.to(self.device)
            self.clean[model] = measure.Clean(label, pred, confidence, least)
        return self.clean[model]

    def floor(self, model: str, rows: int) -> meter.Floor:
        """The bare loop's pace on this model at this many rows; timed once."""
        if (model, rows) not in self.floors:
            x = self.data.read(0, min(self.data.n, rows)).to(self.device)
            y = self.clean_pass(model).label[: len(x)]
            self.floors[model, rows] = meter.floor(self.subjects[model].model, x, y, rows)
        return self.floors[model, rows]


def _prepare(suite: Suite, out: Path, options: Options) -> _Run:
    """Load all that the suite names and plan it; every mistake of the user's surfaces here."""
    device = loading.device(options.device)
    _check_folder(out)
    data = loading.data(suite.data, suite.base, options.data_dir, options.limit)
    subjects, facts, rows = {}, {}, {}
    for entry in suite.models:
        subject = loading.subject(entry, suite.base, suite.seed, data, device)
        sample = data.read(0, 1).to(device)
        rows[entry.label] = options.batch_size or meter.rows_per_pass(subject.model, sample)
        subjects[entry.label] = subject
        facts[entry.label] = plan.Facts(
            subject.classes, data.shape, rows[entry.label], subject.fingerprint, data.fingerprint
        )
        for attack in suite.attacks:
            if attack.goal == "targeted":
                plan.target_class(attack, subject.classes, data.classes)
    tasks = plan.tasks(suite, facts)
    return _Run(suite, out, options, device, data, subjects, rows, tasks)


def _check_folder(out: Path) -> None:
    records.write_whole(out / "records" / ".writable", b"")
    (out / "records" / ".writable").unlink()


def _shards(data: Data) -> list[tuple[int, int]]:
    """(first, last) of each shard; the cuts depend on the images' size alone."""
    channels, height, width = data.shape
    size = max(8, min(SHARD_EXAMPLES, SHARD_BYTES // (4 * channels * height * width)))
    return [(first, min(first + size, data.n)) for first in range(0, data.n, size)]


def _missing(run_: _Run) -> list[tuple[plan.Task, int, int, float]]:
    """(task, first, last, work) for every shard that is not on disk, in the suite's order.

    Shards of one task come one after another; a task holds only the cells that are missing there.
    """
    done = {(piece.cell, piece.first, piece.last) for piece in records.pieces(run_.out)}
    missing = []
    for task in run_.tasks:
        for first, last in _shards(run_.data):
            wanted = {
                cell.identity
                for cell in task.cells
                if not cell.reason and (cell.identity, first, last) not in done
            }
            if not wanted:
                continue
            part = task.only(wanted)
            floor = run_.floor(task.model, run_.rows_for(task))
            work = sum(
                floor.seconds(cell.passes or 1.0, cell.gradients or 0.0) for cell in part.cells
            )
            missing.append((part, first, last, work * (last - first)))
    return missing


def _shard(run_: _Run, task: plan.Task, first: int, last: int) -> None:
    """Attack, verify and judge one shard of one task, and write its records."""
    subject, clean = run_.subjects[task.model], run_.clean_pass(task.model)
    rows = run_.rows_for(task)
    at = slice(first, last)
    ids = torch.arange(first, last, device=run_.device)
    examples = measure.Examples(
        id=ids,
        x=run_.data.read(first, last).to(run_.device),
        label=clean.label[at],
        target=_targets(run_, task, ids, clean),
        clean_pred=clean.pred[at],
        clean_confidence=clean.confidence[at],
    )
    floor = run_.floor(task.model, rows)
    measured = measure.measure(subject.model, task.curve, examples, rows, floor)
    frames, pieces, kept = [], [], {}
    for index, cell in enumerate(task.cells):
        cost = measured.costs[index]
        frames.append(
            measured.records[index].assign(
                suite=run_.suite.name,
                model=task.model,
                attack=task.entry.label,
                norm=cell.norm,
                eps=cell.eps,
                goal=cell.goal,
                cell=cell.identity,
            )
        )
        device = str(run_.device)
        pieces.append(records.Piece(cell.identity, first, last, *cost, rows=rows, device=device))
        if first == 0:
            kept[cell.identity] = _first_images(measured.x_adv[index])
    records.write(run_.out, f"{task.model}-{task.entry.label}", pd.concat(frames), pieces, kept)


def _first_images(x_adv: Tensor) -> Tensor:
    size = x_adv[0].numel() * x_adv.element_size()
    return x_adv[: max(5, min(KEPT_IMAGES, KEPT_BYTES // size))].clone()


def _targets(run_: _Run, task: plan.Task, ids: Tensor, clean: measure.Clean) -> Tensor:
    """The class that each example is to be taken for; -1 where the attack is untargeted."""
    if task.entry.goal == "untargeted":
        return torch.full_like(ids, -1)
    label, classes = clean.label[ids], run_.subjects[task.model].classes
    wanted = plan.target_class(task.entry, classes, run_.data.classes)
    if isinstance(wanted, int):
        return torch.full_like(ids, wanted)
    if wanted == "next":
        return (label + 1) % classes
    if wanted == "complement":
        return classes - 1 - label
    if wanted == "random":
        shift = rng.integers(run_.suite.seed, "target", ids, classes - 1).to(ids)
        return (label + 1 + shift) % classes
    return clean.least_likely[ids]


def _reason(error: BaseException) -> str:
    """One line for the table: what was raised, and where in the stranger's code."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    first = (str(error) or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first} ({Path(where.filename).name}:{where.lineno})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _write_provenance(run_: _Run, started: str, finished: str | None) -> None:
    """provenance.json: the plan, what it was made from, and the sessions that worked on it."""
    path = run_.out / "provenance.json"
    session = {
        "started": started,
        "finished": finished,
        "command": run_.options.command,
        "batch_size": run_.options.batch_size,
        "environment": provenance.environment(run_.device),
    }
    earlier = [s for s in _sessions(path) if s["started"] != started]
    document: dict[str, Any] = {
        "schema": records.SCHEMA,
        "suite": {
            "name": run_.suite.name,
            "title": run_.suite.title,
            "seed": run_.suite.seed,
            "sweep": run_.suite.sweep,
            "text": run_.suite.text,
        },
        "data": {
            "name": run_.data.name,
            "n": run_.data.n,
            "shape": run_.data.shape,
            "classes": run_.data.classes,
            "fingerprint": run_.data.fingerprint,
        },
        "models": {
            label: {
                "classes": subject.classes,
                "fingerprint": subject.fingerprint,
                "findings": subject.findings,
                "rows_per_pass": run_.rows[label],
            }
            for label, subject in run_.subjects.items()
        },
        "cells": [dataclasses.asdict(cell) for task in run_.tasks for cell in task.cells],
        "crosschecks": [[c.ours, c.reference] for c in run_.suite.crosschecks],
        "sessions": [*([] if run_.options.fresh else earlier), session],
    }
    records.write_whole(path, json.dumps(document, indent=1).encode())


def _sessions(path: Path) -> Iterable[dict[str, Any]]:
    try:
        sessions: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["sessions"]
    except (OSError, ValueError, KeyError):
        return []
    return sessions
