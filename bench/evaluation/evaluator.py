"""Turn chunks of a task's examples into records, in memory.

`make_evaluator` builds an evaluator. What several tasks need is computed once and shared: the clean
pass of each model, and in the pool (`model_pool`) the pace of a bare loop and the accelerated model
that is attacked in its place.
"""

import dataclasses
import functools
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from bench.core import rng
from bench.core.contracts.dataset import Data
from bench.datasets import prefetch
from bench.engine import cuda_graphs
from bench.engine.adaptation import list_module_names
from bench.engine.device import enter_device
from bench.evaluation import chunk_sizes, consistency
from bench.evaluation.certified_examples import CertifiedIds, evaluate_uncertified, mark_certified
from bench.evaluation.chunk import CleanPass, VerifiedChunk
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import Vote, judge
from bench.evaluation.model_pool import ModelPool
from bench.evaluation.target_classes import choose_target_classes
from bench.models.preflight.checks import LoadedModel
from bench.storage.schema import Piece
from bench.suite import plan
from bench.suite.identity import ModelFacts


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
        target = choose_target_classes(
            task.entry,
            ids,
            clean.label[first:last],
            seed=self.seed,
            classes=self.pool.load_source(task).classes,
            names=self.data.classes,
            # All that the attacker sees.
            least_likely=lambda: self.clean_pass(task.source).least_likely[first:last],
        )
        return Examples(
            id=ids,
            x=self._images.read(first, last),
            label=clean.label[first:last],
            target=target,
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
