"""Models and data, loaded and ready: how one shard of one task becomes records, in memory.

What is made on the way is shared: the clean pass, once per model, the floor, and the copy that is
attacked in the model's place.
"""

import dataclasses
import functools
import time
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from bench.core import rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.types import Precision, Shape
from bench.core.errors import SuiteError
from bench.datasets import prefetch
from bench.engine import timing
from bench.engine.acceleration import accelerate
from bench.evaluation import chunk, consistency
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import Prediction, Vote, judge
from bench.models.preflight.checks import LoadedModel
from bench.storage.schema import Piece
from bench.suite import plan

CHUNK_EXAMPLES = 1000
CHUNK_BYTES = 64 * 2**20
"""A shard holds at most so many examples, and so many bytes of images."""
MAX_JUDGE_ROWS = 64
"""Most rows that the judge is given at once on a CPU."""
REPEATED_IMAGES = 16
"""Clean images that a model is asked about again after each shard, to see that its answers do not
change while it is attacked."""
FLOOR_AGE = 20
"""A floor is timed again when it is older than so many times what timing it takes."""


def chunk_bounds(n: int, shape: Shape) -> list[tuple[int, int]]:
    """(first, last) of each shard of n images (c, h, w), by the size of an image alone."""
    channels, height, width = shape
    size = max(8, min(CHUNK_EXAMPLES, CHUNK_BYTES // (4 * channels * height * width)))
    return [(a, min(a + size, n)) for a in range(0, n, size)]


class _TimedFloor(NamedTuple):
    """A floor, when it was timed and how long that took, in seconds."""

    floor: timing.Floor
    timed: float
    took: float


class ChunkResult(NamedTuple):
    """What one shard of one task gave."""

    frame: pd.DataFrame
    """Records of all its cells, one row per example and cell."""
    pieces: list[Piece]
    x_adv: Tensor
    """(cells, examples, c, h, w), on the CPU."""
    losses: Tensor | None
    """As in `measure.Measured`, if the curve asks for a trace."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Everything that a suite names, loaded on one device."""

    suite: str
    seed: int
    device: torch.device
    data: Data
    subjects: dict[str, LoadedModel]
    rows: dict[str, int]
    """Model -> rows a pass holds, unless a calibration finds a better number for its copy."""
    fixed_rows: bool = False
    """Whether the user said how many rows."""
    copied: bool = True
    """Whether attacks lead with a faster copy of the model, where one agrees with it."""
    keep: bool = False
    """Whether all adversarial images are wanted, not the first few alone."""
    unfit: dict[str, str] = dataclasses.field(default_factory=dict)
    """Model -> why it cannot be attacked: it raised while it was examined or timed."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """What happened on the way that a listener should hear, a sentence each."""
    reasons: list[str] = dataclasses.field(default_factory=list)
    """What was decided on the way and why, likewise, for a listener who asks."""
    _copies: dict[tuple[str, Precision], accelerate.AcceleratedModel] = dataclasses.field(
        default_factory=dict
    )
    _clean: dict[str, chunk.CleanPass] = dataclasses.field(default_factory=dict)
    _first: dict[str, Prediction] = dataclasses.field(default_factory=dict)
    _floors: dict[tuple[str, int], _TimedFloor] = dataclasses.field(default_factory=dict)
    _said: set[str] = dataclasses.field(default_factory=set)

    def facts(self, model: str) -> plan.ModelFacts:
        """What the planner must know of a model."""
        subject = self.subjects[model]
        return plan.ModelFacts(
            classes=subject.classes or None,
            shape=self.data.shape,
            rows=self.rows[model],
            model_fingerprint=subject.fingerprint,
            data_fingerprint=self.data.fingerprint,
            predictions=subject.predictions,
            random=subject.random,
            access=subject.access,
            sketch=subject.sketch,
        )

    def why_unfit(self, task: plan.AttackTask) -> str:
        """Why no cell of the task can be run, the model or the source being unfit; "" if it can."""
        for label in dict.fromkeys((task.model, task.source)):
            if label in self.unfit:
                return f"model '{label}' {self.unfit[label]}"
        return ""

    def shards(self) -> list[tuple[int, int]]:
        """(first, last) of each shard."""
        return chunk_bounds(self.data.n, self.data.shape)

    def work(self, task: plan.AttackTask) -> float:
        """Most seconds that the bare loop would need for one example of all the task's cells."""
        floor = self._floor(task.source, self._rows_for(task))
        return sum(floor.seconds(cell.passes or 1.0, cell.gradients or 0.0) for cell in task.cells)

    def shard(self, task: plan.AttackTask, first: int, last: int) -> ChunkResult:
        """Attack, verify and judge the examples first..last-1 for all the task's cells.

        Raises: SuiteError if a model answers otherwise afterwards than when it was first asked.
        """
        for name in (task.model, task.source):
            self._first_answers(name)
        copy = self._copy(task)
        rows = self._rows_for(task) if copy is None else copy.rows
        examples = self.examples(task, first, last)
        model, source = self.subjects[task.model].model, self.subjects[task.source].model
        floor = self._floor(task.source, rows)
        stand_in = None if copy is None else copy.model
        measured = chunk.evaluate_chunk(
            model,
            task.curve,
            examples,
            rows,
            floor,
            source,
            self.judged_rows(task.model),
            stand_in,
        )
        for name in (task.model, task.source):
            self._check_unchanged(name)
        if measured.dropped:
            self._drop(task, measured.dropped)
        if measured.rows < rows:
            self._fewer(task, rows, measured.rows)
        frames, pieces = [], []
        for cell, records, cost in zip(task.cells, measured.records, measured.costs, strict=True):
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
            about = {"rows": measured.rows, "device": str(self.device), **cost._asdict()}
            pieces.append(Piece(cell.identity, first, last, **about))
        frame = pd.concat(frames, ignore_index=True)
        return ChunkResult(frame, pieces, measured.x_adv, measured.losses)

    def examples(self, task: plan.AttackTask, first: int, last: int) -> Examples:
        """The examples first..last-1 as the task's attack sees them."""
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

    @functools.cached_property
    def _images(self) -> prefetch.Prefetcher:
        return prefetch.make_prefetcher(self.device, self.data, self.shards())

    def told(self, model: str) -> list[dict[str, object]]:
        """What is known of the copies that were attacked in the model's place."""
        return [copy.told() for (name, _), copy in self._copies.items() if name == model]

    def _rows_for(self, task: plan.AttackTask) -> int:
        """Rows a pass by rule, or as the user said; a whole attack's outcome may depend on them."""
        return task.entry.batch_size or self.rows[task.source]

    def judged_rows(self, model: str) -> int:
        """Rows that the judge asks about at once: a forward pass keeps less than a gradient does,
        so that on a CPU more of a large net fit the cache, and fewer of a small one are enough.
        What a model that answers at random says depends on them, and they on nothing else."""
        rows = self.rows[model]
        as_given = self.fixed_rows or self.subjects[model].random or self.device.type == "cuda"
        return rows if as_given else min(MAX_JUDGE_ROWS, 4 * rows)

    def _copy(self, task: plan.AttackTask) -> accelerate.AcceleratedModel | None:
        """What the engine attacks in place of the task's model; None for an attack with a loop of
        its own, or where copies were declined.

        A copy whose rows and layout were taken by rule is made again for a task that is worth
        timing them."""
        if why := self._uncopied(task):
            self._because(f"{task.source} · {task.entry.label}: no copy leads: {why}")
            return None
        precision = task.curve.precision
        known = self._copies.get((task.source, precision))
        ahead = self.work(task) * self.data.n
        if known is None or not (known.timed or ahead < known.worth):
            x = self.data.read(0, min(self.data.n, accelerate.PROBED)).to(self.device)
            model, rows = self.subjects[task.source].model, self.rows[task.source]
            known = accelerate.accelerate_model(model, x, rows, precision, self.fixed_rows, ahead)
            self._copies[task.source, precision] = known
            self._because(f"{task.source}, in {precision}: {known.why()}")
        size = task.entry.batch_size
        return known if size is None else known._replace(rows=size)

    def _uncopied(self, task: plan.AttackTask) -> str:
        """Why no copy is attacked in place of the task's model; empty if one may be.

        Raises: SuiteError if the precision needs a copy and there can be none.
        """
        precision = task.curve.precision
        if task.curve.attack.run is not None:
            return "the attack has a loop of its own"
        if not (self.copied or precision == "bfloat16"):
            return "copies were declined"
        if self.subjects[task.source].access != "gradient":
            return "the model only answers queries, and nothing inside it can be copied"
        if task.curve.random and precision == "bfloat16":
            raise SuiteError(
                f"attack '{task.entry.label}': precision bfloat16 needs a copy that agrees "
                f'with {task.source}, which answers at random; use precision = "float32"'
            )
        if task.curve.random:
            return "the model never answers alike, so that nothing can be held against it"
        return ""

    def _because(self, sentence: str) -> None:
        """Say once what was decided, and why."""
        if sentence not in self._said:
            self._said.add(sentence)
            self.reasons.append(sentence)

    def _fewer(self, task: plan.AttackTask, rows: int, left: int) -> None:
        """Memory ran out: from now on fewer rows a pass, and the user hears of it."""
        self.notes.append(
            f"{task.model} · {task.entry.label}: out of memory at {rows} rows a pass; "
            f"went on with {left}"
        )
        key = task.source, task.curve.precision
        if key in self._copies:
            self._copies[key] = self._copies[key]._replace(rows=left)

    def _drop(self, task: plan.AttackTask, why: str) -> None:
        """A copy misled an attack: from now on the model itself is attacked, and the user hears."""
        self.notes.append(
            f"{task.model} · {task.entry.label}: the copy of {task.source} that led was dropped: "
            f"{why}; these examples were attacked again on {task.source} itself, as all will be "
            "from now on"
        )
        key = task.source, task.curve.precision
        model = self.subjects[task.source].model
        self._copies[key] = accelerate.original_model(model, self._copies[key], why)

    def clean_pass(self, model: str) -> chunk.CleanPass:
        """The model's answers to all clean images; asked once."""
        if model not in self._clean:
            self._first_answers(model)  # before, so that a change on the way is seen
            subject, rows = self.subjects[model], self.judged_rows(model)
            parts = [
                judge(subject.model, self._images.read(a, b), rows, self._vote(subject, a))
                for a, b in self.shards()
            ]
            joined = Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))
            labels = self.data.labels
            label = joined.pred if labels is None else labels.to(self.device)
            self._clean[model] = chunk.CleanPass(label, *joined)
        return self._clean[model]

    def _first_answers(self, model: str) -> None:
        """Keep what the model says of the first clean images, unless it answers at random."""
        subject = self.subjects[model]
        if model not in self._first and not subject.random:
            x = self._repeated()
            self._first[model] = judge(subject.model, x, len(x))

    def _check_unchanged(self, model: str) -> None:
        """Raises: SuiteError if a model answers otherwise than when it was first asked."""
        if model not in self._first:
            return
        x, first = self._repeated(), self._first[model]
        found = consistency.first_difference(
            self.subjects[model].model, x, len(x), first.pred, first.confidence
        )
        if found is not None:
            raise SuiteError(
                f"model '{model}' changes its answers during the run: clean example "
                f"{found.position} was {found.words()}, so that the records would be those of two "
                "models and are not written; give it no memory of earlier calls (a counter, a "
                "cache, a buffer that its forward writes to)"
            )

    def _repeated(self) -> Tensor:
        return self.data.read(0, min(self.data.n, REPEATED_IMAGES)).to(self.device)

    def _vote(self, subject: LoadedModel, first: int) -> Vote | None:
        """How a model that answers at random is asked about the clean shard from `first` on."""
        if not subject.random:
            return None
        return Vote(subject.predictions, rng.fold(self.seed, "clean", first))

    def _floor(self, model: str, rows: int) -> timing.Floor:
        """The bare loop's pace on this model at this many rows, now.

        A shared machine's pace drifts by a third within minutes, so a floor is timed again once
        it is older than FLOOR_AGE times what timing it takes: beside the work that it is held
        against, for at most a twentieth of the time.
        """
        known = self._floors.get((model, rows))
        if known is None or time.perf_counter() - known.timed > FLOOR_AGE * known.took:
            x = self.data.read(0, min(self.data.n, rows)).to(self.device)
            y = torch.zeros(len(x), dtype=torch.int64, device=self.device)
            started = time.perf_counter()
            floor = timing.measure_floor(self.subjects[model].model, x, y, rows)
            ended = time.perf_counter()
            known = self._floors[model, rows] = _TimedFloor(floor, ended, ended - started)
        return known.floor

    def _targets(self, task: plan.AttackTask, ids: Tensor, labels: Tensor) -> Tensor:
        """The class that each example is to be taken for; -1 where the attack is untargeted."""
        if task.entry.goal == "untargeted":
            return torch.full_like(ids, -1)
        label, classes = labels[ids], self.subjects[task.source].classes
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
