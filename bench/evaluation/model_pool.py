"""Hold the models of an evaluation with what was measured of them and made for them.

For each model that is how many rows a pass takes, the pace of a bare loop (the floor) and the
accelerated model that is attacked in its place.
"""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from bench.core import streams
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.dataset import Data
from bench.core.contracts.types import ACCESS_RANK, Precision
from bench.core.errors import SuiteError
from bench.engine import timing
from bench.engine.acceleration import accelerate
from bench.engine.cuda_graphs import KeptGraphs
from bench.engine.rejection import select_classifier
from bench.engine.source_ensemble import SourceEnsemble
from bench.evaluation import loading
from bench.models import fingerprint
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.suite import plan, targets
from bench.suite.schema import ModelEntry, Suite

MAX_JUDGE_ROWS = 64
"""Most rows per pass of the judge on a CPU."""
FLOOR_AGE = 20
"""A floor is timed again when it is older than so many times what timing it takes."""


class SuiteModels(NamedTuple):
    """The models of a suite, each under its label."""

    models: dict[str, LoadedModel]
    rows: dict[str, int]
    """Rows per pass by the memory of one row, or as the user set them; 0 for an unfit model."""
    unfit: dict[str, str]
    """Why models could not be loaded, of those that could not."""
    notes: list[str]
    """What the models printed, a sentence each."""


def load_suite_models(
    suite: Suite,
    data: Data,
    device: torch.device,
    batch_size: int | None,
    load: Callable[[ModelEntry], LoadedModel],
) -> SuiteModels:
    """Load the models of a suite.

    Args:
        suite: The checked suite.
        data: Its data.
        device: Where the models are placed.
        batch_size: Rows per pass; by the memory of one row unless given.
        load: Loads and checks the model of an entry.

    Returns:
        All models; one whose code raises is noted in `unfit`.

    Raises:
        SuiteError: Weights or a target are missing or invalid, a model fails preflight, or two
            models cannot be distinguished.
    """
    loaded_models = SuiteModels({}, {}, {}, [])
    models, rows, unfit, notes = loaded_models
    for entry in suite.models:
        label = entry.label
        try:
            with streams.protect_streams(notes.append, f"model '{label}'"):
                loaded = load(entry)
                rows[label] = choose_rows(loaded, data, device, batch_size)
        except (SuiteError, KeyboardInterrupt):
            raise
        except BaseException as error:  # of the user's model, which may raise anything
            reason = loading.describe_failure(error)
            unfit[label], rows[label] = f"could not be made ready: {reason}", 0
            models[label] = checks.refuse_model(label, reason)
            continue
        models[label] = loaded
        for attack in suite.attacks:
            if attack.goal == "targeted":
                targets.resolve_target(attack, loaded.classes, data.classes)
    _check_distinguishable(models)
    return loaded_models


def choose_rows(
    loaded: LoadedModel, data: Data, device: torch.device, batch_size: int | None
) -> int:
    """Choose the rows per pass of a model.

    Args:
        loaded: The model.
        data: Its data.
        device: Where it is placed.
        batch_size: As the user set it, if so.

    Returns:
        `batch_size`, or as many rows as the memory of one row allows.
    """
    sample = data.read(0, 1).to(device)
    return batch_size or timing.rows_per_pass(loaded.model, sample)


def _check_distinguishable(models: Mapping[str, LoadedModel]) -> None:
    """Raise SuiteError if two models have one fingerprint and different logits.

    Records of one could otherwise be taken for those of the other.
    """
    for (label, one), (other, two) in itertools.combinations(models.items(), 2):
        if one.fingerprint != two.fingerprint or one.logits is None or two.logits is None:
            continue
        if fingerprint.logits_differ(one.logits, two.logits):
            raise SuiteError(
                f"models '{label}' and '{other}': expected one's answers from what is one model as "
                "far as bench can see, got other logits on the first images; let what sets them "
                "apart be among their params, or an attribute of theirs"
            )


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
            notes: Receives events that the user should know of, a sentence each.
            decisions: Receives what was decided and why, a sentence each.
        """
        self.data, self.device = data, device
        self.models, self.rows = dict(models), dict(rows)
        self.fixed_rows, self.use_acceleration = fixed_rows, use_acceleration
        self._notes, self._decisions = notes, decisions
        self._accelerated: dict[tuple[str, Precision], accelerate.AcceleratedModel] = {}
        self._floors: dict[tuple[str, int], _TimedFloor] = {}
        self.kept_graphs = KeptGraphs()
        """CUDA graphs of steps, and captures that failed, which are not tried again."""
        self.failed_captures: Counter[str] = Counter()
        """Source -> captures that failed; emptied once reported."""
        self._uncaptured: set[tuple[str, str]] = set()
        """Sources and reasons of which the user was notified."""
        self._decided: set[str] = set()
        """All decisions so far; the owner of `decisions` empties it once it has reported them."""

    def load_source(self, task: plan.AttackTask) -> LoadedModel:
        """Return what a task's examples are crafted on; an ensemble of models is made once.

        Args:
            task: The planned task.

        Returns:
            The model, or several as one.
        """
        entry = task.entry.ensemble
        if entry is not None and task.source not in self.models:
            members = [self.models[label] for label in entry.models]
            ensemble = SourceEnsemble(
                [select_classifier(each.model) for each in members], entry.weights, entry.combine
            )
            self.models[task.source] = members[0]._replace(
                label=task.source,
                model=ensemble.eval(),
                fingerprint="",
                findings=(),
                predictions=1,
                random=any(each.random for each in members),
                access=min((each.access for each in members), key=ACCESS_RANK.__getitem__),
                logits=None,
                sketch="",
            )
            fewest = min(self.rows[label] for label in entry.models)
            self.rows[task.source] = fewest if self.fixed_rows else max(1, fewest // len(members))
        return self.models[task.source]

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
        fixed = self.fixed_rows or self.models[model].random or self.device.type == "cuda"
        return rows if fixed else min(MAX_JUDGE_ROWS, 4 * rows)

    def attack_rows(self, task: plan.AttackTask) -> int:
        """Choose the rows per pass of an attack without an accelerated model.

        Args:
            task: The planned task.

        Returns:
            Rows by the user or by rule; an external attack's outcome may depend on them.
        """
        self.load_source(task)
        return task.entry.batch_size or self.rows[task.source]

    def seconds_per_example(self, task: plan.AttackTask) -> float:
        """Estimate the cost of a task from above.

        Args:
            task: The planned task.

        Returns:
            Most seconds that a bare loop would need for one example of all the task's cells.
        """
        floor = self.floor(task.source, self.attack_rows(task))
        return sum(floor.seconds(cell.passes or 1.0, cell.gradients or 0.0) for cell in task.cells)

    def floor(self, model: str, rows: int) -> timing.Floor:
        """Time a bare loop on this model at this many rows, or take a recent measurement.

        A shared machine's pace drifts by a third within minutes, so a floor is timed again once
        it is older than FLOOR_AGE times what timing it takes: close to the work that it is
        compared with, for at most a twentieth of the time.

        Args:
            model: Its label.
            rows: Rows per pass.

        Returns:
            Seconds of its passes.
        """
        known = self._floors.get((model, rows))
        if known is None or time.perf_counter() - known.timed > FLOOR_AGE * known.took:
            x = self.data.read(0, min(self.data.n, rows)).to(self.device)
            y = torch.zeros(len(x), dtype=torch.int64, device=self.device)
            started = time.perf_counter()
            floor = timing.measure_floor(self.models[model].model, x, y, rows)
            ended = time.perf_counter()
            known = self._floors[model, rows] = _TimedFloor(floor, ended, ended - started)
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
        if reason := self._why_not_accelerated(task):
            self._decide(
                f"{task.source} · {task.entry.label}: no accelerated model is attacked: {reason}"
            )
            return None
        precision = task.spec.precision
        known = self._accelerated.get((task.source, precision))
        ahead = self.seconds_per_example(task) * self.data.n
        if known is None or not (known.timed or ahead < known.worth):
            x = self.data.read(0, min(self.data.n, accelerate.PROBED)).to(self.device)
            model, rows = self.models[task.source].model, self.rows[task.source]
            known = accelerate.accelerate_model(model, x, rows, precision, self.fixed_rows, ahead)
            self._accelerated[task.source, precision] = known
            self._decide(f"{task.source}, in {precision}: {known.describe()}")
        size = task.entry.batch_size
        return known if size is None else known._replace(rows=size)

    def acceleration_summary(self, model: str) -> list[dict[str, object]]:
        """Describe the accelerated models that were attacked in a model's place.

        Args:
            model: Its label.

        Returns:
            For each precision, the fields that the manifest records.
        """
        return [
            each.to_manifest() for (name, _), each in self._accelerated.items() if name == model
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
        key = task.source, task.spec.precision
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
        key = task.source, task.spec.precision
        model = self.models[task.source].model
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

    def _why_not_accelerated(self, task: plan.AttackTask) -> str:
        """Say why the task's source is attacked itself; "" if an accelerated model may be.

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
