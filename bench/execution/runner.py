"""Run of a suite: loads it on a backend, executes what has no records yet, writes the results.

The work is divided into units, each one chunk of examples of one task. Records of a unit are
written when it is finished and never change afterwards, so a run can be interrupted at any time, is
resumed by the next one, and has the same results on every backend.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.core import lock
from bench.core.contracts.attack import ExternalAttack
from bench.evaluation.audit import probe_models
from bench.evaluation.certification import store
from bench.execution import decisions, refusal, resume_check
from bench.execution.backends.backend import Backend
from bench.execution.backends.inline import InlineBackend
from bench.execution.events import Event, Listener
from bench.execution.loaded_suite import LoadedSuite, explain_unfit
from bench.execution.manifest_builder import (
    build_manifest,
    current_time,
    read_earlier_manifest,
    write_manifest,
)
from bench.execution.options import RunOptions
from bench.execution.result_writer import ResultWriter, unit_key
from bench.execution.work import (
    CertificationUnit,
    FirstImages,
    ModelTiming,
    ProbeUnit,
    ResumeCheck,
    WorkUnit,
    divide_long_units,
    plan_units,
)
from bench.storage import environment, reader, records
from bench.storage.schema import Piece
from bench.suite import plan
from bench.suite.schema import Suite


def run_suite(
    suite: Suite,
    out: Path,
    options: RunOptions,
    listen: Listener = lambda event: None,
    backend: Backend | None = None,
) -> None:
    """Run everything of a suite that has no records in a folder yet.

    Temporary files of an earlier run are removed; damaged files are set aside, and their records
    made again. After a KeyboardInterrupt, finished records remain. A run that is refused leaves the
    folder as it was.

    Args:
        suite: Checked suite.
        out: Folder of the run, which is locked meanwhile.
        options: Options of the run.
        listen: Receives the events of the run.
        backend: Where the units are executed; default: in this process.

    Raises:
        SuiteError: The user's mistakes, before the first unit where they can be known then.
    """
    backend = InlineBackend() if backend is None else backend
    with (
        refusal.undo_refused_run(out),
        lock.hold_lock(out, lambda sentence: listen(Event("note", sentence, 0.0))),
        backend.open(suite, out, options, listen) as loaded,
    ):
        _Run(suite, out, options, listen, backend, loaded).execute()


class _Run:
    """One session of a run, in a folder that is locked and with a suite that is loaded."""

    def __init__(
        self, suite: Suite, out: Path, options: RunOptions, listen: Listener, backend: Backend,
        loaded: LoadedSuite,
    ) -> None:  # fmt: skip
        self.suite, self.out, self.options, self.listen = suite, out, options, listen
        self.backend, self.loaded = backend, loaded
        self.tasks = plan.plan_tasks(suite, loaded.facts)
        self.unfit = {label: model.unfit for label, model in loaded.models.items() if model.unfit}

    def execute(self) -> None:
        """Execute the session."""
        if self.options.fresh:
            records.delete_records(self.out)
        recovered = records.recover_records(self.out)
        for note in recovered.notes:
            self.listen(Event("note", note, 0.0))
        self.writer = writer = ResultWriter(self.out, self.listen, self.options.image_quota)
        if recovered.pieces:
            self._check_resumed_models()
        manifest = self._start_manifest()
        session = manifest["sessions"][-1]
        planned = plan_units(
            self.tasks, self.loaded.attack_chunks, self.loaded.data.shape, recovered.pieces,
            self.options.shard,
        )  # fmt: skip
        units = self._time_units(planned)
        self._clear_old_failures()
        session["parts"] = len(units)
        if units and recovered.pieces:
            for sentence in environment.describe_mixed_versions(manifest["sessions"]):
                writer.note(sentence)
        self._describe_plan(units, recovered.pieces)
        if units or recovered.notes:
            self.backend.run([FirstImages(self.loaded.data.fingerprint)], writer)
        self._refuse_unfit(planned)
        skips = any(task.entry.skip_certified for task in self.tasks)
        if skips:  # the attacks need the certificates, which are else computed after them
            self._certify(units)
            units = self._skip_certified(units)
            self._report(decisions.describe_certified(units))
        self.backend.run(units, writer)
        if writer.adversarial.left_out:
            writer.note(writer.adversarial.describe_left_out())
        if not skips:
            self._certify([])
        if self.options.shard.number == 1:  # a model is probed by one shard alone
            manifest["probes"] = self._probe(manifest["probes"])
        session["finished"] = current_time()
        session["copies"] = {
            label: writer.accelerated.get(label, []) for label in self.loaded.models
        }
        if writer.failed_captures:
            session["failed_captures"] = dict(writer.failed_captures)
        write_manifest(self.out, manifest)

    def _start_manifest(self) -> dict[str, Any]:
        """Write the manifest with this session after those of earlier ones, and return it."""
        manifest = build_manifest(self.suite, self.options, self.loaded, self.tasks)
        earlier = read_earlier_manifest(self.out)
        manifest["probes"] = {} if self.options.fresh else earlier.get("probes", {})
        manifest["sessions"] = [*earlier.get("sessions", []), *manifest["sessions"]]
        write_manifest(self.out, manifest)
        return manifest

    def _describe_plan(self, units: list[WorkUnit], pieces: list[Piece]) -> None:
        """Report what was decided, the work ahead, and what was found in the models."""
        self._report(
            decisions.describe_loaded_suite(self.loaded, self.unfit, self.options, self.out)
        )
        self._report(
            decisions.describe_units(self.tasks, self.loaded, pieces, units, self.options.shard)
        )
        self._announce(units)
        for model in self.loaded.models.values():
            for finding in model.findings:
                self.writer.note(finding)

    def _announce(self, units: list[WorkUnit]) -> None:
        """Report the work ahead."""
        works: dict[str, dict[str, float]] = {}
        bounds: dict[str, dict[str, float]] = {}
        for unit in units:
            attack = unit.task.entry.label
            for sums, value in ((works, unit.work), (bounds, unit.most_passes)):
                own = sums.setdefault(unit.task.model, {})
                own[attack] = own.get(attack, 0.0) + value
        external = {
            unit.task.entry.label
            for unit in units
            if isinstance(unit.task.spec.attack, ExternalAttack)
        }
        about: dict[str, Any] = {
            "works": works, "most_passes": bounds, "external": sorted(external)
        }  # fmt: skip
        if self.options.shard.number == 1:
            n = self.loaded.data.n
            about["probes"] = {
                label: probe_models.count_probe_passes(n, self.tasks, label)
                for label in self.loaded.models
                if label in works
            }
        self.listen(Event("start", self.suite.title, sum(unit.work for unit in units), about))

    def _check_resumed_models(self) -> None:
        """Ask each model that has records whether it still returns what they contain."""
        selected = resume_check.select_files(self.tasks, self.out)
        checks = [
            ResumeCheck(label, selected[label])
            for label, model in self.loaded.models.items()
            if label in selected and not model.facts.random and label not in self.unfit
        ]
        self.backend.run(checks, self.writer)

    def _time_units(self, planned: list[WorkUnit]) -> list[WorkUnit]:
        """The units with their work; without those of models that cannot be attacked or timed."""
        units = [unit for unit in planned if not explain_unfit(unit.task, self.unfit)]
        timings = [
            ModelTiming(
                source,
                tuple(unit for unit in units if unit.task.source == source),
                tuple(unit for unit in units if source in (*unit.task.models, unit.task.source)),
            )
            for source in dict.fromkeys(unit.task.source for unit in units)
        ]
        self.backend.run(timings, self.writer)
        self.unfit |= self.writer.unfit
        timed = [
            unit._replace(work=self.writer.works.get(unit_key(unit), 0.0))
            for unit in units
            if not explain_unfit(unit.task, self.unfit) and self.writer.remaining(unit).cells
        ]
        if self.options.deterministic:  # the rows of a pass must not depend on a timing
            return timed
        rows = {label: model.facts.rows for label, model in self.loaded.models.items()}
        return divide_long_units(timed, rows, self.loaded.facts)

    def _clear_old_failures(self) -> None:
        """Remove failures of cells that are no longer planned.

        A model that could not be loaded, and now can be, has other identities since.
        """
        planned = {cell.identity for task in self.tasks for cell in task.cells}
        for cell in reader.read_failures(self.out).keys() - planned:
            records.delete_failure(self.out, cell)

    def _refuse_unfit(self, planned: list[WorkUnit]) -> None:
        """Fail the cells of models that cannot be attacked, task by task."""
        for number, task in enumerate(self.tasks):
            if why := explain_unfit(task, self.unfit):
                own = [unit for unit in planned if unit.number == number]
                cells = {cell.identity for unit in own for cell in unit.task.cells}
                self.writer.refuse_task(task.only(cells), why)

    def _certify(self, units: Sequence[WorkUnit]) -> None:
        """Compute the certificates that are not stored.

        Their seconds are not the attacks', so they count no work. A shard computes its own, and
        those of the examples that its `units` attack.
        """
        shard, chunks = self.options.shard, self.loaded.chunks
        tasks = self.loaded.certification
        needed = {
            (unit.task.model, unit.task.spec.norm, first)
            for unit in units
            for first, last in chunks
            if unit.task.entry.skip_certified and first < unit.last and unit.first < last
        }
        is_own = {
            (task.identity, first): shard.contains(number, at)
            or (task.smoothing is None and (task.model, task.norm, first) in needed)
            for number, task in enumerate(tasks)
            for at, (first, _) in enumerate(chunks)
        }
        missing = store.pending_chunks(chunks, tasks, self.out)
        self._report(decisions.describe_certificates(tasks, missing))
        own = [CertificationUnit(*each) for each in missing if is_own[each[0].identity, each[1]]]
        self.backend.run(own, self.writer)

    def _skip_certified(self, units: Sequence[WorkUnit]) -> list[WorkUnit]:
        """The units with the certified examples that they do not attack.

        Where a model has no certificates, as where its code failed, every example is attacked.
        """
        ids = store.read_certified_ids(self.out, self.loaded.certification)
        return [
            unit._replace(
                certified={
                    cell.identity: tuple(
                        sorted(
                            example
                            for example in ids.get((unit.task.model, cell.norm, cell.eps), ())
                            if unit.first <= example < unit.last
                        )
                    )
                    for cell in unit.task.cells
                }
            )
            if unit.task.entry.skip_certified
            else unit
            for unit in units
        ]

    def _probe(self, earlier: Mapping[str, Any]) -> dict[str, Any]:
        """Model -> its probes; those of an earlier session where they are current."""
        probes, units = {}, []
        for label, model in self.loaded.models.items():
            of = probe_models.identify_probes(
                self.tasks, label, model.facts.model_fingerprint, self.loaded.data.fingerprint
            )
            if label in self.unfit:
                probes[label] = probe_models.describe_unprobed(of, f"it {self.unfit[label]}")
            elif probe_models.is_current(earlier.get(label, {}), of):
                probes[label] = earlier[label]
            else:
                units.append(ProbeUnit(label, tuple(of)))
        self.backend.run(units, self.writer)
        probes |= self.writer.probes
        probes = {label: probes[label] for label in self.loaded.models}
        self._report(decisions.describe_probes(earlier, probes))
        return probes

    def _report(self, events: Iterator[Event]) -> None:
        for event in events:
            self.listen(event)
