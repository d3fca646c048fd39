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

import functools

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.rule import AttackBatch, TargetChoice
from bench.core.rng import Noise, SharedDraws
from bench.engine import cuda_graphs
from bench.engine.active_rows import ActiveBatch, ActiveRows
from bench.engine.adaptation import AdaptedModel
from bench.engine.class_ranking import linearised_distances
from bench.engine.device import is_gpu
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.logits import reaches_goal, widen
from bench.engine.functional.losses import mask_nonfinite
from bench.engine.functional.norms import per_row
from bench.engine.item_queue import ItemQueue
from bench.engine.model_state import call_model, is_out_of_memory
from bench.engine.query_log import start_log
from bench.engine.rejection import merge_rejection, spare_rejected, spares_rejected
from bench.engine.resident_rows import ResidentRows
from bench.engine.step_evaluator import StepEvaluator, count_nonfinite
from bench.engine.step_maker import StepMaker
from bench.engine.stream_progress import open_progress
from bench.engine.stream_result import ResultStore, StreamResult
from bench.engine.tensor_tree import join_rows, split_rows, take_rows
from bench.engine.victim_queries import AskVictim, choose_intervals

STEPS_PER_CHECK = 8
"""Steps of a GPU between two checks for finished rows, each of which makes it wait."""


def runs_asynchronously(device: torch.device) -> bool:
    """Return whether the host should ask a device for values as rarely as possible.

    Args:
        device: Device of the images.

    Returns:
        True for a GPU of CUDA, which alone replays captured steps.
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
        self.accelerated = accelerated
        self.x, self.y, self.label = x, y, label
        self.examples = examples.cpu()  # read whenever noise is drawn
        self.shared_draws = SharedDraws(self.examples) if len(spec.eps) > 1 else None
        self.evaluator = StepEvaluator(model, accelerated, spec)
        self.keys = self.evaluator.noise_keys(examples)
        self.eps = torch.tensor(spec.eps, dtype=x.dtype, device=x.device)
        self.nested = spec.sweep == "nested"
        self.stops = spec.stop == "first-success"
        self.seeks = rule.seeks
        self.results = ResultStore(x, spec, self.evaluator)
        self.out = self.results.out
        self.overflow: ActiveBatch | None = None
        self.order, self.aims, self.recaptures = None, 1, 0
        if (choice := rule.choose_targets(spec.params)) is not None:
            self.order = self._rank_wrong_classes(choice)
            self.aims = self.order.shape[1]
        self.rounds = spec.params.restarts * self.aims
        self.queue = ItemQueue(len(x), self.eps, self.rounds, self.nested)
        self.most = len(self.queue)
        self.made = 0
        self.ask_victim = ask_victim
        self.intervals: Tensor | None = None
        if ask_victim is not None:
            intervals = choose_intervals(spec.victim_queries, spec.params.steps, self.rounds)
            self.intervals = torch.tensor(intervals)
        self.asynchronous = runs_asynchronously(x.device)
        self.steps = StepMaker(self.evaluator, spec, x, self.asynchronous)
        # Iterates that are due are shown to the victim after each step.
        self.several = STEPS_PER_CHECK if self.asynchronous and ask_victim is None else 1
        # Draws outside torch's own generator, and a user's checks, would be frozen in a graph.
        replays = not (spec.random or spec.adaptation or spec.trace) and self.asynchronous
        self.graphs: cuda_graphs.StepGraphs | None = None
        if replays:
            self.graphs = cuda_graphs.find_graphs(model, accelerated, spec)
            self.recaptures = 1
        self.active = self._make_active()
        self.progress = open_progress(spec, self.rounds, self.evaluator)

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
        idle = 0
        while self._fill_batch():
            before = len(self.active)
            try:
                self._step_batch()
            except RuntimeError as error:
                self._halve_batch(error)
            else:
                self._show_iterates()
            self.remove_finished()
            # Every row makes at least one step a turn, and leaves after its last one.
            idle = idle + 1 if len(self.active) == before else 0
            if idle > self.spec.params.steps:
                raise RuntimeError(f"the steps of {self.spec.name} change nothing")

    def _fill_batch(self) -> bool:
        """Fill the free rows of the batch with waiting items; False when nothing is left."""
        while (free := self.rows - len(self.active)) > 0 and (self.overflow or len(self.queue)):
            if self.overflow:
                piece, self.overflow = split_rows(self.overflow, free)
                self.active.add(piece)
                self.made = max(self.made, int(piece.known.k.max()))
            else:
                self.active.add(self._start_items(self.queue.take(free)))
        return len(self.active) > 0

    def _step_batch(self) -> None:
        """Make one step, or several where checking for finished rows makes the host wait."""
        left = self.spec.params.steps - self.made
        number = min(left, self.several)
        if number < 1:
            return
        if self.progress is not None:
            self.progress.add_steps(len(self.active) * number)
        if self.out.losses is not None:
            self._step_with_trace(self.out.losses)
        elif self.graphs is not None and isinstance(self.active, ResidentRows):
            self.graphs.run(self.steps.make_steps, self.active, number)
        else:
            self.active.replace(self.steps.make_steps(self.active.batch, number))

    def remove_finished(self) -> None:
        """Remove the finished rows, store their results and queue what waited for them."""
        self.made = 0
        if not len(self.active):
            return
        item, k, first = self._read_progress()
        won = (first >= 0) & self.stops
        left = ~(won | (k >= self.spec.params.steps))
        self.made = int((k * left).max())
        if not left.all():
            finished = (~left).nonzero()[:, 0]
            self._store_finished(finished, item, won)
            self.active.remove(finished)
        if self.progress is not None:
            self.progress.add_turn(item, k, left, won, self.queue.waiting, self.overflow)

    def _read_progress(self) -> tuple[Tensor, Tensor, Tensor]:
        """Read item, steps made and first success of each row; a GPU is asked once."""
        batch = self.active.batch
        if batch.item.device.type == "cpu":
            return batch.item, batch.known.k, batch.first
        numbers = torch.cat([batch.item, batch.known.k[:, None], batch.first[:, None]], 1).cpu()
        return numbers[:, :3], numbers[:, 3], numbers[:, 4]

    def _show_iterates(self) -> None:
        """Show the victim the iterates that are due; store and remove those that succeed there.

        The image of a last step is shown by `_store_last`.
        """
        if self.intervals is None or self.ask_victim is None:
            return
        item, k, _ = self._read_progress()
        batch, params = self.active.batch, self.spec.params
        due = (k < params.steps) & (k % self.intervals[item[:, 2]] == 0)
        if self.rule.within is not None:
            due = due & self.rule.within(batch.known, params, self.spec.norm).cpu()
        if not due.any():
            return
        at = due.nonzero()[:, 0]
        shown = self.active.take(at)
        example, eps, _ = shown.item.unbind(1)
        won = self.ask_victim(eps, example, shown.state.x).cpu()
        if won.any():
            at = at[won]
            winners = self.active.take(at)
            self._store_won(winners, winners.state.x, item[at])
            self.active.remove(at)

    def _halve_batch(self, error: RuntimeError) -> None:
        """Continue with half the rows a pass after memory ran out; the others wait."""
        self.rows = min(self.rows, len(self.active))
        self._halve_or_raise(error)
        batch, rest = split_rows(self.active.leave(), self.rows)
        self.active = self._make_active()
        self.active.add(batch)
        self.overflow = join_rows(self.overflow, rest)

    def _halve_or_raise(self, error: RuntimeError) -> None:
        """Halve the rows a pass if memory ran out; raise any other error again.

        Steps are captured once more, for the smaller size; if memory runs out again, no longer.
        """
        if self.rows == 1 or not is_out_of_memory(error):
            raise error
        self.rows //= 2
        self.graphs = None  # graphs of more rows hold memory until they are dropped
        cuda_graphs.drop_graphs()
        if is_gpu(self.x.device):
            torch.get_device_module(self.x.device).empty_cache()
        if self.recaptures:
            self.recaptures -= 1
            self.graphs = cuda_graphs.find_graphs(self.model, self.accelerated, self.spec)

    def _make_active(self) -> ActiveRows | ResidentRows:
        """Make the container of the rows: buffers where graphs are replayed on them."""
        if self.graphs is None:
            return ActiveRows()
        # No method of this object: it would be freed by a garbage collection alone.
        return ResidentRows(
            functools.partial(self.graphs.reserve_buffers, rows=min(self.rows, self.most))
        )

    # ----------------------------------------------------------------- items that start and finish

    def _start_items(self, item: Tensor) -> ActiveBatch:
        """Put items at step 0; their noise is keyed by example and restart."""
        noise = self._noise(item[:, 0], item[:, 2])
        item = item.to(self.x.device)
        example, eps, number = item.unbind(1)
        zero = torch.zeros_like(example)
        none = zero - 1
        y = self.y.index_select(0, example)
        label = y if self.label is self.y else self.label.index_select(0, example)
        nearest = self.results.nearest[eps, example]
        aim = none if self.order is None else self.order[example, number % self.aims]
        before = number if self.aims == 1 else number // self.aims
        known = AttackBatch(
            self.x.index_select(0, example), y, label, self.eps[eps], zero, aim, before, nearest
        )
        state = self.rule.init(known, noise, self.spec.params, self.spec.norm)
        keys = zero.new_empty(len(zero), 0) if self.keys is None else self.keys[example]
        logs = self.steps.logs
        fell = self.out.queries[:, example].T if logs else self.x.new_empty(len(example), 0)
        log = start_log(self.out.forwards[eps, example], fell, self.out.nearest[example])
        return ActiveBatch(item, known, state, none, zero, keys, log)

    def _noise(self, example: Tensor, restart: Tensor) -> Noise:
        """Return the noise of rows, by index of the example and number of the restart, (n,)."""
        ids = self.examples[example]
        return Noise(self.spec.seed, self.spec.name, ids, restart, self.shared_draws)

    def _store_finished(self, at: Tensor, item: Tensor, won: Tensor) -> None:
        """Store the results of some rows; items and whether they won are those of all rows."""
        leaving, device = self.active.take(at), self.x.device
        item, won = item[at], won[at]
        if self.rounds == 1 and not self.nested and self.ask_victim is None:
            x = self._final_images(leaving)
            if self.stops and not self.seeks and self.rule.result is not None:
                x = torch.where(per_row(leaving.first >= 0, x), leaving.state.x, x)
            return self.results.store(leaving, x, won=False)
        if won.any():
            winners = take_rows(leaving, won.nonzero()[:, 0].to(device))
            x = self._final_images(winners) if self.seeks else winners.state.x
            self._store_won(winners, x, item[won])
        if not won.all():
            losers = take_rows(leaving, (~won).nonzero()[:, 0].to(device))
            self._store_last(losers, item[~won])
        return None

    def _store_won(self, batch: ActiveBatch, x: Tensor, item: Tensor) -> None:
        """Store rows that succeeded; what fools at one eps is copied to every larger one."""
        self.results.store(batch, x, won=True)
        for index, larger in self.queue.iterate_larger_eps(item[:, 1]) if self.nested else ():
            if larger.any():
                at = larger.nonzero()[:, 0].to(x.device)
                example = batch.item[:, 0].index_select(0, at)
                self.out.x_adv[index, example] = x.index_select(0, at)
                self.out.first_success[index, example] = batch.known.k.index_select(0, at)
                self.out.queries[index].index_fill_(0, example, torch.nan)

    def _store_last(self, batch: ActiveBatch, item: Tensor) -> None:
        """Store rows that made their last step, and queue what waited for those that failed.

        Where a restart or a larger eps depends on the result, the model is asked which rows
        succeeded; the victim, where it may be queried.
        """
        x = self._final_images(batch)
        if self.seeks:  # a search makes every round
            self.results.store(batch, x, won=False)
            return self.queue.add_followers(item)
        example, eps, _ = batch.item.unbind(1)
        if self.ask_victim is not None:
            fooled = self.ask_victim(eps, example, x)
        else:
            logits = self._model_logits(x, batch.known.label)
            fooled = reaches_goal(logits, batch.known.y, self.spec.goal)
            self.out.forwards[eps, example] += self.spec.predictions
        fooled = fooled.cpu()
        for won, chosen in ((True, fooled), (False, ~fooled)):
            if chosen.any():
                at = chosen.nonzero()[:, 0].to(x.device)
                rows, images = take_rows(batch, at), x.index_select(0, at)
                if won:
                    self._store_won(rows, images, item[chosen])
                else:
                    self.results.store(rows, images, won=False)
                    self.queue.add_followers(item[chosen])
        return None

    def _final_images(self, batch: ActiveBatch) -> Tensor:
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
                observed, sizes = self.evaluator.evaluate(x, known_batch, keys)
            except RuntimeError as error:
                self._halve_or_raise(error)
                continue
            first += self.rows
            if self.progress is not None:
                self.progress.add_rows(len(x), n - first)
            self.out.nonfinite[:, at] = count_nonfinite(sizes)
            if self.out.losses is not None:
                self.out.losses[:, at, 0] = mask_nonfinite(observed.loss)
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

    def _step_with_trace(self, losses: Tensor) -> None:
        """Make one step and store the loss at each iterate."""
        batch = self.active.batch
        after, loss = self.steps.make_traced_step(batch)
        example, eps, _ = batch.item.unbind(1)
        losses[eps, example, batch.known.k] = mask_nonfinite(loss)
        self.active.replace(after)
