"""The loop of every attack rule: one stream of (example, eps, restart) items in full batches.

One iterate costs one forward and one backward pass; the update is a percent or two of that. So a
sweep gets faster only by fewer passes for the same result, which is this module, or by cheaper
passes: the accelerated model (`bench.engine.acceleration.accelerate`) and, on a GPU, captured steps
(`bench.engine.cuda_graphs`). Each idea alone, measured on one CPU core (results/speed):

- an item that succeeded leaves at once and a waiting one takes its place, so batches stay full and
  no pass is spent on examples that are already fooled: 3.2 times, PGD-40 at 0.3 on LeNet; nothing
  on a robust net;
- all eps share one stream; under sweep = "nested" an example fooled at one eps is not attacked at a
  larger one, whose ball contains the smaller: 1.2 times more, six eps;
- a rule with `one_gradient` has the same gradient at every eps, so a sweep costs one: 2.7 times,
  seven eps;
- the accelerated model: 2.2 times on LeNet, 1.2 on a net with strides in place of pooling.

A restart waits until the one before it has failed and, under "nested", an eps until the smaller one
has. Where an attack on a source may query the victim (`victim_queries`), an item also leaves at the
first image that succeeds there. Everything else is independent: the outcome of an item is a
function of the item, not of the batch, the order or the number of rows. An item's example is
identified by its position in the data set, which keys its noise; a rule without noise has the same
outcome for an image at any position.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.rule import AttackBatch, StepInput, TargetChoice
from bench.core.rng import Noise, SharedDraws
from bench.engine import cuda_graphs
from bench.engine.adaptation import AdaptedModel
from bench.engine.class_ranking import linearised_distances
from bench.engine.device import is_gpu
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.logits import reaches_goal, widen
from bench.engine.functional.norms import per_row
from bench.engine.item_queue import ItemQueue
from bench.engine.model_state import call_model, is_out_of_memory
from bench.engine.query_log import QueryLog, start_log, update_log
from bench.engine.rejection import merge_rejection, spare_rejected, spares_rejected
from bench.engine.step_evaluator import StepEvaluator
from bench.engine.stream_result import StreamResult, allocate_result
from bench.engine.tensor_tree import count_rows, join_rows, map_tensors, split_rows, take_rows
from bench.engine.victim_queries import AskVictim, choose_intervals

STEPS_PER_CHECK = 8
"""Steps of a GPU between two checks for finished rows, each of which makes it wait."""


class _Batch(NamedTuple):
    """Rows under attack: the item of each row, what the rule may read, its state."""

    item: Tensor
    """Index of the example, index of the eps, number of the restart, (rows, 3)."""
    known: AttackBatch
    state: Any
    first: Tensor
    """Steps made before the first success, (rows,), int64; -1 if there was none."""
    passes: Tensor
    """Passes so far, (rows,)."""
    nonfinite: Tensor
    """Gradients so far with an entry that was not finite, (rows,)."""
    log: QueryLog


def runs_asynchronously(device: torch.device) -> bool:
    """Return whether the host should ask a device for values as rarely as possible.

    Args:
        device: Device of the images.

    Returns:
        True for a GPU.
    """
    return device.type == "cuda"


def run_attack(
    model: nn.Module,
    spec: AttackSpec,
    x: Tensor,
    y: Tensor,
    examples: Tensor,
    rows: int,
    label: Tensor | None = None,
    accelerated: nn.Module | None = None,
    ask_victim: AskVictim | None = None,
) -> StreamResult:
    """Run an iterative attack on every example at every eps.

    Gradients are those of `accelerated`; `model` decides which examples are not fooled before a
    restart or a larger eps is tried. Both are in evaluation mode and their parameters require no
    gradient.

    Args:
        model: Model under attack.
        spec: An iterative attack, its params and the list of eps.
        x: Clean images, (n, c, h, w), in [0, 1].
        y: Class to leave or to reach, (n,), int64.
        examples: Ids that key the noise, (n,), int64.
        rows: Most rows a pass.
        label: True labels, (n,); None if they are y.
        accelerated: Model to differentiate; None for `model`.
        ask_victim: Answers the `victim_queries` of the spec; None if it has none.

    Returns:
        Images, passes and steps, not verified.

    Raises:
        AccelerationError: The accelerated model raised anything but that memory ran out.
    """
    true_label = y if label is None else label
    return AttackStream(
        model, accelerated or model, spec, x, y, examples, true_label, rows, ask_victim
    ).run()


class AttackStream:
    """One run of an attack: the items that wait, those under attack, and the results."""

    def __init__(
        self,
        model: nn.Module,
        accelerated: nn.Module,
        spec: AttackSpec,
        x: Tensor,
        y: Tensor,
        examples: Tensor,
        label: Tensor,
        rows: int,
        ask_victim: AskVictim | None = None,
    ) -> None:
        """Take the arguments of `run_attack`."""
        assert isinstance(spec.attack, IterativeAttack)
        rule = spec.attack.rule
        if spec.adaptation is not None:  # an accelerated model may have other modules
            model = accelerated = AdaptedModel(model, spec.adaptation)
        self.model, self.spec, self.rule, self.rows = model, spec, rule, rows
        self.x, self.y, self.label = x, y, label
        self.examples = examples.cpu()  # read whenever noise is drawn
        self.shared_draws = SharedDraws(self.examples) if len(spec.eps) > 1 else None
        self.evaluator = StepEvaluator(model, accelerated, spec)
        self.keys = self.evaluator.noise_keys(examples)
        self.eps = torch.tensor(spec.eps, dtype=x.dtype, device=x.device)
        self.nested = spec.sweep == "nested"
        self.stops = spec.stop == "first-success"
        self.seeks = rule.seeks
        self.out = allocate_result(x, spec)
        self.nearest = x.new_full(self.out.forwards.shape, torch.inf)
        self.radii = torch.tensor(spec.radii or spec.eps, dtype=x.dtype, device=x.device)
        self.budgets = torch.tensor(spec.budgets, dtype=torch.float64, device=x.device)
        self.logs = self.seeks and bool(spec.radii or spec.budgets)
        self.overflow: _Batch | None = None
        self.recaptures = 0
        self.order, self.aims = None, 1
        if (choice := rule.choose_targets(spec.params)) is not None:
            self.order = self._rank_wrong_classes(choice)
            self.aims = self.order.shape[1]
        self.rounds = spec.params.restarts * self.aims
        self.queue = ItemQueue(len(x), self.eps, self.rounds, self.nested)
        self.ask_victim = ask_victim
        self.intervals: Tensor | None = None
        if ask_victim is not None:
            intervals = choose_intervals(spec.victim_queries, spec.params.steps, self.rounds)
            self.intervals = torch.tensor(intervals, device=x.device)
        self.asynchronous = runs_asynchronously(x.device)
        # Iterates that are due are shown to the victim after each step.
        self.several = STEPS_PER_CHECK if self.asynchronous and ask_victim is None else 1
        many = min(self.rows, len(self.queue))
        # Draws outside torch's own generator, and a user's checks, would be frozen in a graph.
        replays = self.asynchronous and not spec.random and spec.adaptation is None
        self.accelerated = accelerated
        self.graphs = cuda_graphs.StepGraphs(accelerated, spec, many) if replays else None
        self.recaptures = 1 if replays else 0

    def run(self) -> StreamResult:
        """Attack until nothing is left.

        Returns:
            Images, passes and steps, not verified.

        Raises:
            AccelerationError: The accelerated model raised anything but that memory ran out.
        """
        shared = self.rule.one_gradient and self.spec.sweep == "independent"
        if shared and self.ask_victim is None:
            self._run_one_gradient()
        else:
            self._run_steps()
        return self.out._replace(rows=self.rows)

    # --------------------------------------------------------------------------------- the loop

    def _run_steps(self) -> None:
        """Step full batches until no item waits and none is under attack."""
        batch, idle = None, 0
        while (batch := self._fill_batch(batch)) is not None:
            before = count_rows(batch)
            try:
                batch = self._step_batch(batch)
            except RuntimeError as error:
                batch = self._halve_batch(batch, error)
            else:
                batch = self._show_iterates(batch)
            batch = None if batch is None else self.remove_finished(batch)
            # Every row makes at least one step a turn, and leaves after its last one.
            idle = idle + 1 if count_rows(batch) == before else 0
            if idle > self.spec.params.steps:
                raise RuntimeError(f"the steps of {self.spec.name} change nothing")

    def _fill_batch(self, batch: _Batch | None) -> _Batch | None:
        """Fill the free rows of the batch with waiting items; None when nothing is left."""
        while (free := self.rows - count_rows(batch)) > 0 and (self.overflow or len(self.queue)):
            if self.overflow:
                piece, self.overflow = split_rows(self.overflow, free)
                batch = join_rows(batch, piece)
            else:
                batch = join_rows(batch, self._start_items(self.queue.take(free)))
        return batch

    def _step_batch(self, batch: _Batch) -> _Batch:
        """Make one step, or several where checking for finished rows makes the host wait."""
        left = self.spec.params.steps - int(batch.known.k.max())
        if self.out.losses is not None:
            return self._step_with_trace(batch) if left else batch
        for _ in range(min(left, self.several)):
            batch = self._step(batch) if self.graphs is None else self.graphs.run(self._step, batch)
        return batch

    def _step(self, batch: _Batch) -> _Batch:
        """Evaluate the iterates and make one step."""
        return self._advance(batch, *self._evaluate(batch))

    def _evaluate(self, batch: _Batch) -> tuple[StepInput, Tensor]:
        """Evaluate the iterates; also return how many gradients of each row were not finite."""
        keys = None if self.keys is None else self.keys[batch.item[:, 0]]
        return self.evaluator.evaluate(batch.state.x, batch.known, keys)

    def _advance(self, batch: _Batch, observed: StepInput, spoilt: Tensor) -> _Batch:
        """Make one step for every unfinished row; tensors alone, so that a GPU can replay it."""
        item, known, state, first, passes, nonfinite, log = batch
        over = self._is_finished(batch)
        active = ~over
        passes = passes + active
        nonfinite = nonfinite + spoilt * active
        stepped = self.rule.next(state, observed, known, self.spec.params, self.spec.norm)
        fooled = self._found_in_ball(stepped, known) if self.seeks else observed.fooled
        first = torch.where(fooled & active & (first < 0), known.k, first)
        if self.logs:
            nearest = torch.minimum(stepped.nearest, known.nearest)
            queries = passes * self.spec.samples
            log = update_log(log, queries, nearest, active, self.radii, self.budgets)
        done = self._is_finished(batch._replace(first=first))
        still = over if self.seeks else done  # a search keeps the result of this very step
        if self.asynchronous or bool(still.any()):
            stepped = map_tensors(
                lambda old, new: torch.where(per_row(still, new), old, new), state, stepped
            )
        known = known._replace(k=known.k + ~done)
        return _Batch(item, known, stepped, first, passes, nonfinite, log)

    def _found_in_ball(self, state: Any, known: AttackBatch) -> Tensor:
        """Return whether a search has found an adversarial example in the ball."""
        near: Tensor = (state.nearest <= known.eps) & (state.nearest < torch.inf)
        return near

    def _is_finished(self, batch: _Batch) -> Tensor:
        """Return whether rows made their last step or may stop at a success, (n,), bool."""
        over = batch.known.k >= self.spec.params.steps
        return torch.logical_or(over, batch.first >= 0) if self.stops else over

    def remove_finished(self, batch: _Batch) -> _Batch | None:
        """Remove the finished rows, store their results and queue what waited for them.

        Args:
            batch: Rows under attack.

        Returns:
            The other rows; None if all have finished.
        """
        done = self._is_finished(batch)
        if not done.any():
            return batch
        won = done & (batch.first >= 0) & self.stops
        winners = take_rows(batch, won)
        self._store(
            winners, self._final_images(winners) if self.seeks else winners.state.x, won=True
        )
        self._store_last(take_rows(batch, done & ~won))
        return take_rows(batch, ~done) if not done.all() else None

    def _show_iterates(self, batch: _Batch) -> _Batch | None:
        """Show the victim the iterates that are due; store and remove those that succeed there.

        The image of a last step is shown by `_store_last`. None if no row is left.
        """
        if self.intervals is None or self.ask_victim is None:
            return batch
        known, params = batch.known, self.spec.params
        due = (known.k < params.steps) & (known.k % self.intervals[batch.item[:, 2]] == 0)
        if self.rule.within is not None:
            due = due & self.rule.within(known, params, self.spec.norm)
        if not due.any():
            return batch
        example, eps, _ = batch.item[due].unbind(1)
        won = torch.zeros_like(due)
        won[due] = self.ask_victim(eps, example, batch.state.x[due])
        if not won.any():
            return batch
        self._store(take_rows(batch, won), batch.state.x[won], won=True)
        return take_rows(batch, ~won) if not won.all() else None

    def _halve_batch(self, batch: _Batch, error: RuntimeError) -> _Batch:
        """Continue with half the rows a pass after memory ran out; the others wait."""
        self.rows = min(self.rows, len(batch.item))
        self._halve_or_raise(error)
        batch, rest = split_rows(batch, self.rows)
        self.overflow = join_rows(self.overflow, rest)
        return batch

    def _halve_or_raise(self, error: RuntimeError) -> None:
        """Halve the rows a pass if memory ran out; raise any other error again.

        Steps are captured once more, for the smaller size; if memory runs out again, no longer.
        """
        if self.rows == 1 or not is_out_of_memory(error):
            raise error
        self.rows //= 2
        self.graphs = None  # graphs of more rows hold memory until they are dropped
        if is_gpu(self.x.device):
            torch.get_device_module(self.x.device).empty_cache()
        if self.recaptures:
            self.recaptures -= 1
            self.graphs = cuda_graphs.StepGraphs(self.accelerated, self.spec, self.rows)

    # ----------------------------------------------------------------- items that start and finish

    def _start_items(self, item: Tensor) -> _Batch:
        """Put items at step 0; their noise is keyed by example and restart."""
        example, eps, restart = item.unbind(1)
        noise = self._noise(example, restart)
        device = self.x.device
        example, eps = example.to(device), eps.to(device)
        zero = torch.zeros_like(example)
        label, y = self.label[example], self.y[example]
        number, nearest = restart.to(device), self.nearest[eps, example]
        aim = zero - 1 if self.order is None else self.order[example, number % self.aims]
        before = number // self.aims
        known = AttackBatch(self.x[example], y, label, self.eps[eps], zero, aim, before, nearest)
        state = self.rule.init(known, noise, self.spec.params, self.spec.norm)
        fell = self.out.queries[:, example].T if self.logs else self.x.new_empty(len(example), 0)
        log = start_log(self.out.forwards[eps, example], fell, self.out.nearest[example])
        return _Batch(item.to(device), known, state, zero - 1, zero, zero, log)

    def _noise(self, example: Tensor, restart: Tensor) -> Noise:
        """Return the noise of rows, by index of the example and number of the restart, (n,)."""
        ids = self.examples[example]
        return Noise(self.spec.seed, self.spec.name, ids, restart, self.shared_draws)

    def _store(self, batch: _Batch, x: Tensor, won: bool) -> None:
        """Store the images of rows that leave; queue the items that wait for those that failed."""
        example, eps, restart = batch.item.unbind(1)
        # A pair of example and eps is never in a batch twice.
        self.out.forwards[eps, example] += batch.passes * self.evaluator.forwards
        self._store_queries(batch, won)
        if self.evaluator.has_gradient:
            self.out.backwards[eps, example] += batch.passes * self.evaluator.backwards
            self.out.nonfinite[eps, example] += batch.nonfinite
        before = self.out.first_success[eps, example]
        self.out.first_success[eps, example] = torch.where(before < 0, batch.first, before)
        if self.seeks:
            nearer = (batch.state.nearest < self.nearest[eps, example]) | (restart == 0)
            self.nearest[eps[nearer], example[nearer]] = batch.state.nearest[nearer]
            self.out.x_adv[eps[nearer], example[nearer]] = x[nearer]
        else:
            self.out.x_adv[eps, example] = x
        if not won:
            self.queue.add_followers(batch.item)
        elif self.nested:
            self._inherit(batch, x)

    def _store_queries(self, batch: _Batch, won: bool) -> None:
        """Store at which query rows fell; `forwards` already holds all that they made."""
        example, eps, _ = batch.item.unbind(1)
        if self.logs:
            self.out.queries[:, example] = batch.log.fell.T
            self.out.nearest[example] = batch.log.nearest
            return
        made = self.out.forwards[eps, example]
        seen = batch.log.before + (batch.first + 1) * self.spec.samples
        unseen = made if won else torch.full_like(made, torch.inf)
        fell = torch.where(batch.first >= 0, seen, unseen)
        self.out.queries[eps, example] = torch.minimum(self.out.queries[eps, example], fell)

    def _inherit(self, batch: _Batch, x: Tensor) -> None:
        """Copy what fooled the model at one eps to every larger one."""
        example, eps, _ = batch.item.unbind(1)
        for index, larger in self.queue.iterate_larger_eps(eps):
            self.out.x_adv[index, example[larger]] = x[larger]
            self.out.first_success[index, example[larger]] = batch.known.k[larger]
            self.out.queries[index, example[larger]] = torch.nan

    def _store_last(self, batch: _Batch) -> None:
        """Store rows that made their last step.

        Where a restart or a larger eps depends on the result, the model is asked which rows
        succeeded; the victim, where it may be queried.
        """
        x = self._final_images(batch)
        last = self.rounds == 1 and not self.nested and self.ask_victim is None
        if not len(batch.item) or last or self.seeks:  # a search makes every round
            return self._store(batch, x, won=False)
        example, eps, _ = batch.item.unbind(1)
        if self.ask_victim is not None:
            fooled = self.ask_victim(eps, example, x)
        else:
            logits = self._model_logits(x, batch.known.label)
            fooled = reaches_goal(logits, batch.known.y, self.spec.goal)
            self.out.forwards[eps, example] += self.spec.predictions
        self._store(take_rows(batch, fooled), x[fooled], won=True)
        return self._store(take_rows(batch, ~fooled), x[~fooled], won=False)

    def _final_images(self, batch: _Batch) -> Tensor:
        """Return the images that rows return."""
        x: Tensor = batch.state.x if self.rule.result is None else self.rule.result(batch.state)
        return x

    def _rank_wrong_classes(self, choice: TargetChoice) -> Tensor:
        """Choose the wrong classes to attack towards, in order, (n, number).

        Its passes are shared by all eps.
        """
        logits = self._model_logits(self.x, self.label).scatter(1, self.label[:, None], torch.inf)
        self.out.forwards.add_(self.spec.predictions / max(len(self.eps), 1))
        order = logits.argsort(dim=1, descending=True)[:, 1:]
        if choice.ranking == "distance":
            candidates = order[:, : choice.candidates]
            nearest = self._linearised_distances(candidates).argsort(dim=1, stable=True)
            order = candidates.gather(1, nearest)
        return order[:, : choice.number]

    def _linearised_distances(self, candidates: Tensor) -> Tensor:
        """Compute the distance of each candidate class under a linear model, (n, candidates)."""
        spec = self.spec
        passes = spec.samples / max(len(self.eps), 1)
        self.out.forwards.add_(passes)
        self.out.backwards.add_(passes * candidates.shape[1])
        while True:
            parts = (each.split(self.rows) for each in (self.x, self.label, candidates))
            try:
                with allow_tf32(False):
                    found = [
                        linearised_distances(
                            spare_rejected(self.model, label), x, label, some, spec.norm,
                            spec.samples,
                        )
                        for x, label, some in zip(*parts, strict=True)
                    ]  # fmt: skip
                return torch.cat(found)
            except RuntimeError as error:
                self._halve_or_raise(error)

    def _model_logits(self, x: Tensor, label: Tensor) -> Tensor:
        """Compute the model's own logits in full precision.

        Of a randomised model, the mean over the predictions; where a rejection counts as robust,
        merged into the logit of the label, (n,).
        """
        asked = range(self.spec.predictions)
        while True:
            try:
                with torch.no_grad(), allow_tf32(False):
                    parts = x.split(self.rows)
                    logits = torch.cat(
                        [
                            torch.stack([widen(call_model(self.model, p)) for _ in asked]).mean(0)
                            for p in parts
                        ]
                    )
                return merge_rejection(logits, label) if spares_rejected(self.model) else logits
            except RuntimeError as error:
                self._halve_or_raise(error)

    # -------------------------------------------------------------------------------- special cases

    def _run_one_gradient(self) -> None:
        """Run a rule whose gradient is the same at every eps: one gradient an example."""
        first, n = 0, len(self.x)
        while first < n:
            at = slice(first, first + self.rows)
            x, y, label = self.x[at], self.y[at], self.label[at]
            zero, radius = torch.zeros_like(y), self.eps[:1].expand(len(x))
            known_batch = AttackBatch(x, y, label, radius, zero, zero - 1, zero, zero + torch.inf)
            try:
                keys = None if self.keys is None else self.keys[at]
                observed, spoilt = self.evaluator.evaluate(x, known_batch, keys)
            except RuntimeError as error:
                self._halve_or_raise(error)
                continue
            first += self.rows
            self.out.nonfinite[:, at] = spoilt
            if self.out.losses is not None:
                self.out.losses[:, at, 0] = _finite_loss(observed.loss)
            own = torch.arange(n)[at]
            noise = self._noise(own, torch.zeros_like(own))
            for index, eps in enumerate(self.eps):
                known = known_batch._replace(eps=eps.expand(len(x)))
                state = self.rule.init(known, noise, self.spec.params, self.spec.norm)
                settings = known, self.spec.params, self.spec.norm
                self.out.x_adv[index, at] = self.rule.next(state, observed, *settings).x
        eps_count = max(len(self.eps), 1)
        self.out.forwards.fill_(self.evaluator.forwards / eps_count)
        self.out.backwards.fill_(self.evaluator.backwards / eps_count)

    def _step_with_trace(self, batch: _Batch) -> _Batch:
        """Make one step and store the loss at each iterate."""
        assert self.out.losses is not None
        observed, spoilt = self._evaluate(batch)
        example, eps, _ = batch.item.unbind(1)
        self.out.losses[eps, example, batch.known.k] = _finite_loss(observed.loss)
        return self._advance(batch, observed, spoilt)


def _finite_loss(loss: Tensor) -> Tensor:
    """Replace losses that are not finite by NaN, as traces store them."""
    return torch.where(loss.isfinite(), loss, torch.nan)
