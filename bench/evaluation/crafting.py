"""What an attack makes of examples, and what that took; nothing here is believed yet.

A rule is driven by the engine, on a copy of the model where there is one; a whole attack runs its
own loop, batch by batch.

A copy is believed in nothing. What it took for won and the model does not is attacked again on the
model itself (`confirmed`), and SPOTS of what it left standing, in each cell's shard, are shown to
both (`spot_checked`): two passes of SPOTS rows. Where they disagree, or where the copy raises, all
of the shard is attacked on the model itself, and the copy is dropped for the rest of the run.
"""

import contextlib
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.attack import AttackSpec, Rule
from bench.core.contracts.types import Norm, Threat
from bench.core.errors import ContractError
from bench.engine import stream as engine
from bench.engine import timing
from bench.engine.acceleration import agreement
from bench.engine.functional import norms
from bench.engine.functional.norms import ABSOLUTE, RELATIVE
from bench.engine.model_state import allow_tf32, eval_mode
from bench.evaluation import containment
from bench.evaluation.containment import StateGuard
from bench.evaluation.judge import Prediction, Vote, judge

SPOTS = 8
"""Examples that a copy left standing, in each cell's shard, on which it is held against its model;
all, if no more are left. They are drawn by the seed and their ids."""
ELSEWHERE = 0.5
"""Share of them whose gradients may differ: attacked images lie where values tie."""


class Examples(NamedTuple):
    """A shard of examples as the attacks of a cell see it; every field has the axis n."""

    id: Tensor
    x: Tensor
    label: Tensor
    target: Tensor
    """Class to reach, -1 where the attack is untargeted."""
    clean_pred: Tensor
    clean_confidence: Tensor
    clean_agreement: Tensor


class AttackOutput(NamedTuple):
    """What an attack returned at e eps for n examples, and what it took; not verified."""

    x_adv: Tensor
    """(e, n, *input)"""
    forwards: Tensor
    """(e, n), as `engine.Attacked`'s, and so the next two."""
    backwards: Tensor
    first_success: Tensor
    seconds: list[float]
    losses: Tensor | None = None
    rows: int = 0
    part: Tensor | None = None
    """(e, n): which part of an ensemble returned the image, -1 where none succeeded."""
    distance: Tensor | None = None
    """(n,): how far the example is that one search found for all eps, as the model judges; infinite
    where it found none. None until it is judged, and of an attack that makes no such search."""
    dropped: str = ""
    """Why the copy that led was dropped, and the model itself attacked; empty if it was not."""
    nonfinite: Tensor | None = None
    """(e, n), as `engine.Attacked`'s; None of an attack that runs its own loop."""


def craft(
    model: nn.Module,
    curve: AttackSpec,
    chosen: Examples,
    rows: int,
    copy: nn.Module | None = None,
) -> AttackOutput:
    """Attack every one of the `chosen` at every eps of the curve, at most `rows` rows a pass.

    Where the `copy` raises, the model itself is attacked; what was spent until then is not counted.
    A whole attack is given a model of its own. What a stranger's attack changes in the process or
    in the model is put back.
    Raises: ContractError if a whole attack returns what is no image, or a stranger's attack left
    the process or its model changed.
    """
    y = chosen.label if curve.goal == "untargeted" else chosen.target
    if curve.attack.run is not None:
        with allow_tf32(False), containment.isolate_model(model, chosen.x, curve.random) as loan:
            return _run_external(loan, curve, chosen, y, rows)
    once = searches(curve)
    stream = replace(curve, eps=(torch.inf,)) if once else curve
    try:
        with (
            allow_tf32(curve.precision == "tf32"),
            _draws(curve, chosen.id),
            _shared(curve.attack.rule),
        ):
            result, seconds = timing.timed(
                lambda: engine.attack(
                    model, stream, chosen.x, y, chosen.id, rows, chosen.label, copy
                ),
                chosen.x.device,
            )
    except engine.CopyError as error:
        own = craft(model, replace(curve, precision="float32"), chosen, rows)
        return own._replace(dropped=str(error))
    if once:
        return _shared_out(_crafted(result, [seconds]), curve, chosen.x)
    # One stream serves all eps: its time is shared out by the passes that each eps took.
    weight = (result.forwards + 2 * result.backwards).sum(1)
    share = (weight / weight.sum()).tolist()
    return _crafted(result, [seconds * part for part in share])


def _shared(rule: Rule | None) -> AbstractContextManager[None]:
    """What keeps the process as it is while a rule is driven; bench's own rules need it not."""
    steps = [] if rule is None else [rule.init, rule.step or rule.respond]
    if all(str(getattr(step, "__module__", "")).startswith("bench.") for step in steps):
        return contextlib.nullcontext()
    return containment.StateGuard().out()


def searches(curve: AttackSpec) -> bool:
    """Whether one search for the least distance serves all eps."""
    whole = curve.attack.run is not None
    return curve.attack.budget == "minimum" and (whole or curve.stop == "never")


def _crafted(result: engine.Attacked, seconds: list[float]) -> AttackOutput:
    x_adv, forwards, backwards, first, losses, rows, nonfinite = result
    crafted = AttackOutput(x_adv, forwards, backwards, first, seconds, losses, rows)
    return crafted._replace(nonfinite=nonfinite)


def spot_checked(
    model: nn.Module,
    copy: nn.Module | None,
    curve: AttackSpec,
    chosen: Examples,
    rows: int,
    raw: AttackOutput,
    verdicts: list[Prediction],
) -> tuple[AttackOutput, bool]:
    """`raw`, or, where the `copy` that led disagrees with the model about examples that it left
    standing, all of the `chosen` attacked again on the model itself; and whether they were.

    At each eps SPOTS examples are drawn among those that neither the copy nor the `verdicts` of the
    model take for won; both are looked at as the attack looks, on the image that it ended with."""
    if copy in (None, model) or raw.dropped:
        return raw, False
    assert copy is not None
    why = _misled(model, copy, curve, chosen, rows, raw, verdicts)
    if not why:
        return raw, False
    own = craft(model, replace(curve, precision="float32"), chosen, rows)
    own = own._replace(
        forwards=raw.forwards + own.forwards,
        backwards=raw.backwards + own.backwards,
        seconds=[a + b for a, b in zip(raw.seconds, own.seconds, strict=True)],
        dropped=f"on images that it left standing {why}",
    )
    return own, True


def _misled(
    model: nn.Module,
    copy: nn.Module,
    curve: AttackSpec,
    chosen: Examples,
    rows: int,
    raw: AttackOutput,
    verdicts: list[Prediction],
) -> str:
    """How the copy differs from the model on what it left standing; "" if it does not."""
    keys = chosen.id + rng.fold(curve.seed, "spots", curve.name) % 2**31
    images, labels = [], []
    for at, verdict in enumerate(verdicts):
        won = success(curve, chosen, verdict.pred) | (raw.first_success[at] >= 0)
        left = (~won).nonzero()[:, 0]
        draws = rng.hashed(keys[left], torch.full_like(left, at), 1)[:, 0]
        few = left[draws.argsort()[:SPOTS]]
        images.append(raw.x_adv[at, few])
        labels.append(chosen.label[few])
    x, y = torch.cat(images), torch.cat(labels)
    finite = x.flatten(1).isfinite().all(1)
    gradients = curve.attack.needs != "scores"
    with allow_tf32(curve.precision == "tf32"):
        for part, own in zip(x[finite].split(rows), y[finite].split(rows), strict=True):
            if not len(part):
                continue
            wanted = agreement.seen(model, part, own, gradients)
            try:
                got = agreement.seen(copy, part, own, gradients)
            except Exception as error:  # of a stranger's forward, in a copy of it
                return f"it raised {type(error).__name__}"
            if why := agreement.apart(wanted, got, curve.precision, ELSEWHERE):
                return why
    return ""


def recheck_claims(
    model: nn.Module,
    curve: AttackSpec,
    chosen: Examples,
    rows: int,
    raw: AttackOutput,
    verdicts: list[Prediction],
) -> tuple[AttackOutput, bool]:
    """`raw` with the examples attacked again, on the model itself, that a copy took for won and
    the `verdicts` of the model that was attacked do not; and whether there were any.

    That the model leads in float32 is what makes its second claim its verdict."""
    claimed = raw.first_success >= 0
    won = torch.stack([success(curve, chosen, verdict.pred) for verdict in verdicts])
    again = (claimed & ~won).any(0)
    if searches(curve):  # what it found beyond the largest eps counts, too
        found = judge(model, raw.x_adv[0], rows, vote(curve, chosen.id)).pred
        moved = (raw.x_adv[0] != chosen.x).flatten(1).any(1)
        again |= moved & ~success(curve, chosen, found)
    if not again.any():
        return raw, False
    few = Examples(*(field[again] for field in chosen))
    own = craft(model, replace(curve, precision="float32"), few, rows)
    x_adv, first = raw.x_adv.clone(), raw.first_success.clone()
    x_adv[:, again], first[:, again] = own.x_adv, own.first_success
    forwards, backwards = raw.forwards.clone(), raw.backwards.clone()
    forwards[:, again] += own.forwards
    backwards[:, again] += own.backwards
    seconds = [a + b for a, b in zip(raw.seconds, own.seconds, strict=True)]
    both = AttackOutput(x_adv, forwards, backwards, first, seconds, raw.losses, own.rows)
    if raw.nonfinite is None or own.nonfinite is None:
        return both, True
    nonfinite = raw.nonfinite.clone()
    nonfinite[:, again] += own.nonfinite
    return both._replace(nonfinite=nonfinite), True


def _shared_out(raw: AttackOutput, curve: AttackSpec, x: Tensor) -> AttackOutput:
    """What one search for the least distance found, for each eps; its cost shared evenly."""
    e, far = len(curve.eps), norms.measured(raw.x_adv[0], x, curve.norm)
    outside = torch.stack([far > allowed(eps) for eps in curve.eps])
    return raw._replace(
        x_adv=raw.x_adv.expand(e, *raw.x_adv.shape[1:]),
        forwards=raw.forwards.expand(e, -1) / e,
        backwards=raw.backwards.expand(e, -1) / e,
        first_success=raw.first_success.expand(e, -1).masked_fill(outside, -1),
        seconds=[raw.seconds[0] / e] * e,
        nonfinite=None if raw.nonfinite is None else raw.nonfinite.expand(e, -1),
    )


def _run_external(
    loan: StateGuard, curve: AttackSpec, chosen: Examples, y: Tensor, rows: int
) -> AttackOutput:
    """A foreign loop on a model of its own, batch by batch; one that seeks the least distance runs
    once for all eps."""
    run, model = curve.attack.run, loan.model
    assert run is not None
    assert model is not None
    once = searches(curve)
    x_adv, forwards, backwards, seconds = [], [], [], []
    for eps in [max(curve.eps)] if once else curve.eps:
        threat = Threat(norm=curve.norm, eps=eps, goal=curve.goal)
        parts, there, back, spent = [], [], [], 0.0
        for at in torch.arange(len(y), device=y.device).split(rows):
            noise = rng.Noise(curve.seed, curve.name, chosen.id[at], torch.zeros_like(at))
            first = int(chosen.id[at[0]])
            with (
                eval_mode(model),
                rng.seeded(curve.seed, curve.name, first, len(at)),
                loan.out(),
                timing.counted(model) as passes,
            ):
                x, labels = chosen.x[at].clone(), y[at].clone()
                part, took = timing.timed(
                    lambda x=x, labels=labels, threat=threat, noise=noise: run(
                        model, x, labels, threat, curve.params, noise
                    ),
                    chosen.x.device,
                )
            parts.append(_promised(part, chosen.x[at]))
            there.append(torch.full((len(at),), passes.forwards / len(at), dtype=torch.float64))
            back.append(torch.full((len(at),), passes.backwards / len(at), dtype=torch.float64))
            spent += took
        x_adv.append(torch.cat(parts))
        forwards.append(torch.cat(there))
        backwards.append(torch.cat(back))
        seconds.append(spent)
    images = torch.stack(x_adv)
    never = torch.full(images.shape[:2], -1, device=y.device)
    raw = AttackOutput(
        images, torch.stack(forwards), torch.stack(backwards), never, seconds, rows=rows
    )
    return _shared_out(raw, curve, chosen.x) if once else raw


def _promised(x_adv: object, x: Tensor) -> Tensor:
    """`x_adv` if it is a tensor of x's shape and dtype; raises ContractError if not."""
    if not isinstance(x_adv, Tensor):
        raise ContractError(f"expected the attack to return a tensor, got {type(x_adv).__name__}")
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ContractError(
            f"expected the attack to return {tuple(x.shape)} {x.dtype}, "
            f"got {tuple(x_adv.shape)} {x_adv.dtype}"
        )
    return x_adv.detach().to(x.device, copy=True)  # the attack may write into its own again


def verdicts_on(
    model: nn.Module, curve: AttackSpec, chosen: Examples, raw: AttackOutput, rows: int
) -> list[Prediction]:
    """The model's verdict on what the attack returned, for each eps."""
    how = vote(curve, chosen.id)
    return [
        judge(model, final_images(curve, eps, chosen.x, raw, at), rows, how)
        for at, eps in enumerate(curve.eps)
    ]


def vote(curve: AttackSpec, examples: Tensor) -> Vote | None:
    """How the judge asks a model that answers at random about the `examples` of these ids.

    The draws are the same under every attack and at every eps, and on the image rounded to 8 bits:
    so two verdicts differ by their images and not by luck."""
    if not curve.random:
        return None
    return Vote(curve.predictions, rng.fold(curve.seed, "verdict", int(examples[0])))


def _draws(curve: AttackSpec, examples: Tensor) -> AbstractContextManager[None]:
    """Where an attack on a model that answers at random finds what that model draws."""
    if not curve.random:
        return contextlib.nullcontext()
    return rng.seeded(curve.seed, "passes", curve.name, int(examples[0]))


def final_images(curve: AttackSpec, eps: float, x: Tensor, raw: AttackOutput, at: int) -> Tensor:
    """What the attack returned at one eps; a search for the least distance that ended outside the
    ball returned nothing, which is x."""
    x_adv = raw.x_adv[at]
    if curve.attack.budget != "minimum":
        return x_adv
    near = norms.measured(x_adv, x, curve.norm) <= allowed(eps)
    keep = near | ~x_adv.flatten(1).isfinite().all(1)
    return torch.where(norms.per_row(keep, x), x_adv, x)


def success(curve: AttackSpec, examples: Examples, pred: Tensor) -> Tensor:
    """Whether each prediction is what the attack is after, (n,)."""
    return pred != examples.label if curve.goal == "untargeted" else pred == examples.target


def allowed(eps: float) -> float:
    """The largest distance that still counts as within eps."""
    return eps + ABSOLUTE + RELATIVE * eps


def violations(x_adv: Tensor, x: Tensor, eps: float, norm: Norm, pred: Tensor) -> list[str]:
    """For each returned image the promise that it breaks, measured and allowed; "" if none.

    Shapes: x_adv, x (n, c, h, w); pred (n,), -1 where the model's output was not finite.
    """
    finite = x_adv.flatten(1).isfinite().all(1)
    low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
    far = norms.measured(x_adv, x, norm)
    most = allowed(eps)
    found = [""] * len(x)
    suspect = ~finite | (low < 0) | (high > 1) | (far > most) | (pred < 0)
    for row in suspect.nonzero()[:, 0].tolist():
        if not finite[row]:
            found[row] = "image is not finite"
        elif low[row] < 0 or high[row] > 1:
            found[row] = f"pixels in [{low[row]:.6g}, {high[row]:.6g}], allowed [0, 1]"
        elif far[row] > most:
            found[row] = f"{norm} distance {far[row]:.8g}, allowed {most:.8g}"
        else:
            found[row] = "the model's output is not finite"
    return found
