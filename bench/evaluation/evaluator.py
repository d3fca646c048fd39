"""Load a suite's models and data and turn chunks of a task's examples into records, in memory.

What several tasks need is computed once and shared: the clean pass of each model, and in the pool
(`model_pool`) the pace of a bare loop and the accelerated model that is attacked in its place.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.detector import Detector
from bench.core.contracts.types import Access
from bench.core.errors import SuiteError
from bench.datasets import prefetch
from bench.datasets.as_data import as_data
from bench.engine import cuda_graphs
from bench.engine.adaptation import list_module_names
from bench.engine.device import enter_device
from bench.evaluation import chunk_sizes, consistency, live_models, loading
from bench.evaluation.adaptation_check import check_adaptations
from bench.evaluation.certified_examples import CertifiedIds, evaluate_uncertified, mark_certified
from bench.evaluation.chunk import CleanPass, VerifiedChunk
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import Vote, judge
from bench.evaluation.model_pool import ModelPool
from bench.evaluation.suite_models import choose_rows, load_suite_models
from bench.models.preflight.checks import LoadedModel
from bench.storage.schema import Piece
from bench.suite import plan, targets
from bench.suite.identity import ModelFacts
from bench.suite.schema import ModelEntry, Suite


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
    chunk_examples: int = 0
    """Examples of a chunk that is attacked; 0 for the standard size."""
    one_attack: bool = False
    """Whether the models are loaded for one attack, which bounds the passes of its set-up."""
    unfit: dict[str, str] = dataclasses.field(default_factory=dict)
    """Model -> why it cannot be attacked: it raised while it was examined or timed."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Events that the user should know of, a sentence each."""
    decisions: list[str] = dataclasses.field(default_factory=list)
    """What was decided and why, a sentence each, for a verbose run; emptied once reported."""
    _clean: dict[str, CleanPass] = dataclasses.field(default_factory=dict)

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
                or two models cannot be distinguished.
        """
        data = loading.load_data(suite.data, suite.base, data_dir, limit)

        def load(entry: ModelEntry) -> LoadedModel:
            on_load(entry.label)
            return loading.load_model(entry, suite.base, suite.seed, data, device, data_dir)

        return cls._of_suite(
            suite, data, device, load, batch_size, use_acceleration, keep_all_images
        )

    @classmethod
    def from_objects(
        cls,
        suite: Suite,
        models: Mapping[str, Any],
        data: Data,
        device: torch.device,
        *,
        batch_size: int | None = None,
        use_acceleration: bool = True,
    ) -> "Evaluator":
        """Build the evaluator of a suite whose models and data are Python objects.

        Args:
            suite: The suite, with an entry for each model.
            models: Label -> module; any callable where its entry's access is "scores" or "labels".
            data: Checked images and labels.
            device: Where models and images are placed.
            batch_size: Rows per pass; by the memory of one row unless given.
            use_acceleration: Whether attacks may use accelerated models.

        Returns:
            The evaluator of the suite; a model whose code raises is noted in `unfit`.

        Raises:
            SuiteError: A model fails preflight, or two models cannot be distinguished.
        """

        def load(entry: ModelEntry) -> LoadedModel:
            return live_models.prepare_live_model(entry, models[entry.label], data, device)

        return cls._of_suite(suite, data, device, load, batch_size, use_acceleration)

    @classmethod
    def _of_suite(
        cls,
        suite: Suite,
        data: Data,
        device: torch.device,
        load: Callable[[ModelEntry], LoadedModel],
        batch_size: int | None,
        use_acceleration: bool,
        keep_all_images: bool = False,
    ) -> "Evaluator":
        """Load every model of a suite by a function of its entry."""
        with enter_device(device):
            loaded = load_suite_models(suite, data, device, batch_size, load)
            check_adaptations(suite.attacks, loaded.models, data, device)
        return cls(
            suite=suite.name,
            seed=suite.seed,
            device=device,
            data=data,
            models=loaded.models,
            rows=loaded.rows,
            fixed_rows=batch_size is not None,
            use_acceleration=use_acceleration,
            keep_all_images=keep_all_images,
            unfit=loaded.unfit,
            notes=loaded.notes,
        )

    @classmethod
    def from_tensors(
        cls,
        model: nn.Module | Callable[[Tensor], Any],
        x: Any,
        y: Any,
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
        detector: Detector | Mapping[str, Any] | None = None,
    ) -> "Evaluator":
        """Build the evaluator of one model, or of a model and a source, on given images.

        Args:
            model: Maps images to logits; its label is the name of its class.
            x: Images, or any other form that `bench.datasets.as_data` lists.
            y: Integer labels (n,); None where `x` has them.
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
            detector: How `model` rejects images, likewise.

        Returns:
            The evaluator, whose suite has no name.

        Raises:
            SuiteError: Images or labels are invalid, or a model fails preflight.
        """
        data = as_data(x, y)
        if data.labels is None:
            raise SuiteError(f"data {data.name}: expected labels, got images alone; give labels")
        entry = live_models.make_entry(
            model,
            predictions=predictions,
            access=access,
            allow=[*allow],
            output=output,
            detector=detector,
        )
        label = entry.label
        with enter_device(device):
            models = {label: live_models.prepare_live_model(entry, model, data, device, classes)}
            if source is not None:
                own = "source" if label != "source" else "the source"
                crafting = live_models.make_entry(source, own, allow=[*allow])
                models[own] = live_models.prepare_live_model(crafting, source, data, device)
            rows = {
                name: choose_rows(loaded, data, device, batch_size)
                for name, loaded in models.items()
            }
        return cls(
            suite="",
            seed=seed,
            device=device,
            data=data,
            models=models,
            rows=rows,
            fixed_rows=batch_size is not None,
            use_acceleration=use_acceleration,
            one_attack=True,
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
            detector=loaded.detector,
            modules=tuple(list_module_names(loaded.model)),
            class_names=tuple(self.data.classes),
            batch_dependent="batch-dependent" in loaded.finding_names(),
        )

    def unfit_reason(self, task: plan.AttackTask) -> str:
        """Say why no cell of a task can be run.

        Args:
            task: The planned task.

        Returns:
            Why its model or its source is unfit; "" if both are fit.
        """
        for label in task.models:
            if label in self.unfit:
                return f"model '{label}' {self.unfit[label]}"
        return ""

    def chunks(self) -> list[tuple[int, int]]:
        """List the chunks of the standard size, in which models are asked about clean images.

        Returns:
            (first, last) of each chunk, `last` excluded.
        """
        return chunk_sizes.chunk_bounds(self.data.n, chunk_sizes.standard_size(self.data.shape))

    def attack_chunks(self, task: plan.AttackTask) -> list[tuple[int, int]]:
        """List the chunks that a task is attacked in.

        Args:
            task: The planned task.

        Returns:
            (first, last) of each chunk, `last` excluded.
        """
        facts = {label: self.model_facts(label) for label in task.models}
        if chunk_sizes.depends_on_batch(task, facts):
            return self.chunks()
        return self._attack_grid

    def evaluate_chunk(
        self, task: plan.AttackTask, first: int, last: int, certified: CertifiedIds | None = None
    ) -> ChunkResult:
        """Attack, verify and judge a chunk of examples for all cells of a task.

        Args:
            task: The planned task.
            first: Id of the chunk's first example.
            last: Id after its last example.
            certified: Cell -> its certified examples, which are not attacked; none by default.

        Returns:
            Records, costs and images.

        Raises:
            SuiteError: A model answers otherwise afterwards than when it was first asked.
            ContractError: The attack broke a promise that leaves nothing to judge.
        """
        with enter_device(self.device), cuda_graphs.keep_graphs(self.pool.kept_graphs):
            verified, rows = self._verify_chunk(task, first, last, certified or {})
        self.pool.note_failed_captures(task)
        if verified.dropped:
            self.pool.drop_accelerated(task, verified.dropped)
        if verified.rows < rows:
            self.pool.reduce_rows(task, rows, verified.rows)
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

    def _verify_chunk(
        self, task: plan.AttackTask, first: int, last: int, certified: CertifiedIds
    ) -> tuple[VerifiedChunk, int]:
        """Attack, verify and judge a chunk; also return the rows per pass that were asked for."""
        source = self.pool.load_source(task)
        for name in task.models:
            self._record_answers(name, judged=name == task.model)
        accelerated = self.pool.accelerate(task)
        rows = self.pool.attack_rows(task) if accelerated is None else accelerated.rows
        examples = self.select_examples(task, first, last)
        verified = evaluate_uncertified(
            self.models[task.model].model,
            task.spec,
            examples,
            mark_certified([cell.identity for cell in task.cells], certified, first, last),
            rows,
            self.pool.task_floor(task, rows),
            source=source.model,
            judge_rows=self.pool.judge_rows(task.model),
            accelerated=None if accelerated is None else accelerated.model,
        )
        for name in task.models:
            self._monitor.check_unchanged(name)
        return verified, rows

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
            loaded, rows = self.pool.models[model], self.pool.judge_rows(model)
            with enter_device(self.device):
                parts = [
                    judge(loaded.model, self._images.read(a, b), rows, self._clean_vote(loaded, a))
                    for a, b in self.chunks()
                ]
            names = ("pred", "confidence", "least_likely", "agreement")
            joined = {name: torch.cat([getattr(each, name) for each in parts]) for name in names}
            if self.data.labels is None:  # an image that is rejected is not classified correctly
                label = torch.cat([each.classified for each in parts])
            else:
                label = self.data.labels.to(self.device)
            self._clean[model] = CleanPass(label, **joined)
        return self._clean[model]

    def _record_answers(self, model: str, judged: bool) -> None:
        """Record what a model answers before it is attacked.

        Of a judged model these are the clean predictions, as far as they depend on the image
        alone.
        """
        loaded = self.models[model]
        if judged and not loaded.random and "batch-dependent" not in loaded.finding_names():
            clean = self.clean_pass(model)
            self._monitor.keep_answers(model, clean.pred, clean.confidence)
        else:
            self._monitor.record_answers(model)

    @functools.cached_property
    def pool(self) -> ModelPool:
        """The models with their accelerated models and paces."""
        return ModelPool(
            self.data,
            self.device,
            self.models,
            self.rows,
            fixed_rows=self.fixed_rows,
            use_acceleration=self.use_acceleration,
            one_attack=self.one_attack,
            notes=self.notes,
            decisions=self.decisions,
        )

    @functools.cached_property
    def _monitor(self) -> consistency.AnswerMonitor:
        return consistency.AnswerMonitor(self.data, self.device, self.models)

    @functools.cached_property
    def _attack_grid(self) -> list[tuple[int, int]]:
        size = self.chunk_examples
        return chunk_sizes.chunk_bounds(self.data.n, size) if size else self.chunks()

    @functools.cached_property
    def _images(self) -> prefetch.Prefetcher:
        return prefetch.make_prefetcher(self.device, self.data, self._attack_grid)

    def _clean_vote(self, loaded: LoadedModel, first: int) -> Vote | None:
        """How a model that answers at random is asked about the clean chunk from `first` on."""
        if not loaded.random:
            return None
        return Vote(loaded.predictions, rng.fold(self.seed, "clean", first))

    def _targets(self, task: plan.AttackTask, ids: Tensor, labels: Tensor) -> Tensor:
        """Choose the target class of each example; -1 where the attack is untargeted."""
        if task.entry.goal == "untargeted":
            return torch.full_like(ids, -1)
        label, classes = labels[ids], self.pool.load_source(task).classes
        wanted = targets.resolve_target(task.entry, classes, self.data.classes)
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
