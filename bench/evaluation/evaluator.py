"""Load a suite's models and data and turn chunks of a task's examples into records, in memory.

What several tasks need is computed once and shared: the clean pass of each model, the pace of a
bare loop (the floor) and the accelerated model that is attacked in a model's place.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core import rng, streams
from bench.core.contracts.attack import ExternalAttack
from bench.core.contracts.dataset import Data
from bench.core.contracts.types import Access, Precision, Shape
from bench.core.errors import SuiteError
from bench.datasets import inputs, prefetch
from bench.datasets.in_memory import make_data
from bench.engine import timing
from bench.engine.acceleration import accelerate
from bench.evaluation import consistency, loading
from bench.evaluation.chunk import CleanPass, evaluate_chunk
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import Prediction, Vote, judge
from bench.models import fingerprint, wrapping
from bench.models.preflight import checks
from bench.models.preflight.checks import LoadedModel
from bench.models.preflight.prepare import prepare_model
from bench.storage.schema import Piece
from bench.suite import plan
from bench.suite.identity import ModelFacts
from bench.suite.schema import Suite

CHUNK_EXAMPLES = 1000
CHUNK_BYTES = 64 * 2**20
"""A chunk holds at most so many examples, and so many bytes of images."""
MAX_JUDGE_ROWS = 64
"""Most rows per pass of the judge on a CPU."""
REPEATED_IMAGES = 16
"""Clean images that a model predicts again after each chunk, to see that it does not change while
it is attacked."""
FLOOR_AGE = 20
"""A floor is timed again when it is older than so many times what timing it takes."""


def chunk_bounds(n: int, shape: Shape) -> list[tuple[int, int]]:
    """Divide a data set into chunks, by the size of an image alone.

    Args:
        n: Number of images.
        shape: Shape (c, h, w) of an image.

    Returns:
        (first, last) of each chunk, `last` excluded.
    """
    channels, height, width = shape
    size = max(8, min(CHUNK_EXAMPLES, CHUNK_BYTES // (4 * channels * height * width)))
    return [(first, min(first + size, n)) for first in range(0, n, size)]


class _TimedFloor(NamedTuple):
    """A floor, when it was timed and how long that took, in seconds."""

    floor: timing.Floor
    timed: float
    took: float


class ChunkResult(NamedTuple):
    """Records, costs and images of one chunk of one task."""

    frame: pd.DataFrame
    """Records of all its cells, one row per example and cell."""
    pieces: list[Piece]
    """What the chunk cost, one per cell."""
    x_adv: Tensor
    """(cells, examples, c, h, w), on the CPU."""
    losses: Tensor | None
    """As in `chunk.VerifiedChunk`, if the spec asks for a trace."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """All models and the data of a suite on one device, with the caches that tasks share."""

    suite: str
    seed: int
    device: torch.device
    data: Data
    models: dict[str, LoadedModel]
    """By label."""
    rows: dict[str, int]
    """Model -> rows per pass, unless a calibration finds a better number for its accelerated
    model."""
    fixed_rows: bool = False
    """Whether the user set the rows."""
    use_acceleration: bool = True
    """Whether attacks use an accelerated model, where one agrees with the model."""
    keep_all_images: bool = False
    """Whether all adversarial images are wanted, not the first few alone."""
    unfit: dict[str, str] = dataclasses.field(default_factory=dict)
    """Model -> why it cannot be attacked: it raised while it was examined or timed."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Events that the user should know of, a sentence each."""
    decisions: list[str] = dataclasses.field(default_factory=list)
    """What was decided and why, a sentence each, for a verbose run."""
    _accelerated: dict[tuple[str, Precision], accelerate.AcceleratedModel] = dataclasses.field(
        default_factory=dict
    )
    _clean: dict[str, CleanPass] = dataclasses.field(default_factory=dict)
    _first: dict[str, Prediction] = dataclasses.field(default_factory=dict)
    _floors: dict[tuple[str, int], _TimedFloor] = dataclasses.field(default_factory=dict)
    _decided: set[str] = dataclasses.field(default_factory=set)
    """All decisions so far; the caller empties `decisions` once it has reported them."""

    @classmethod
    def from_suite(
        cls,
        suite: Suite,
        device: torch.device,
        data_dir: Path,
        *,
        limit: int | None = None,
        batch_size: int | None = None,
        use_acceleration: bool = True,
        keep_all_images: bool = False,
        on_load: Callable[[str], object] = lambda label: None,
    ) -> "Evaluator":
        """Load the data and the models that a suite names.

        A model whose code raises is noted in `unfit`, and its cells fail.

        Args:
            suite: The checked suite.
            device: Where models and images are placed.
            data_dir: Folder of data sets and of weights that are not shipped.
            limit: Most examples, besides the suite's own limit.
            batch_size: Rows per pass; by the memory of one row unless given.
            use_acceleration: Whether attacks may use accelerated models.
            keep_all_images: Whether all adversarial images are wanted.
            on_load: Called with a model's label before it is loaded.

        Returns:
            The evaluator of the suite.

        Raises:
            SuiteError: Data, weights or a target are missing or invalid, a model fails preflight,
                or two models cannot be told from each other.
        """
        data = loading.load_data(suite.data, suite.base, data_dir, limit)
        models, rows, unfit = {}, {}, {}
        notes: list[str] = []
        for entry in suite.models:
            label = entry.label
            on_load(label)
            try:
                with streams.protect_streams(notes.append, f"model '{label}'"):
                    loaded = loading.load_model(
                        entry, suite.base, suite.seed, data, device, data_dir
                    )
                    rows[label] = _rows_per_pass(loaded, data, device, batch_size)
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
                    plan.resolve_target(attack, loaded.classes, data.classes)
        _check_distinguishable(models)
        return cls(
            suite=suite.name,
            seed=suite.seed,
            device=device,
            data=data,
            models=models,
            rows=rows,
            fixed_rows=batch_size is not None,
            use_acceleration=use_acceleration,
            keep_all_images=keep_all_images,
            unfit=unfit,
            notes=notes,
        )

    @classmethod
    def from_tensors(
        cls,
        model: nn.Module | Callable[[Tensor], Any],
        x: Tensor,
        y: Tensor,
        device: torch.device,
        *,
        source: nn.Module | None = None,
        seed: int = 0,
        batch_size: int | None = None,
        use_acceleration: bool = True,
        predictions: int = 1,
        access: Access = "gradient",
        classes: int | None = None,
        allow: Sequence[str] = (),
        output: str | int | None = None,
    ) -> "Evaluator":
        """Build the evaluator of one model, or of a model and a source, on given images.

        Args:
            model: Maps images to logits; its label is the name of its class.
            x: Images (n, c, h, w), float in [0, 1] or 8-bit.
            y: Integer labels (n,).
            device: Where models and images are placed.
            source: Model that the examples are crafted on; it comes second in `models`.
            seed: Seed of every draw.
            batch_size: Rows per pass; by the memory of one row unless given.
            use_acceleration: Whether attacks may use accelerated models.
            predictions: Times that `model` is asked for one prediction.
            access: What the attacker sees of `model`.
            classes: Classes of a model that shows labels alone; as many as y needs unless given.
            allow: Names of preflight findings that do not stop the evaluation.
            output: Which part of `model`'s output is the logits, as in a model's entry.

        Returns:
            The evaluator, whose suite has no name.

        Raises:
            SuiteError: Images or labels are invalid, or a model fails preflight.
        """
        loading.check_tensors("given", x, y)
        data = inputs.check_data("given", make_data("given", x, y, ()))
        assert data.labels is not None
        label = type(wrapping.unwrap_model(model)).__name__
        n_classes = classes or int(data.labels.max()) + 1
        modules = {label: loading.restrict_access(label, model, access, n_classes, output)}
        if source is not None:
            modules["source" if label != "source" else "the source"] = source
        models = {
            name: prepare_model(
                name,
                module.to(device),
                data,
                device,
                output=output if name == label else None,
                predictions=predictions if name == label else 1,
                allow=allow,
            )
            for name, module in modules.items()
        }
        return cls(
            suite="",
            seed=seed,
            device=device,
            data=data,
            models=models,
            rows={
                name: _rows_per_pass(loaded, data, device, batch_size)
                for name, loaded in models.items()
            },
            fixed_rows=batch_size is not None,
            use_acceleration=use_acceleration,
        )

    def model_facts(self, model: str) -> ModelFacts:
        """Collect what the planner must know of a model.

        Args:
            model: Its label.

        Returns:
            Shape, classes, fingerprints and access.
        """
        loaded = self.models[model]
        return ModelFacts(
            classes=loaded.classes or None,
            shape=self.data.shape,
            rows=self.rows[model],
            model_fingerprint=loaded.fingerprint,
            data_fingerprint=self.data.fingerprint,
            predictions=loaded.predictions,
            random=loaded.random,
            access=loaded.access,
            sketch=loaded.sketch,
        )

    def unfit_reason(self, task: plan.AttackTask) -> str:
        """Say why no cell of a task can be run.

        Args:
            task: The planned task.

        Returns:
            Why its model or its source is unfit; "" if both are fit.
        """
        for label in dict.fromkeys((task.model, task.source)):
            if label in self.unfit:
                return f"model '{label}' {self.unfit[label]}"
        return ""

    def chunks(self) -> list[tuple[int, int]]:
        """List the chunks of the data.

        Returns:
            (first, last) of each chunk, `last` excluded.
        """
        return chunk_bounds(self.data.n, self.data.shape)

    def seconds_per_example(self, task: plan.AttackTask) -> float:
        """Estimate the cost of a task from above.

        Args:
            task: The planned task.

        Returns:
            Most seconds that a bare loop would need for one example of all the task's cells.
        """
        floor = self._floor(task.source, self._attack_rows(task))
        return sum(floor.seconds(cell.passes or 1.0, cell.gradients or 0.0) for cell in task.cells)

    def evaluate_chunk(self, task: plan.AttackTask, first: int, last: int) -> ChunkResult:
        """Attack, verify and judge a chunk of examples for all cells of a task.

        Args:
            task: The planned task.
            first: Id of the chunk's first example.
            last: Id after its last example.

        Returns:
            Records, costs and images.

        Raises:
            SuiteError: A model answers otherwise afterwards than when it was first asked.
            ContractError: The attack broke a promise that leaves nothing to judge.
        """
        for name in (task.model, task.source):
            self._record_first_answers(name)
        accelerated = self._accelerate(task)
        rows = self._attack_rows(task) if accelerated is None else accelerated.rows
        examples = self.select_examples(task, first, last)
        verified = evaluate_chunk(
            self.models[task.model].model,
            task.spec,
            examples,
            rows,
            self._floor(task.source, rows),
            source=self.models[task.source].model,
            judge_rows=self.judge_rows(task.model),
            accelerated=None if accelerated is None else accelerated.model,
        )
        for name in (task.model, task.source):
            self._check_unchanged(name)
        if verified.dropped:
            self._drop_accelerated(task, verified.dropped)
        if verified.rows < rows:
            self._reduce_rows(task, rows, verified.rows)
        frames, pieces = [], []
        for cell, records, cost in zip(task.cells, verified.records, verified.costs, strict=True):
            frames.append(
                records.assign(
                    suite=self.suite,
                    model=task.model,
                    attack=task.entry.label,
                    norm=cell.norm,
                    eps=cell.eps,
                    goal=cell.goal,
                    cell=cell.identity,
                )
            )
            about = {"rows": verified.rows, "device": str(self.device), **cost._asdict()}
            pieces.append(Piece(cell.identity, first, last, **about))
        frame = pd.concat(frames, ignore_index=True)
        return ChunkResult(frame, pieces, verified.x_adv, verified.losses)

    def select_examples(self, task: plan.AttackTask, first: int, last: int) -> Examples:
        """Select a chunk of examples with what a task's attack is given of them.

        Args:
            task: The planned task.
            first: Id of the first example.
            last: Id after the last example.

        Returns:
            Images, labels, targets and clean predictions, on the device.
        """
        clean = self.clean_pass(task.model)
        ids = torch.arange(first, last, device=self.device)
        return Examples(
            id=ids,
            x=self._images.read(first, last),
            label=clean.label[first:last],
            target=self._targets(task, ids, clean.label),
            clean_pred=clean.pred[first:last],
            clean_confidence=clean.confidence[first:last],
            clean_agreement=clean.agreement[first:last],
        )

    def clean_pass(self, model: str) -> CleanPass:
        """Predict all clean images; computed once per model.

        Args:
            model: Its label.

        Returns:
            Labels and predictions of the whole data set.
        """
        if model not in self._clean:
            self._record_first_answers(model)  # before, so that a change in between is seen
            loaded, rows = self.models[model], self.judge_rows(model)
            parts = [
                judge(loaded.model, self._images.read(a, b), rows, self._clean_vote(loaded, a))
                for a, b in self.chunks()
            ]
            joined = Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))
            labels = self.data.labels
            label = joined.pred if labels is None else labels.to(self.device)
            self._clean[model] = CleanPass(label, *joined)
        return self._clean[model]

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

    @functools.cached_property
    def _images(self) -> prefetch.Prefetcher:
        return prefetch.make_prefetcher(self.device, self.data, self.chunks())

    def _attack_rows(self, task: plan.AttackTask) -> int:
        """Rows per pass by rule or by the user; an external attack's outcome may depend on them."""
        return task.entry.batch_size or self.rows[task.source]

    def _accelerate(self, task: plan.AttackTask) -> accelerate.AcceleratedModel | None:
        """Accelerate the task's source; None for an external attack, or where it is declined.

        An accelerated model whose rows and layout were chosen by rule is built again for a task
        that is worth timing them.
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

    def _why_not_accelerated(self, task: plan.AttackTask) -> str:
        """Say why the task's source is attacked itself; "" if an accelerated model may be.

        Raises:
            SuiteError: The precision needs an accelerated model and there can be none.
        """
        precision = task.spec.precision
        if isinstance(task.spec.attack, ExternalAttack):
            return "the attack has a loop of its own"
        if not (self.use_acceleration or precision == "bfloat16"):
            return "copies were declined"
        if self.models[task.source].access != "gradient":
            return "the model only answers queries, and nothing inside it can be copied"
        if task.spec.random and precision == "bfloat16":
            raise SuiteError(
                f"attack '{task.entry.label}': precision bfloat16 needs a copy that agrees "
                f'with {task.source}, which answers at random; use precision = "float32"'
            )
        if task.spec.random:
            return "the model never answers alike, so that nothing can be held against it"
        return ""

    def _decide(self, sentence: str) -> None:
        """Record a decision once."""
        if sentence not in self._decided:
            self._decided.add(sentence)
            self.decisions.append(sentence)

    def _reduce_rows(self, task: plan.AttackTask, rows: int, left: int) -> None:
        """Use fewer rows per pass from now on, after memory ran out, and note it."""
        self.notes.append(
            f"{task.model} · {task.entry.label}: out of memory at {rows} rows a pass; "
            f"went on with {left}"
        )
        key = task.source, task.spec.precision
        if key in self._accelerated:
            self._accelerated[key] = self._accelerated[key]._replace(rows=left)

    def _drop_accelerated(self, task: plan.AttackTask, why: str) -> None:
        """Attack the source itself from now on, after its accelerated model misled an attack."""
        self.notes.append(
            f"{task.model} · {task.entry.label}: the copy of {task.source} that led was dropped: "
            f"{why}; these examples were attacked again on {task.source} itself, as all will be "
            "from now on"
        )
        key = task.source, task.spec.precision
        model = self.models[task.source].model
        self._accelerated[key] = accelerate.original_model(model, self._accelerated[key], why)

    def _record_first_answers(self, model: str) -> None:
        """Record a deterministic model's predictions of the first clean images, once."""
        loaded = self.models[model]
        if model not in self._first and not loaded.random:
            x = self._repeated_images()
            self._first[model] = judge(loaded.model, x, len(x))

    def _check_unchanged(self, model: str) -> None:
        """Raise SuiteError if a model answers otherwise than when it was first asked."""
        if model not in self._first:
            return
        x, first = self._repeated_images(), self._first[model]
        found = consistency.first_difference(
            self.models[model].model, x, len(x), first.pred, first.confidence
        )
        if found is not None:
            raise SuiteError(
                f"model '{model}' changes its answers during the run: clean example "
                f"{found.position} was {found.describe()}, so that the records would be those of "
                "two models and are not written; give it no memory of earlier calls (a counter, a "
                "cache, a buffer that its forward writes to)"
            )

    def _repeated_images(self) -> Tensor:
        return self.data.read(0, min(self.data.n, REPEATED_IMAGES)).to(self.device)

    def _clean_vote(self, loaded: LoadedModel, first: int) -> Vote | None:
        """How a model that answers at random is asked about the clean chunk from `first` on."""
        if not loaded.random:
            return None
        return Vote(loaded.predictions, rng.fold(self.seed, "clean", first))

    def _floor(self, model: str, rows: int) -> timing.Floor:
        """Time a bare loop on this model at this many rows, or take a recent measurement.

        A shared machine's pace drifts by a third within minutes, so a floor is timed again once
        it is older than FLOOR_AGE times what timing it takes: beside the work that it is compared
        with, for at most a twentieth of the time.
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

    def _targets(self, task: plan.AttackTask, ids: Tensor, labels: Tensor) -> Tensor:
        """Choose the target class of each example; -1 where the attack is untargeted."""
        if task.entry.goal == "untargeted":
            return torch.full_like(ids, -1)
        label, classes = labels[ids], self.models[task.source].classes
        wanted = plan.resolve_target(task.entry, classes, self.data.classes)
        if isinstance(wanted, int):
            return torch.full_like(ids, wanted)
        if wanted == "next":
            return (label + 1) % classes
        if wanted == "complement":
            return classes - 1 - label
        if wanted == "random":
            shift = rng.draw_integers(self.seed, "target", ids, classes - 1).to(ids)
            return (label + 1 + shift) % classes
        return self.clean_pass(task.source).least_likely[ids]  # all that the attacker sees


def _rows_per_pass(
    loaded: LoadedModel, data: Data, device: torch.device, batch_size: int | None
) -> int:
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
