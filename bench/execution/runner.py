"""Cells -> records: loads what a suite names, runs what is not done yet, keeps what is finished.

The work is cut into shards of examples; a shard's records are written as soon as they are made and
never change, so a run can be interrupted anywhere, goes on where it was, and gives the same whoever
does which of its `parts`.
"""

import dataclasses
import itertools
import json
import math
import shlex
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.core import files, lock, streams
from bench.core.errors import SuiteError
from bench.engine import determinism, timing
from bench.evaluation import loading
from bench.evaluation.audit.probe_models import probe_models
from bench.evaluation.certification import store
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.stages import UNWATCHED, Stage, Watch
from bench.execution import decisions, resume_check
from bench.execution.events import Event, Listener
from bench.execution.result_writer import ResultWriter, select_first_images
from bench.execution.sharding import WHOLE, Shard
from bench.execution.work import Work, describe_failure, in_process, plan_units, weighed
from bench.models import fingerprint
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.storage import environment, reader, records, schema
from bench.storage.images import CLEAN, write_images
from bench.suite import plan
from bench.suite import plan as certified
from bench.suite.schema import Suite


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What the command line can say about a run, and the suite cannot."""

    device: str = "auto"
    limit: int | None = None
    batch_size: int | None = None
    data_dir: Path = Path()
    fresh: bool = False
    copied: bool = True
    """Whether attacks lead with a faster copy of the model."""
    deterministic: bool = False
    """Whether all is done so that another run on this device gives the same bits."""
    keep: int = 0
    """Bytes that the adversarial images may take, all of which are kept where it is not 0."""
    share: Shard = WHOLE
    """Which parts of the run are done."""
    command: str = dataclasses.field(default_factory=lambda: shlex.join(["bench", *sys.argv[1:]]))

    def plain(self) -> dict[str, Any]:
        """What of it changes outcomes, for the provenance."""
        names = ("device", "limit", "batch_size", "copied", "deterministic")
        share = f"{self.share.number}/{self.share.of}"
        return {**{name: getattr(self, name) for name in names}, "share": share}


def default_run_folder(suite: str) -> Path:
    """Where a suite's run goes when nothing else is said."""
    return Path("results") / "runs" / suite


def run_suite(
    suite: Suite,
    out: Path,
    options: RunOptions,
    listen: Listener = lambda event: None,
    work: Work = in_process,
) -> None:
    """Run what `out` does not hold yet of `suite`; `work` says who attempts its parts.

    Raises: SuiteError for the user's mistakes, before anything runs where they can be known then.
    KeyboardInterrupt passes through; whatever was finished is kept. What an earlier run left half
    goes, and what was damaged since is set aside and made again.
    """
    with lock.hold_lock(out, lambda told: listen(Event("note", told, 0.0))):
        run_held(suite, out, options, listen, work)


def run_held(
    suite: Suite,
    out: Path,
    options: RunOptions,
    listen: Listener,
    work: Work = in_process,
    watch: Watch = UNWATCHED,
) -> None:
    """As `run`, in a folder that is held already; `watch` hears of what may end this process."""
    with determinism.enforce_determinism(options.deterministic):
        _run(suite, out, options, listen, work, watch)


def _run(
    suite: Suite, out: Path, options: RunOptions, listen: Listener, work: Work, watch: Watch
) -> None:
    session = load_evaluator(suite, out, options, watch)
    facts = {label: session.facts(label) for label in session.subjects}
    tasks = plan.plan_tasks(suite, facts)
    if options.fresh:
        records.delete_records(out)
    recovered = records.recover_records(out)
    for told in recovered.notes:
        listen(Event("note", told, 0.0))
    bounds = []
    for bound in store.plan_certification(suite, session):
        watch.enter(Stage("load", f"model '{bound.model}', reading its layers", bound.model))
        bounds.append(store.check_readable(session, bound))
    if recovered.pieces:
        for sentence in resume_check.check_model(session, tasks, out, watch):
            listen(Event("note", sentence, 0.0))
    document = _document(suite, options, session, tasks, bounds)
    earlier = _earlier(out)
    document["probes"] = {} if options.fresh else earlier.get("probes", {})
    document["sessions"] = [*earlier.get("sessions", []), *document["sessions"]]
    write_manifest(out, document)
    there = recovered.pieces
    wanted = plan_units(session, tasks, there, options.share, watch.lost)
    parts = weighed(session, wanted, watch)
    _forget_failures(out, tasks)
    document["sessions"][-1]["parts"] = len(parts)
    if parts and there:
        for sentence in environment.describe_mixed_versions(document["sessions"]):
            listen(Event("note", sentence, 0.0))
    _tell(listen, decisions.describe_loaded_suite(session, options.device, out))
    _tell(listen, decisions.describe_units(tasks, session, there, parts, options.share))
    listen(Event("start", suite.title, sum(part.work for part in parts)))
    for subject in session.subjects.values():
        for finding in subject.findings:
            listen(Event("note", finding, 0.0))
    if parts or recovered.notes:
        _keep_clean(session, out)
    ledger = ResultWriter(out, listen, options.keep)
    for number, task in enumerate(tasks):
        if why := session.why_unfit(task):
            own = [part for part in wanted if part.number == number]
            ledger.refuse(
                task.only({cell.identity for part in own for cell in part.task.cells}), why
            )
    work(session, parts, ledger)
    if ledger.keeper.left_out:
        ledger.note(ledger.keeper.describe_left_out())
    _certify(session, bounds, out, listen, options.share, watch)
    if options.share.number == 1:  # a model is probed once, whoever attacks it
        before = document["probes"]
        document["probes"] = probe_models(session, tasks, before, watch)
        _tell(listen, decisions.describe_probes(before, document["probes"]))
    ledger.tell(session.reasons, session.notes)
    document["sessions"][-1]["finished"] = _now()
    document["sessions"][-1]["copies"] = {label: session.told(label) for label in session.subjects}
    write_manifest(out, document)


def _forget_failures(out: Path, tasks: list[plan.AttackTask]) -> None:
    """Notes of failed cells that are no longer planned go: such as those of a model that could not
    be made ready, and now can be, whose cells have other identities since."""
    planned = {cell.identity for task in tasks for cell in task.cells}
    for cell in reader.read_failures(out).keys() - planned:
        records.delete_failure(out, cell)


def load_evaluator(
    suite: Suite, out: Path | None, options: RunOptions, watch: Watch = UNWATCHED
) -> Evaluator:
    """Load all that the suite names, to write into `out` if that is given; every mistake of the
    user's surfaces here.

    Raises: SuiteError in one sentence for each.
    """
    device = loading.select_device(options.device)
    if out is not None:
        files.check_writable(out / "records")
    data = loading.load_data(suite.data, suite.base, options.data_dir, options.limit)
    subjects, rows, unfit = {}, {}, {}
    notes: list[str] = []
    for entry in suite.models:
        watch.enter(Stage("load", f"model '{entry.label}', loading it", entry.label))
        try:
            with streams.protect_streams(notes.append, f"model '{entry.label}'"):
                subject = loading.load_model(
                    entry, suite.base, suite.seed, data, device, options.data_dir
                )
                sample = data.read(0, 1).to(device)
                rows[entry.label] = options.batch_size or timing.rows_per_pass(
                    subject.model, sample
                )
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a stranger's model, which may raise whatever it is asked
            why = f"could not be made ready: {describe_failure(error)}"
            unfit[entry.label], rows[entry.label] = why, 0
            subjects[entry.label] = checks.refuse_model(entry.label, describe_failure(error))
            continue
        subjects[entry.label] = subject
        for attack in suite.attacks:
            if attack.goal == "targeted":
                plan.resolve_target(attack, subject.classes, data.classes)
    _check_apart(subjects)
    return Evaluator(
        suite=suite.name,
        seed=suite.seed,
        device=device,
        data=data,
        subjects=subjects,
        rows=rows,
        fixed_rows=options.batch_size is not None,
        copied=options.copied,
        keep=options.keep > 0,
        unfit=unfit,
        notes=notes,
    )


def _check_apart(subjects: Mapping[str, LoadedModel]) -> None:
    """Raises: SuiteError if two models have one fingerprint and not one answer: then a number of
    one could be taken for one of the other."""
    for (label, one), (other, two) in itertools.combinations(subjects.items(), 2):
        if one.fingerprint != two.fingerprint or one.logits is None or two.logits is None:
            continue
        if fingerprint.logits_differ(one.logits, two.logits):
            raise SuiteError(
                f"models '{label}' and '{other}': expected one's answers from what is one model as "
                "far as bench can see, got other logits on the first images; let what sets them "
                "apart be among their params, or an attribute of theirs"
            )


def _certify(
    session: Evaluator,
    bounds: list[certified.CertificationTask],
    out: Path,
    listen: Listener,
    share: Shard,
    watch: Watch,
) -> None:
    """Certificates that are not on disk; their seconds are not the attacks', so no work is told."""
    places = {
        (task.identity, first): share.holds(number, at)
        for number, task in enumerate(bounds)
        for at, (first, _) in enumerate(session.shards())
    }
    missing = store.pending_chunks(session, bounds, out)
    _tell(listen, decisions.describe_certificates(bounds, missing))
    for task, first, last in missing:
        if not places[task.identity, first]:
            continue
        name = f"{task.model} · certified by {task.method}"
        if watch.enter(Stage("certify", name, task.model)):
            continue
        about = {"model": task.model, "method": task.method, "first": first, "last": last}
        try:
            session.clean_pass(task.model)
            watch.enter(Stage("certify", name, task.model, timed=False))
            listen(Event("begin", name, 0.0, about))
            store.certify_chunk(session, task, first, last, out)
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a stranger's model: its certificates alone are missing
            why = describe_failure(error)
            listen(Event("failed", f"{name}: {why}", 0.0, {**about, "reason": why}))
            continue
        listen(Event("done", name, 0.0, about))


def _tell(listen: Listener, events: Iterator[Event]) -> None:
    for event in events:
        listen(event)


def _keep_clean(session: Evaluator, out: Path) -> None:
    """The first clean images, to be shown beside the adversarial ones."""
    first, last = session.shards()[0]
    images = {session.data.fingerprint: select_first_images(session.data.read(first, last))}
    write_images(out, CLEAN, images)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# ------------------------------------------------------------------------------------- provenance


def _document(
    suite: Suite,
    options: RunOptions,
    session: Evaluator,
    tasks: list[plan.AttackTask],
    bounds: list[certified.CertificationTask],
) -> dict[str, Any]:
    """provenance.json: the plan, what it was made from, and the sessions that worked on it."""
    own = environment.hash_user_files(suite)
    return {
        "schema": schema.SCHEMA_VERSION,
        "suite": {
            "name": suite.name,
            "title": suite.title,
            "seed": suite.seed,
            "sweep": suite.sweep,
            "text": suite.text,
            "base": environment.relative_path(suite.base) if own else "",
        },
        "files": own,
        "data": {
            "name": session.data.name,
            "n": session.data.n,
            "shape": session.data.shape,
            "classes": session.data.classes,
            "fingerprint": session.data.fingerprint,
            "mapping": dict(session.data.mapping),
        },
        "models": {
            label: {
                "classes": subject.classes,
                "fingerprint": subject.fingerprint,
                "findings": subject.findings,
                "rows_per_pass": session.rows[label],
                "predictions": subject.predictions,
                "logits": _largest(subject.logits),
                "random": subject.random,
            }
            for label, subject in session.subjects.items()
        },
        "cells": [dataclasses.asdict(cell) for task in tasks for cell in task.cells],
        "crosschecks": [[pair.ours, pair.reference] for pair in suite.crosschecks],
        "certify": [dataclasses.asdict(task) for task in bounds],
        "published": [dataclasses.asdict(entry) for entry in suite.published],
        "sessions": [
            {
                "started": _now(),
                "finished": None,
                "command": options.command,
                "options": options.plain(),
                "environment": environment.describe_environment(session.device),
                "loaded": environment.list_loaded_packages(),
                "requirements": environment.list_requirements(),
            }
        ],
    }


def _largest(logits: Tensor | None) -> list[list[float | None]] | None:
    """The ten largest logits of each of the first images, largest first; None of a model that
    answers at random."""
    if logits is None:
        return None
    rows = logits.topk(min(10, logits.shape[1]), dim=1).values.tolist()
    return [[float(f"{x:.6g}") if math.isfinite(x) else None for x in row] for row in rows]


def _earlier(out: Path) -> dict[str, Any]:
    """What provenance.json says already; empty where there is none that can be read."""
    files.remove_partials(out, "provenance.json*")
    try:
        found = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    kinds = {"probes": dict, "sessions": list}
    whole = isinstance(found, dict) and all(
        isinstance(found.get(key, kind()), kind) for key, kind in kinds.items()
    )
    return found if whole else {}


def write_manifest(out: Path, document: dict[str, Any]) -> None:
    """Write provenance.json. Raises: SuiteError if it cannot be written."""
    text = json.dumps(document, indent=1, ensure_ascii=False)
    files.write_atomic(out / "provenance.json", text.encode())
