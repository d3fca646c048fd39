"""Both sides of a comparison on the same examples, run as often as it takes, and seen doing it."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine import timing
from bench.engine.functional import norms
from bench.evaluation import chunk
from bench.evaluation.crafting import Examples
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.metrics import Outcomes
from bench.suite import plan
from bench.workflows.explain.setups import Observed, Setup, Side, attacked


class ExperimentRunner:
    """The attacked examples, and every side that was run on them."""

    def __init__(
        self, session: Evaluator, ours: plan.AttackTask, reference: plan.AttackTask
    ) -> None:
        parts = [session.examples(ours, first, last) for first, last in session.shards()]
        self.all = Examples(*map(torch.cat, zip(*parts, strict=True)))
        wanted = self.all.clean_pred == self.all.label
        if ours.spec.goal == "targeted":
            wanted &= self.all.target != self.all.label
        self.chosen = _rows(self.all, wanted)
        self.judge = session.subjects[ours.model].model
        model = session.subjects[ours.source].model
        mine, theirs = (
            Side(task.spec, model, task.entry.batch_size or session.rows[task.source])
            for task in (ours, reference)
        )
        self.base = Setup(mine, theirs)
        """The two as they are."""
        self.known: list[tuple[Side, pd.DataFrame]] = []

    def outcomes(self, setup: Setup) -> tuple[Outcomes, Outcomes]:
        """Which of the attacked examples are robust under ours and under the reference, by id."""
        ours, reference = self.records(setup.ours), self.records(setup.reference)
        return setup.count_ours(ours), setup.count_reference(reference)

    def records(self, side: Side) -> pd.DataFrame:
        """The side's records of the attacked examples, indexed by id; each side is run once."""
        for known, records in self.known:
            if known == side:
                return records
        measured = self._run(side, self.chosen)
        self.known.append((side, measured.records[0].set_index("example")))
        return self.known[-1][1]

    def watched(self, side: Side) -> Observed:
        """Run the side as it is, and see what it does."""
        if side.spec.attack.run is not None:
            return self._watched_whole(side)
        if side.spec.attack.rule is not None and side.spec.attack.budget == "fixed":
            return self._watched_rule(side)
        return self._kept(side, [self._run(side, self.chosen)])

    def _watched_whole(self, side: Side) -> Observed:
        """Batch by batch, through the calls of its model."""
        starts, runs, asked, lengths = self.all.x.clone(), [], [], []
        for at in torch.arange(len(self.chosen.id), device=starts.device).split(side.rows):
            part, watch = _rows(self.chosen, at), _Watch()
            with watch.on(side.model):
                runs.append(self._run(side, part))
            if not watch.first or watch.first[0].shape != part.x.shape:
                continue
            starts[part.id] = watch.first[0].to(starts)
            asked.append(watch.asked)
            if len(watch.first) == 2 and watch.first[1].shape == part.x.shape:
                step = norms.distance(watch.first[1], watch.first[0], side.spec.norm)
                lengths.append(float(step.max()))
        seen = self._kept(side, runs)
        if len(asked) < len(runs):
            return seen
        alpha = _rounded(max(lengths, default=0.0))
        return seen._replace(start=starts, steps=max(asked), alpha=alpha)

    def _watched_rule(self, side: Side) -> Observed:
        """Where a rule starts, it says itself; a GPU replays its calls of the model unseen."""
        attack, starts = side.spec.attack, self.all.x.clone()
        rule = attack.rule
        assert rule is not None

        def init(items: AttackBatch, noise: Noise, params: Any, norm: Norm) -> Any:
            state = rule.init(items, noise, params, norm)
            first = items.restart == 0
            starts[noise.examples.to(first.device)[first]] = state.x[first]
            return state

        told = dataclasses.replace(attack, rule=dataclasses.replace(rule, init=init))
        seeing = side._replace(spec=dataclasses.replace(side.spec, attack=told))
        return self._kept(side, [self._run(seeing, self.chosen)])._replace(start=starts)

    def _kept(self, side: Side, runs: list[chunk.VerifiedChunk]) -> Observed:
        """Keep the records of all batches, and see what the images tell."""
        frame = pd.concat([run.records[0] for run in runs]).set_index("example")
        images = torch.cat([run.x_adv[0] for run in runs])
        self.known.append((side, frame))
        return Observed(
            violations=bool((frame["violation"].astype(str) != "").any()),
            levels=bool(((images * 255).round() / 255 - images).abs().max() <= LEVEL),
        )

    def _run(self, side: Side, examples: Examples) -> chunk.VerifiedChunk:
        free, given = timing.Floor(0.0, 0.0), attacked(side)  # nobody asks for the pace
        return chunk.evaluate_chunk(self.judge, side.spec, examples, side.rows, free, source=given)


def _rounded(length: float) -> float | None:
    """To four digits, as many as a difference of float32 images may be trusted for; None for 0."""
    return float(f"{length:.4g}") or None


LEVEL = 1e-6
"""A pixel this near to a multiple of 1/255 holds an 8-bit level."""


class _Watch:
    """Sees an attack through its calls of the model: those that ask for a gradient."""

    def __init__(self) -> None:
        self.asked = 0
        self.first: list[Tensor] = []
        """The images of the first two of them."""

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and torch.is_grad_enabled() and inputs[0].requires_grad:
            self.asked += 1
            if len(self.first) < 2:
                self.first.append(inputs[0].detach().clone())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Watch":
        """An attack is given a copy of the model, hooks included: its calls are seen here."""
        return self

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        handle = model.register_forward_pre_hook(self)
        try:
            yield
        finally:
            handle.remove()


def _rows(examples: Examples, chosen: Tensor) -> Examples:
    return Examples(*(field[chosen] for field in examples))
