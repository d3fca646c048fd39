"""The loop of every attack rule: one stream of (example, eps, restart) items in full batches.

One iterate costs one forward and one backward pass to the input; the update is a percent or two of
that. So a curve can only be had faster by making fewer passes for the same answer, which is this
module, or cheaper ones, which is the attacked copy (`bench.engine.acceleration.accelerate`) that it
is handed, and on a GPU the recorded turn (`bench.engine.cuda_graphs`). Each idea alone, measured on
one CPU core (results/speed):

- an item that has won leaves at once and a waiting one takes its place, so batches stay full and no
  pass is spent on what is already fooled: 3.2 times, PGD-40 at 0.3 on LeNet; nothing on a net that
  holds;
- eps ride in one stream; under sweep = "nested" an example fooled at one eps is not attacked at a
  larger one, which holds the smaller ball: 1.2 times more, six eps;
- a rule of one gradient has the same one at every eps, so a sweep costs one: 2.7 times, seven eps;
- the copy: 2.2 times on LeNet, 1.2 on a net with strides for pooling.

Who waits for whom: a restart is tried only after the one before it has failed; nested, an eps only
after the smaller one. Everything else is independent, so the outcome of an item is a function of
the item: not of the batch, the order or the number of rows. An item's example is named by its
position in the data set, which keys its noise; a rule without noise has the same outcome for an
image wherever it stands.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.rule import AttackBatch, StepInput
from bench.core.contracts.types import Goal
from bench.core.errors import describe
from bench.core.rng import Noise
from bench.engine import cuda_graphs
from bench.engine.functional.gradients import PassResult, forward_pass, gradient_pass
from bench.engine.functional.logits import predict_class, widen
from bench.engine.functional.losses import make_objective
from bench.engine.functional.norms import norm_of, per_row
from bench.engine.model_state import allow_tf32, call_model, is_out_of_memory
from bench.engine.tensor_tree import count_rows, join_rows, map_tensors, split_rows, take_rows

STEPS_PER_CHECK = 8
"""Turns that a GPU makes before the host asks who has finished: asking makes it wait."""


class StreamResult(NamedTuple):
    """What the engine returns; e epsilons in the curve's order, n examples in the caller's."""

    x_adv: Tensor
    """(e, n, *input)"""
    forwards: Tensor
    """Forward passes that each example needed at each eps, (e, n), float64; a pass shared by
    several eps is shared out evenly."""
    backwards: Tensor
    """Likewise for gradients with respect to the input."""
    first_success: Tensor
    """Steps made before the first iterate seen to be a success, (e, n), int64; -1 if none was
    seen. The last iterate is left to the judge."""
    losses: Tensor | None
    """What was ascended at each iterate that was looked at, (e, n, steps), NaN where none was;
    of the last restart. None unless the curve asks for a trace."""
    rows: int
    """Rows a pass held at the end: fewer than asked for where memory ran out."""
    nonfinite: Tensor
    """Gradients of each example at each eps in which entries were not finite, (e, n), int64; these
    entries were taken for 0. One that several eps share counts at each."""


class AccelerationError(Exception):
    """The copy that led could not go on; the sentence names what it raised."""


class _Batch(NamedTuple):
    """The rows under attack: which item each row is, what the rule knows of it, its state."""

    item: Tensor
    """(rows, 3): position of the example, of the eps, number of the restart."""
    known: AttackBatch
    state: Any
    first: Tensor
    """Steps before the first success seen, (rows,), -1 if none was."""
    looks: Tensor
    """Passes that the item needed so far, (rows,)."""
    nonfinite: Tensor
    """Gradients so far in which an entry was not finite, (rows,)."""


def run_attack(
    model: nn.Module,
    curve: AttackSpec,
    x: Tensor,
    y: Tensor,
    examples: Tensor,
    rows: int,
    label: Tensor | None = None,
    copy: nn.Module | None = None,
) -> StreamResult:
    """Run the curve's rule on every example at every eps, at most `rows` rows a pass.

    Gradients are those of `copy` (`model` if there is none); `model` says what has not been fooled
    before a restart or a larger eps is tried.
    Shapes: x (n, c, h, w) in [0, 1]; y (n,) classes to leave or to reach; examples (n,) ids that
    key the noise; label (n,) the true labels, y if not given. Both are in evaluation mode and
    their parameters need no gradient.
    Raises: CopyError if the `copy` raises anything but that memory ran out.
    """
    run = AttackStream(
        model, copy or model, curve, x, y, examples, y if label is None else label, rows
    )
    rule = curve.attack.rule
    if rule is not None and rule.one_gradient and curve.sweep == "independent":
        return run.one_gradient()
    batch = None
    while (batch := run.fill(batch)) is not None:
        try:
            batch = run.turns(batch)
        except RuntimeError as error:
            batch = run.halve(batch, error)
        batch = run.settle(batch)
    return run.result()


class AttackStream:
    """One call: what waits, what was parked, and what has left."""

    def __init__(
        self,
        model: nn.Module,
        copy: nn.Module,
        curve: AttackSpec,
        x: Tensor,
        y: Tensor,
        examples: Tensor,
        label: Tensor,
        rows: int,
    ) -> None:
        """As `attack`'s."""
        rule = curve.attack.rule
        assert rule is not None
        self.model, self.copy, self.curve, self.rule, self.rows = model, copy, curve, rule, rows
        self.x, self.y, self.examples, self.label = x, y, examples, label
        aims = rule.aims
        self.loss = make_objective(curve.params.loss, "targeted" if aims else curve.goal)
        self.look = forward_pass if curve.attack.needs == "scores" else gradient_pass
        self.eps = torch.tensor(curve.eps, dtype=x.dtype, device=x.device)
        self.ascending = self.eps.argsort()
        self.rank = self.ascending.argsort()
        self.nested = curve.sweep == "nested"
        self.stops = curve.stop == "first-success"
        self.seeks = rule.seeks
        self.out = _empty_result(x, curve)
        self.nearest = x.new_full(self.out.forwards.shape, torch.inf)
        self.parked: _Batch | None = None
        self.order, self.aims = None, 1
        if aims is not None:
            self.order = self._likeliest()[:, : aims(curve.params)]
            self.aims = self.order.shape[1]
        self.rounds = curve.params.restarts * self.aims
        self.waiting = self._first_items()
        self.blind = x.device.type == "cuda"  # the host asks for no value while turns are made
        many = min(rows, len(self.waiting))
        # What a model draws outside torch's own generator would be frozen in a recording.
        replays = self.blind and not curve.random
        self.turn = cuda_graphs.capture(self._turn, many) if replays else self._turn

    # --------------------------------------------------------------------------------- the loop

    def fill(self, batch: _Batch | None) -> _Batch | None:
        """The batch with its free rows taken by items that wait; None when nothing is left."""
        while (free := self.rows - count_rows(batch)) > 0 and (self.parked or len(self.waiting)):
            if self.parked:
                piece, self.parked = split_rows(self.parked, free)
                batch = join_rows(batch, piece)
            else:
                item, self.waiting = self.waiting[:free], self.waiting[free:]
                batch = join_rows(batch, self._enter(item))
        return batch

    def turns(self, batch: _Batch) -> _Batch:
        """A turn, or, where asking who has finished makes the host wait, several."""
        left = self.curve.params.steps - int(batch.known.k.max())
        if self.out.losses is not None:
            return self._traced(batch) if left else batch
        for _ in range(min(left, STEPS_PER_CHECK if self.blind else 1)):
            batch = self.turn(batch)
        return batch

    def _turn(self, batch: _Batch) -> _Batch:
        return self._advance(batch, *self._look(batch))

    def _look(self, batch: _Batch) -> tuple[StepInput, Tensor]:
        return self._seen(batch.state.x, batch.known)

    def _seen(self, x: Tensor, known: AttackBatch) -> tuple[StepInput, Tensor]:
        """What a rule is shown of iterates x, all of it finite but the logits; and in how many of
        each row's gradients an entry was not finite, (n,).

        One NaN in a gradient makes every sum over it NaN, and with it the iterate for the rest of
        the search: such entries are taken for 0, the slope of a pixel of which nothing is known.
        An iterate with logits that are not finite is no success, as it is none to the judge, and a
        loss that is not finite is below every other, so that no rule keeps that iterate as its
        best."""
        samples = self.curve.samples
        towards = known.y if self.order is None else known.aim
        (logits, loss, gradient), spoilt = self._passed(x, towards, known.label)
        for _ in range(samples - 1):
            again, more = self._passed(x, towards, known.label)
            logits, loss, gradient = logits + again[0], loss + again[1], gradient + again[2]
            spoilt = spoilt + more
        if samples > 1:
            logits, loss, gradient = logits / samples, loss / samples, gradient / samples
        loss = torch.where(loss.isfinite(), loss, -torch.inf)
        fooled = reaches_goal(logits, known.y, self.curve.goal) & logits.isfinite().all(1)
        if self.rule.within is not None:
            fooled = fooled & self.rule.within(known, self.curve.params, self.curve.norm)
        return StepInput(logits, loss, gradient, fooled), spoilt

    def _led(self, x: Tensor, towards: Tensor, label: Tensor) -> PassResult:
        """A pass of what leads."""
        try:
            return self.look(self.copy, self.loss, x, towards, label)
        except Exception as error:  # of a stranger's forward, in a copy of it
            short = isinstance(error, RuntimeError) and is_out_of_memory(error)
            if self.copy is self.model or short:
                raise
            raise AccelerationError(f"it raised {describe(error)}") from error

    def _passed(self, x: Tensor, y: Tensor, label: Tensor) -> tuple[PassResult, Tensor]:
        """One pass, its gradient made finite, and for which rows it was not, (n,), 0 or 1."""
        seen = self._led(x, y, label)
        if self.look is forward_pass:
            return seen, torch.zeros_like(y)
        spoilt = ~norm_of(seen.gradient, "linf").isfinite()
        return seen._replace(gradient=seen.gradient.nan_to_num(0.0, 0.0, 0.0)), spoilt.to(y.dtype)

    def _advance(self, batch: _Batch, seen: StepInput, spoilt: Tensor) -> _Batch:
        """One step for every row that is not done; tensors alone, so that a GPU can replay it."""
        item, known, state, first, looks, nonfinite = batch
        over = self._done(batch)
        looks = looks + ~over
        nonfinite = nonfinite + spoilt * ~over
        stepped = self.rule.next(state, seen, known, self.curve.params, self.curve.norm)
        fooled = self._near(stepped, known) if self.seeks else seen.fooled
        first = torch.where(fooled & ~over & (first < 0), known.k, first)
        done = self._done(batch._replace(first=first))
        still = over if self.seeks else done  # a search keeps what it found in this very step
        if self.blind or bool(still.any()):
            stepped = map_tensors(
                lambda old, new: torch.where(per_row(still, new), old, new), state, stepped
            )
        return _Batch(item, known._replace(k=known.k + ~done), stepped, first, looks, nonfinite)

    def _near(self, state: Any, known: AttackBatch) -> Tensor:
        """Whether a search for the least distance has found an adversarial example in the ball."""
        near: Tensor = (state.nearest <= known.eps) & state.nearest.isfinite()
        return near

    def _done(self, batch: _Batch) -> Tensor:
        over = batch.known.k >= self.curve.params.steps
        return torch.logical_or(over, batch.first >= 0) if self.stops else over

    def settle(self, batch: _Batch) -> _Batch | None:
        """Take out the rows that are done, and let in line what waited for them."""
        done = self._done(batch)
        if not done.any():
            return batch
        won = done & (batch.first >= 0) & self.stops
        winners = take_rows(batch, won)
        self._leave(winners, self._returned(winners) if self.seeks else winners.state.x, won=True)
        self._finish(take_rows(batch, done & ~won))
        return take_rows(batch, ~done) if not done.all() else None

    def halve(self, batch: _Batch, error: RuntimeError) -> _Batch:
        """After an error: fewer rows from now on, those too many are parked."""
        self.rows = min(self.rows, len(batch.item))
        self._less(error)
        batch, rest = split_rows(batch, self.rows)
        self.parked = join_rows(self.parked, rest)
        return batch

    def _less(self, error: RuntimeError) -> None:
        """Half as many rows a pass, if memory ran out; any other error goes on up."""
        if self.rows == 1 or not is_out_of_memory(error):
            raise error
        if self.x.device.type == "cuda":
            torch.cuda.empty_cache()
        self.rows //= 2
        self.turn = self._turn

    def result(self) -> StreamResult:
        return self.out._replace(rows=self.rows)

    # ------------------------------------------------------------------- who enters and who leaves

    def _first_items(self) -> Tensor:
        """Restart 0 of every example, at every eps or, nested, at the smallest."""
        eps = self.ascending[:1] if self.nested else torch.arange(len(self.eps))
        example = torch.arange(len(self.x))
        grid = torch.cartesian_prod(eps.cpu(), example).view(-1, 2)
        return torch.stack([grid[:, 1], grid[:, 0], torch.zeros(len(grid), dtype=torch.int64)], 1)

    def _enter(self, item: Tensor) -> _Batch:
        """`item`s at step 0; their noise is keyed by example and restart."""
        example, eps, restart = item.unbind(1)
        device = self.x.device
        example, eps = example.to(device), eps.to(device)
        zero = torch.zeros_like(example)
        label, y = self.label[example], self.y[example]
        number, nearest = restart.to(device), self.nearest[eps, example]
        aim = zero - 1 if self.order is None else self.order[example, number % self.aims]
        before = number // self.aims
        known = AttackBatch(self.x[example], y, label, self.eps[eps], zero, aim, before, nearest)
        noise = Noise(self.curve.seed, self.curve.name, self.examples[example], restart)
        state = self.rule.init(known, noise, self.curve.params, self.curve.norm)
        return _Batch(item.to(device), known, state, zero - 1, zero, zero)

    def _leave(self, batch: _Batch, x: Tensor, won: bool) -> None:
        """Store what rows that leave return; what follows those that did not win may enter."""
        example, eps, restart = batch.item.unbind(1)
        passes = batch.looks * self.curve.samples
        self.out.forwards[eps, example] += passes  # a pair is never in a batch twice
        if self.look is gradient_pass:
            self.out.backwards[eps, example] += passes
            self.out.nonfinite[eps, example] += batch.nonfinite
        seen = self.out.first_success[eps, example]
        self.out.first_success[eps, example] = torch.where(seen < 0, batch.first, seen)
        if self.seeks:
            nearer = (batch.state.nearest < self.nearest[eps, example]) | (restart == 0)
            self.nearest[eps[nearer], example[nearer]] = batch.state.nearest[nearer]
            self.out.x_adv[eps[nearer], example[nearer]] = x[nearer]
        else:
            self.out.x_adv[eps, example] = x
        if won and self.nested:
            self._inherit(batch, x)
        if won:
            return
        again = restart + 1 < self.rounds
        follow = [torch.stack([example, eps, restart + 1], 1)[again]]
        if self.nested:
            rank = self.rank[eps] + 1
            larger = ~again & (rank < len(self.eps))
            next_eps = self.ascending[rank.clamp_max(len(self.eps) - 1)]
            follow.append(torch.stack([example, next_eps, torch.zeros_like(restart)], 1)[larger])
        self.waiting = torch.cat([self.waiting, *(part.cpu() for part in follow)])

    def _inherit(self, batch: _Batch, x: Tensor) -> None:
        """What fooled the model at one eps is its adversarial example at every larger one."""
        example, eps, _ = batch.item.unbind(1)
        for rank, index in enumerate(self.ascending.tolist()):
            larger = rank > self.rank[eps]
            self.out.x_adv[index, example[larger]] = x[larger]
            self.out.first_success[index, example[larger]] = batch.known.k[larger]

    def _finish(self, batch: _Batch) -> None:
        """Take out rows that made their last step; where a restart or a larger eps hangs on it,
        the model says which of them won."""
        x = self._returned(batch)
        last = self.rounds == 1 and not self.nested
        if not len(batch.item) or last or self.seeks:  # a search makes every round
            return self._leave(batch, x, won=False)
        fooled = reaches_goal(self._ask(x), batch.known.y, self.curve.goal)
        example, eps, _ = batch.item.unbind(1)
        self.out.forwards[eps, example] += self.curve.predictions
        self._leave(take_rows(batch, fooled), x[fooled], won=True)
        return self._leave(take_rows(batch, ~fooled), x[~fooled], won=False)

    def _returned(self, batch: _Batch) -> Tensor:
        x: Tensor = batch.state.x if self.rule.result is None else self.rule.result(batch.state)
        return x

    def _likeliest(self) -> Tensor:
        """The wrong classes of each example from the likeliest to the least on the clean image,
        (n, classes - 1), as the model itself says; a pass that all eps share."""
        logits = self._ask(self.x).scatter(1, self.label[:, None], torch.inf)
        self.out.forwards.add_(self.curve.predictions / max(len(self.eps), 1))
        return logits.argsort(dim=1, descending=True)[:, 1:]

    def _ask(self, x: Tensor) -> Tensor:
        """The model's own logits, in float32 whatever the gradients are in; their mean over the
        predictions of a model that answers at random."""
        asked = range(self.curve.predictions)
        while True:
            try:
                with torch.no_grad(), allow_tf32(False):
                    parts = x.split(self.rows)
                    return torch.cat(
                        [
                            torch.stack([widen(call_model(self.model, p)) for _ in asked]).mean(0)
                            for p in parts
                        ]
                    )
            except RuntimeError as error:
                self._less(error)

    # -------------------------------------------------------------------------------- special cases

    def one_gradient(self) -> StreamResult:
        """A sweep whose gradient is the same at every eps: one gradient for each example."""
        first, n = 0, len(self.x)
        while first < n:
            at = slice(first, first + self.rows)
            x, y, label = self.x[at], self.y[at], self.label[at]
            zero, radius = torch.zeros_like(y), self.eps[:1].expand(len(x))
            items = AttackBatch(x, y, label, radius, zero, zero - 1, zero, zero + torch.inf)
            try:
                seen, spoilt = self._seen(x, items)
            except RuntimeError as error:
                self._less(error)
                continue
            first += self.rows
            self.out.nonfinite[:, at] = spoilt
            if self.out.losses is not None:
                self.out.losses[:, at, 0] = _finite_loss(seen.loss)
            noise = Noise(self.curve.seed, self.curve.name, self.examples[at], zero)
            for index, eps in enumerate(self.eps):
                known = items._replace(eps=eps.expand(len(x)))
                state = self.rule.init(known, noise, self.curve.params, self.curve.norm)
                settings = known, self.curve.params, self.curve.norm
                self.out.x_adv[index, at] = self.rule.next(state, seen, *settings).x
        passes = self.curve.samples / max(len(self.eps), 1)
        self.out.forwards.fill_(passes)
        self.out.backwards.fill_(passes)
        return self.result()

    def _traced(self, batch: _Batch) -> _Batch:
        """A turn that keeps the loss at each iterate."""
        assert self.out.losses is not None
        seen, spoilt = self._look(batch)
        example, eps, _ = batch.item.unbind(1)
        self.out.losses[eps, example, batch.known.k] = _finite_loss(seen.loss)
        return self._advance(batch, seen, spoilt)


def _empty_result(x: Tensor, curve: AttackSpec) -> StreamResult:
    e, n = len(curve.eps), len(x)
    counts = torch.zeros(e, n, dtype=torch.float64, device=x.device)
    never = torch.full((e, n), -1, dtype=torch.int64, device=x.device)
    traced = (e, n, curve.params.steps)
    losses = x.new_full(traced, torch.nan) if curve.trace else None
    images = x.new_empty(e, *x.shape)  # every item is written when it leaves
    nonfinite = torch.zeros_like(never)
    return StreamResult(images, counts, counts.clone(), never, losses, 0, nonfinite)


def _finite_loss(loss: Tensor) -> Tensor:
    """A loss as a trace keeps it: NaN where it was not finite."""
    return torch.where(loss.isfinite(), loss, torch.nan)


def reaches_goal(logits: Tensor, y: Tensor, goal: Goal) -> Tensor:
    prediction = predict_class(logits)
    return prediction != y if goal == "untargeted" else prediction == y
