"""Hold the models of an evaluation with what was measured of them and made for them.

For each model that is how many rows a pass takes, the pace of a bare loop (the floor) and the
accelerated model that is attacked in its place.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.dataset import Data
from bench.core.contracts.types import ACCESS_RANK, Precision
from bench.core.errors import SuiteError
from bench.engine import process_cache, timing
from bench.engine.acceleration import accelerate, calibration
from bench.engine.acceleration.accelerate import AcceleratedModel
from bench.engine.cuda_graphs import KeptGraphs
from bench.engine.device import has_tf32, is_gpu
from bench.engine.rejection import select_classifier
from bench.engine.source_ensemble import SourceEnsemble
from bench.evaluation.setup_budget import SetupPlan, plan_setup
from bench.models.preflight.checks import LoadedModel
from bench.suite import plan
from bench.suite.schema import EnsembleEntry

MAX_JUDGE_ROWS = 64
"""Most rows per pass of the judge on a CPU."""
FLOOR_AGE = 20
"""A floor is timed again when it is older than so many times what timing it takes."""


def _name_classifier(label: str) -> str:
    """Name the classifier of a model with a detector, as no model's label can be."""
    return f"{label}\0"


def _is_same_model(one: LoadedModel, other: LoadedModel) -> bool:
    """Check whether two models are one, as far as the identity of a cell can tell."""
    return (one.fingerprint, one.sketch, one.predictions) == (
        other.fingerprint, other.sketch, other.predictions
    )  # fmt: skip


class _TimedFloor(NamedTuple):
    """A floor, when it was timed and how long that took, in seconds."""

    floor: timing.Floor
    timed: float
    took: float


class ModelPool:
    """The models of an evaluation with what was measured of them and made for them."""

    def __init__(
        self,
        data: Data,
        device: torch.device,
        models: Mapping[str, LoadedModel],
        rows: Mapping[str, int],
        *,
        fixed_rows: bool,
        use_acceleration: bool,
        one_attack: bool = False,
        notes: list[str],
        decisions: list[str],
    ) -> None:
        """Take the models; nothing is timed or accelerated yet.

        Args:
            data: Images that are timed.
            device: Where models and images are placed.
            models: Loaded models by label.
            rows: Model -> rows per pass.
            fixed_rows: Whether the user set the rows.
            use_acceleration: Whether attacks may use accelerated models.
            one_attack: Whether the models are loaded for one attack, which bounds the passes of
                its set-up.
            notes: Receives events that the user should know of, a sentence each.
            decisions: Receives what was decided and why, a sentence each.
        """
        self.data, self.device = data, device
        self.models, self.rows = dict(models), dict(rows)
        self.fixed_rows, self.use_acceleration = fixed_rows, use_acceleration
        self._one_attack = one_attack
        self._notes, self._decisions = notes, decisions
        self._accelerated: dict[tuple[str, Precision], accelerate.AcceleratedModel] = {}
        self._floors: dict[tuple[str, int], _TimedFloor] = {}
        self.kept_graphs = KeptGraphs()
        """CUDA graphs of steps, and captures that failed, which are not tried again."""
        self.failed_captures: Counter[str] = Counter()
        """Source -> captures that failed; emptied once reported."""
        self._uncaptured: set[tuple[str, str]] = set()
        """Sources and reasons of which the user was notified."""
        self._noted: set[str] = set()
        """Notes on TF32 so far."""
        self._decided: set[str] = set()
        """All decisions so far; the owner of `decisions` empties it once it has reported them."""

    def load_source(self, task: plan.AttackTask) -> LoadedModel:
        """Return what a task's examples are crafted on.

        Args:
            task: The planned task.

        Returns:
            The model, or several as one. Of another model than the judged one its classifier:
            evading or raising a score that nobody asks would weaken the attack.
        """
        return self.models[self.name_source(task)]

    def name_source(self, task: plan.AttackTask) -> str:
        """Name what a task's examples are crafted on; it is made once.

        Args:
            task: The planned task.

        Returns:
            Its name in `models`.
        """
        label, ensemble = task.source, task.entry.ensemble
        if ensemble is not None:
            if label not in self.models:
                self._add_ensemble(label, ensemble)
            return label
        source = self.models[label]
        if source.detector is None or _is_same_model(source, self.models[task.model]):
            return label
        name = _name_classifier(label)
        if name not in self.models:
            self.models[name] = source._replace(
                model=select_classifier(source.model), detector=None, scores=None
            )
            self.rows[name] = self.rows[label]
        return name

    def _add_ensemble(self, label: str, entry: EnsembleEntry) -> None:
        """Add a source of several models, of each its classifier."""
        members = [self.models[member] for member in entry.models]
        self.models[label] = members[0]._replace(
            label=label,
            model=SourceEnsemble(
                [select_classifier(each.model) for each in members], entry.weights, entry.combine
            ),
            fingerprint="",
            findings=(),
            predictions=1,
            random=any(each.random for each in members),
            access=min((each.access for each in members), key=ACCESS_RANK.__getitem__),
            detector=None,
            logits=None,
            scores=None,
            sketch="",
        )
        fewest = min(self.rows[member] for member in entry.models)
        self.rows[label] = fewest if self.fixed_rows else max(1, fewest // len(members))

    def judge_rows(self, model: str) -> int:
        """Choose the judge's rows per pass.

        A forward pass keeps less than a gradient does, so that on a CPU more rows of a large net
        fit the cache, and fewer of a small one are enough. Predictions of a random model depend on
        them, and they on nothing else.

        Args:
            model: Its label.

        Returns:
            Rows per pass.
        """
        rows = self.rows[model]
        fixed = self.fixed_rows or self.models[model].random or is_gpu(self.device)
        return rows if fixed else min(MAX_JUDGE_ROWS, 4 * rows)

    def attack_rows(self, task: plan.AttackTask) -> int:
        """Choose the rows per pass of an attack without an accelerated model.

        Args:
            task: The planned task.

        Returns:
            Rows by the user or by rule; an external attack's outcome may depend on them.
        """
        return task.entry.batch_size or self.rows[self.name_source(task)]

    def seconds_per_example(self, task: plan.AttackTask) -> float:
        """Estimate the cost of a task from above.

        Args:
            task: The planned task.

        Returns:
            Most seconds that a bare loop would need for one example of all the task's cells.
        """
        floor = self.floor(self.name_source(task), self.attack_rows(task))
        return sum(floor.seconds(cell.passes or 1.0, cell.gradients or 0.0) for cell in task.cells)

    def task_floor(self, task: plan.AttackTask, rows: int) -> timing.Floor | None:
        """Time the floor of a task.

        Args:
            task: The planned task.
            rows: Rows per pass of its attack.

        Returns:
            Seconds of passes of its source; None where timing them takes more passes than the
            set-up of a single attack may.
        """
        if not self._one_attack:
            return self.floor(self.name_source(task), rows)
        calls = self._plan_setup(task, rows).floor_calls
        if not calls:
            return None
        return self.floor(self.name_source(task), self._filled_rows(task, rows), calls)

    def floor(self, model: str, rows: int, most_calls: int = timing.MAX_CALLS) -> timing.Floor:
        """Time a bare loop on this model at this many rows, or take a recent measurement.

        A shared machine's pace drifts by a third within minutes, so a floor is timed again once
        it is older than FLOOR_AGE times what timing it takes: close to the work that it is
        compared with, for at most a twentieth of the time.

        Args:
            model: Its label.
            rows: Rows per pass.
            most_calls: Most calls of each kind that are timed.

        Returns:
            Seconds of its passes.
        """
        key = "floor", rows, self._circumstances()
        known = self._floors.get((model, rows)) or self._recall(model, *key)
        if known is None or time.perf_counter() - known.timed > FLOOR_AGE * known.took:
            x = self.data.read(0, min(self.data.n, rows)).to(self.device)
            y = torch.zeros(len(x), dtype=torch.int64, device=self.device)
            started = time.perf_counter()
            floor = timing.measure_floor(self.models[model].model, x, y, rows, most_calls)
            ended = time.perf_counter()
            known = _TimedFloor(floor, ended, ended - started)
            self._store(known, model, *key)
        self._floors[model, rows] = known
        return known.floor

    def accelerate(self, task: plan.AttackTask) -> accelerate.AcceleratedModel | None:
        """Accelerate the task's source.

        An accelerated model whose rows and layout were chosen by rule is built again for a task
        that is worth timing them.

        Args:
            task: The planned task.

        Returns:
            The accelerated model; None for an external attack, or where it is declined.

        Raises:
            SuiteError: The precision needs an accelerated model and there can be none.
        """
        self._note_missing_tf32(task)
        if reason := self._why_not_accelerated(task):
            self._decide(
                f"{task.source} · {task.entry.label}: no accelerated model is attacked: {reason}"
            )
            return None
        precision, name = task.spec.precision, self.name_source(task)
        known = self._accelerated.get((name, precision))
        ahead = self._passes_ahead(task)
        if self._one_attack and not self._plan_setup(task, self.rows[name]).calibrates:
            ahead = 0.0
        if known is None or not (known.timed or ahead < known.worth):
            known = self._make_accelerated(task, ahead)
            self._accelerated[name, precision] = known
            self._decide(f"{task.source}, in {precision}: {known.describe()}")
        size = task.entry.batch_size
        return known if size is None else known._replace(rows=size)

    def _make_accelerated(self, task: plan.AttackTask, ahead: float) -> AcceleratedModel:
        """Find the accelerated model of a task's source, or make it as in an earlier call."""
        precision, name = task.spec.precision, self.name_source(task)
        model, rows, most_rows = self.models[name].model, self.rows[name], accelerate.FULL
        if self._one_attack:
            most_rows = self._filled_rows(task, rows)
        worth = calibration.is_worth_timing(rows, ahead)
        key = "accelerated", precision, rows, most_rows, worth, self._circumstances()
        known = self._recall(name, *key)
        made = None if known is None else accelerate.rebuild_model(model, known)
        if made is None:
            x = self.data.read(0, min(self.data.n, accelerate.PROBED)).to(self.device)
            made = accelerate.accelerate_model(
                model, x, rows, precision, self.fixed_rows, ahead,
                brief=self._one_attack, most_rows=most_rows,
            )  # fmt: skip
            self._store(accelerate.describe_choice(made, self.device), name, *key)
        return made

    def _passes_ahead(self, task: plan.AttackTask) -> float:
        """Count the most gradients of a task for all images, a forward pass as half of one."""
        each = sum((cell.passes or 1.0) + (cell.gradients or 0.0) for cell in task.cells) / 2
        return each * self.data.n

    def _filled_rows(self, task: plan.AttackTask, rows: int) -> int:
        """Return the rows per pass that the images of a task fill at all its eps."""
        return min(rows, self.data.n * len(task.cells))

    def _plan_setup(self, task: plan.AttackTask, rows: int) -> SetupPlan:
        """Decide what precedes a single attack at so many rows per pass."""
        return plan_setup(
            self.data.n,
            self._passes_ahead(task),
            self._filled_rows(task, rows),
            not self._cannot_accelerate(task),
            len(task.models),
        )

    def _recall(self, model: str, *key: Any) -> Any:
        """Look up what an earlier call of a single attack found out about a model."""
        if not self._one_attack:
            return None
        known = self.models[model]  # a model that rejects and its classifier have one fingerprint
        return process_cache.recall(known.fingerprint, known.detector is None, *key)

    def _store(self, fact: Any, model: str, *key: Any) -> None:
        """Keep what this call of a single attack found out about a model."""
        if self._one_attack:
            known = self.models[model]
            process_cache.store(fact, known.fingerprint, known.detector is None, *key)

    def _circumstances(self) -> tuple[Any, ...]:
        """List what else a choice or a time depends on: images, device and torch's settings."""
        return (
            self.data.shape,
            str(self.device),
            self.fixed_rows,
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
        )

    def acceleration_summary(self, model: str) -> list[dict[str, object]]:
        """Describe the accelerated models that were attacked in a model's place.

        Args:
            model: Its label.

        Returns:
            For each precision, the fields that the manifest records.
        """
        names = (model, _name_classifier(model))
        return [
            each.to_manifest() for (name, _), each in self._accelerated.items() if name in names
        ]

    def reduce_rows(self, task: plan.AttackTask, rows: int, left: int) -> None:
        """Use fewer rows per pass from now on, after memory ran out, and note it.

        Args:
            task: The planned task.
            rows: Rows per pass that were asked for.
            left: Rows per pass at the end.
        """
        self._notes.append(
            f"{task.model} · {task.entry.label}: out of memory at {rows} rows a pass; "
            f"went on with {left}"
        )
        key = self.name_source(task), task.spec.precision
        if key in self._accelerated:
            self._accelerated[key] = self._accelerated[key]._replace(rows=left)

    def drop_accelerated(self, task: plan.AttackTask, why: str) -> None:
        """Attack the source itself from now on, after its accelerated model misled an attack.

        Args:
            task: The planned task.
            why: What the accelerated model did.
        """
        self._notes.append(
            f"{task.model} · {task.entry.label}: the accelerated model of {task.source} was "
            f"dropped: {why}; these examples were attacked again on {task.source} itself, as all "
            "will be from now on"
        )
        name = self.name_source(task)
        key, model = (name, task.spec.precision), self.models[name].model
        self._accelerated[key] = accelerate.original_model(model, self._accelerated[key], why)

    def note_failed_captures(self, task: plan.AttackTask) -> None:
        """Count the captures that failed in a task, and note each reason once for a source.

        Args:
            task: The planned task.
        """
        for failure in self.kept_graphs.failures.take_new():
            self.failed_captures[task.source] += 1
            if (task.source, failure.reason) in self._uncaptured:
                continue
            self._uncaptured.add((task.source, failure.reason))
            self._notes.append(
                f"{task.source}: a step of {failure.attack} cannot be captured as a CUDA graph, so "
                f"that its kernels are launched one by one, which is slower ({failure.reason})"
            )

    def _note_missing_tf32(self, task: plan.AttackTask) -> None:
        """Notify the user once that gradients that should be in TF32 are in float32."""
        if task.spec.precision != "tf32" or has_tf32(self.device):
            return
        note = (
            f"precision tf32: {self.device} has no TF32, so that the gradients of these attacks "
            "are in float32"
        )
        if note not in self._noted:
            self._noted.add(note)
            self._notes.append(note)

    def _why_not_accelerated(self, task: plan.AttackTask) -> str:
        """Say why the task's source is attacked itself; "" if an accelerated model is.

        Raises:
            SuiteError: As `_cannot_accelerate`.
        """
        reason = self._cannot_accelerate(task)
        if reason or not self._one_attack or task.spec.precision == "bfloat16":
            return reason
        if self._plan_setup(task, self.rows[self.name_source(task)]).accelerates:
            return ""
        return (
            "comparing one with the model takes more passes than an attack as short as this saves"
        )

    def _cannot_accelerate(self, task: plan.AttackTask) -> str:
        """Say why there can be no accelerated model of the task's source; "" if there may be.

        Raises:
            SuiteError: The precision needs an accelerated model and there can be none.
        """
        precision, source = task.spec.precision, self.load_source(task)
        if isinstance(task.spec.attack, ExternalAttack):
            return "the attack has a loop of its own"
        if task.spec.adaptation is not None:
            return "the attack is adapted to modules of the model, or has a loss of the user's"
        if task.spec.victim_queries:
            return "an attack that is repeated without it would query the victim again"
        if not (self.use_acceleration or precision == "bfloat16"):
            return "acceleration was declined"
        if source.access != "gradient":
            return "the model only answers queries, and nothing inside it can be accelerated"
        ensemble = task.entry.ensemble
        if ensemble is not None and ensemble.combine != "logits":
            if precision != "bfloat16":
                return f"its models are passed one by one, to average their {ensemble.combine}"
            raise SuiteError(
                f"attack '{task.entry.label}': precision bfloat16 needs an accelerated model, and "
                f"there is none of several models whose {ensemble.combine} are averaged; use "
                'precision = "float32" or combine = "logits"'
            )
        if task.spec.random and precision == "bfloat16":
            raise SuiteError(
                f"attack '{task.entry.label}': precision bfloat16 needs an accelerated model that "
                f'agrees with {task.source}, which answers at random; use precision = "float32"'
            )
        if task.spec.random:
            return "the model answers at random, so that nothing can be compared with it"
        return ""

    def _decide(self, sentence: str) -> None:
        """Record a decision once."""
        if sentence not in self._decided:
            self._decided.add(sentence)
            self._decisions.append(sentence)
