"""The loop of every attack rule: one stream of (example, eps, restart) items in full batches.

A batch mixes examples, epsilons and restarts, because all that a rule knows is per row. Each turn
of the loop is one forward and one input-gradient pass over the batch; rows that are finished leave
and waiting items take their place, so the hardware always sees full batches and no pass is spent
on an example that is already fooled.

Who waits for whom: a restart is tried only after the one before it has failed; under
sweep = "nested", an eps only after the smaller one has failed (a success is inherited, since the
smaller ball lies in the larger). Everything else is independent.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.contracts import Curve, Items
from bench.losses import Objective, to_ascend
from bench.rng import Noise


class Attacked(NamedTuple):
    """What the engine returns; e epsilons in the curve's order, n examples in the caller's."""

    x_adv: Tensor
    """(e, n, *input)"""
    forwards: Tensor
    """Forward passes spent on each example at each eps, (e, n), float64; a pass shared by several
    eps is shared out evenly."""
    backwards: Tensor
    """Likewise for gradients with respect to the input."""
    first_success: Tensor
    """Steps made before the first iterate seen to be a success, (e, n), int64; -1 if none was
    seen. The last iterate is left to the judge."""
    losses: Tensor | None
    """What was ascended at each iterate that was looked at, (e, n, steps), NaN where none was;
    of the last restart. None unless the curve asks for a trace."""


class _Batch(NamedTuple):
    """The rows under attack: which item each row is, what the rule knows of it, its state."""

    item: Tensor
    """(rows, 3): position of the example, of the eps, number of the restart."""
    known: Items
    state: Any


class Seen(NamedTuple):
    """One look at a batch of iterates."""

    logits: Tensor
    loss: Tensor
    """(n,), what is ascended."""
    gradient: Tensor
    """Of each row's loss with respect to that row, as the images."""


def attack(
    model: nn.Module,
    curve: Curve,
    x: Tensor,
    y: Tensor,
    examples: Tensor,
    rows: int,
    label: Tensor | None = None,
) -> Attacked:
    """Run the curve's rule on every example at every eps, at most `rows` rows a pass.

    Shapes: x (n, c, h, w) in [0, 1]; y (n,) classes to leave or to reach; examples (n,) ids that
    key the noise; label (n,) the true labels, y if not given. The model is in evaluation mode and
    its parameters need no gradient.
    """
    label = y if label is None else label
    rule = curve.attack.rule
    assert rule is not None
    if rule.one_gradient and curve.sweep == "independent":
        return _one_gradient(model, curve, x, y, examples, rows, label)
    run = _Run(model, curve, x, y, examples, label)
    batch, waiting = None, run.first_items()
    while True:
        free = rows - (len(batch.item) if batch is not None else 0)
        if free and len(waiting):
            batch, waiting = _join(batch, run.enter(waiting[:free])), waiting[free:]
        if batch is None or not len(batch.item):
            return run.out
        seen = look(model, run.loss, batch.state.x, batch.known.y, batch.known.label)
        fooled, gradient = run.note(batch, seen), seen.gradient
        if curve.stop == "first-success" and fooled.any():
            run.leave(_rows(batch, fooled), won=True)
            batch, gradient = _rows(batch, ~fooled), gradient[~fooled]
        state = rule.step(batch.state, gradient, batch.known, curve.params, curve.norm)
        batch = _Batch(batch.item, batch.known._replace(k=batch.known.k + 1), state)
        done = batch.known.k == curve.params.steps
        if done.any():
            waiting = torch.cat([waiting, run.finish(_rows(batch, done))])
            batch = _rows(batch, ~done)


def look(model: nn.Module, loss: Objective, x: Tensor, y: Tensor, label: Tensor) -> Seen:
    """Logits at x, the loss of each row, and its gradient with respect to x alone.

    The gradient is that of the sum, not the mean, so that each row's is its own. A model whose
    output does not depend on x has a gradient of zeros.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = model(x)
        values = loss(logits, y, label)
        if not values.requires_grad:
            return Seen(logits, values, torch.zeros_like(x))
        (gradient,) = torch.autograd.grad(
            values.sum(), x, allow_unused=True, materialize_grads=True
        )
    return Seen(logits.detach(), values.detach(), gradient)


class _Run:
    """The bookkeeping of one call: what enters, what was seen, what leaves and what follows it."""

    def __init__(
        self,
        model: nn.Module,
        curve: Curve,
        x: Tensor,
        y: Tensor,
        examples: Tensor,
        label: Tensor,
    ) -> None:
        self.model, self.curve, self.x, self.y, self.examples = model, curve, x, y, examples
        self.label = label
        self.loss = to_ascend(curve.params.loss, curve.goal)
        self.eps = torch.tensor(curve.eps, dtype=x.dtype, device=x.device)
        self.ascending = self.eps.argsort()
        self.rank = self.ascending.argsort()
        self.nested = curve.sweep == "nested"
        n, e = len(x), len(curve.eps)
        self.out = _nothing(x, e, n, curve.params.steps if curve.trace else 0)

    def first_items(self) -> Tensor:
        """Restart 0 of every example, at every eps or, nested, at the smallest."""
        eps = self.ascending[:1] if self.nested else torch.arange(len(self.eps))
        example = torch.arange(len(self.x))
        grid = torch.cartesian_prod(eps.cpu(), example).view(-1, 2)
        return torch.stack([grid[:, 1], grid[:, 0], torch.zeros(len(grid), dtype=torch.int64)], 1)

    def enter(self, item: Tensor) -> _Batch:
        """A batch of `item`s at step 0; their noise is keyed by example and restart."""
        example, eps, restart = item.unbind(1)
        device = self.x.device
        example, eps = example.to(device), eps.to(device)
        x, y, label = self.x[example], self.y[example], self.label[example]
        known = Items(x, y, label, self.eps[eps], torch.zeros_like(example))
        noise = Noise(self.curve.seed, self.curve.name, self.examples[example], restart)
        rule = self.curve.attack.rule
        assert rule is not None
        state = rule.init(known, noise, self.curve.params, self.curve.norm)
        return _Batch(item.to(device), known, state)

    def note(self, batch: _Batch, look: Seen) -> Tensor:
        """Count a pass for each row and say which rows are fooled at this iterate, (rows,)."""
        example, eps, _ = batch.item.unbind(1)
        self.out.forwards[eps, example] += 1  # an (example, eps) pair is never in a batch twice
        self.out.backwards[eps, example] += 1
        if self.out.losses is not None:
            self.out.losses[eps, example, batch.known.k] = look.loss
        fooled = _fooled(look.logits, batch.known.y, self.curve)
        seen = self.out.first_success[eps, example]
        first = torch.where(fooled & (seen < 0), batch.known.k, seen)
        self.out.first_success[eps, example] = first
        return fooled

    def finish(self, batch: _Batch) -> Tensor:
        """Take out rows that made their last step; returns the items that they make way for."""
        if self.curve.params.restarts == 1 and not self.nested:
            return self.leave(batch, won=False)
        with torch.no_grad():
            fooled = _fooled(self.model(batch.state.x), batch.known.y, self.curve)
        example, eps, _ = batch.item.unbind(1)
        self.out.forwards[eps, example] += 1
        self.leave(_rows(batch, fooled), won=True)
        return self.leave(_rows(batch, ~fooled), won=False)

    def leave(self, batch: _Batch, won: bool) -> Tensor:
        """Store the iterates of rows that leave; returns what follows those that did not win."""
        example, eps, restart = batch.item.unbind(1)
        self.out.x_adv[eps, example] = batch.state.x
        if won and self.nested:
            self._inherit(batch)
        if won:
            return batch.item[:0].cpu()
        again = restart + 1 < self.curve.params.restarts
        follow = [torch.stack([example, eps, restart + 1], 1)[again]]
        if self.nested:
            rank = self.rank[eps] + 1
            larger = ~again & (rank < len(self.eps))
            next_eps = self.ascending[rank.clamp_max(len(self.eps) - 1)]
            follow.append(torch.stack([example, next_eps, torch.zeros_like(restart)], 1)[larger])
        return torch.cat(follow).cpu()

    def _inherit(self, batch: _Batch) -> None:
        """What fooled the model at one eps is its adversarial example at every larger one."""
        example, eps, _ = batch.item.unbind(1)
        for rank, index in enumerate(self.ascending.tolist()):
            larger = rank > self.rank[eps]
            self.out.x_adv[index, example[larger]] = batch.state.x[larger]
            self.out.first_success[index, example[larger]] = batch.known.k[larger]


def _one_gradient(
    model: nn.Module,
    curve: Curve,
    x: Tensor,
    y: Tensor,
    examples: Tensor,
    rows: int,
    label: Tensor,
) -> Attacked:
    """A sweep whose gradient is the same at every eps: one gradient for each example."""
    rule = curve.attack.rule
    assert rule is not None
    e, n = len(curve.eps), len(x)
    out = _nothing(x, e, n, 1 if curve.trace else 0)
    loss = to_ascend(curve.params.loss, curve.goal)
    for at in torch.arange(n, device=x.device).split(rows):
        seen = look(model, loss, x[at], y[at], label[at])
        if out.losses is not None:
            out.losses[:, at, 0] = seen.loss
        for index, eps in enumerate(curve.eps):
            radius = torch.full_like(x[at, 0, 0, 0], eps)
            known = Items(x[at], y[at], label[at], radius, torch.zeros_like(at))
            noise = Noise(curve.seed, curve.name, examples[at], torch.zeros_like(at))
            state = rule.init(known, noise, curve.params, curve.norm)
            state = rule.step(state, seen.gradient, known, curve.params, curve.norm)
            out.x_adv[index, at] = state.x
    out.forwards.fill_(1 / max(e, 1))
    out.backwards.fill_(1 / max(e, 1))
    return out


def _nothing(x: Tensor, e: int, n: int, traced: int) -> Attacked:
    counts = torch.zeros(e, n, dtype=torch.float64, device=x.device)
    never = torch.full((e, n), -1, dtype=torch.int64, device=x.device)
    losses = torch.full((e, n, traced), torch.nan, device=x.device) if traced else None
    return Attacked(x.expand(e, *x.shape).clone(), counts, counts.clone(), never, losses)


def _fooled(logits: Tensor, y: Tensor, curve: Curve) -> Tensor:
    prediction = logits.argmax(1)
    return prediction != y if curve.goal == "untargeted" else prediction == y


def _rows(batch: _Batch, mask: Tensor) -> _Batch:
    known = Items(*(field[mask] for field in batch.known))
    state = type(batch.state)(*(field[mask] for field in batch.state))
    return _Batch(batch.item[mask], known, state)


def _join(batch: _Batch | None, fresh: _Batch) -> _Batch:
    if batch is None:
        return fresh
    known = Items(*(torch.cat(pair) for pair in zip(batch.known, fresh.known, strict=True)))
    fields = zip(batch.state, fresh.state, strict=True)
    state = type(fresh.state)(*(torch.cat(pair) for pair in fields))
    return _Batch(torch.cat([batch.item, fresh.item]), known, state)
