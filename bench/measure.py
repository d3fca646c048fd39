"""What a record is made from: clean pass, attack, verification and judgement of one shard.

No attack is trusted, bench's own included, and nothing is repaired: what an attack returns is
checked for shape, box and ball, and the model is asked again in evaluation mode and full precision,
on the image as returned and after rounding it to 8 bits.
"""

from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench import engine, geometry, meter, rng
from bench.contracts import Curve, Norm, Threat
from bench.errors import ContractError
from bench.guard import evaluating, untouched

NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
ABSOLUTE, RELATIVE = 1e-6, 1e-5
"""What a distance may exceed eps by, absolutely and relatively: float32 rounding, no more."""


class Clean(NamedTuple):
    """One clean pass over a data set, shared by all attacks on a model; every field is (n,)."""

    label: Tensor
    """The data set's label, or the clean prediction where the data set has none."""
    pred: Tensor
    confidence: Tensor
    least_likely: Tensor


class Examples(NamedTuple):
    """A shard of examples as the attacks of a cell see it; every field has the axis n."""

    id: Tensor
    x: Tensor
    label: Tensor
    target: Tensor
    """Class to reach, -1 where the attack is untargeted."""
    clean_pred: Tensor
    clean_confidence: Tensor


class Cost(NamedTuple):
    """What one cell's shard took; the harness's own passes are in `verify_seconds` alone."""

    attacked: int
    seconds: float
    verify_seconds: float
    floor_seconds: float


class Measured(NamedTuple):
    """One shard of a curve, a frame and a cost for each eps in the curve's order."""

    records: list[pd.DataFrame]
    costs: list[Cost]
    x_adv: Tensor
    """(e, n, *input), on the CPU; rows that were not attacked hold the clean image."""
    losses: Tensor | None
    """What was ascended, step by step, (positive eps, attacked examples, steps), if traced."""


class _Raw(NamedTuple):
    """What an attack returned and what it took, before anything was verified."""

    x_adv: Tensor
    forwards: Tensor
    backwards: Tensor
    first_success: Tensor
    seconds: list[float]
    losses: Tensor | None = None


def judge(model: nn.Module, x: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, its softmax confidence and the least likely class of each image.

    Shapes: x (n, c, h, w); results (n,). Where the logits are not finite the prediction is -1 and
    the confidence NaN.
    """
    with evaluating(model), torch.no_grad():
        logits = torch.cat([model(part).float() for part in x.split(rows)])
    confidence, pred = logits.softmax(1).max(1)
    finite = logits.isfinite().all(1)
    return torch.where(finite, pred, -1), confidence, logits.argmin(1)


def measure(
    model: nn.Module,
    curve: Curve,
    examples: Examples,
    rows: int,
    floor: meter.Floor,
    source: nn.Module | None = None,
    judged_rows: int | None = None,
) -> Measured:
    """Attack `examples` at every eps of `curve`, verify and judge; at most `rows` rows a pass.

    The attack sees `source` alone (the model itself if there is none), the verdict is the model's:
    the threat model of transfer. `floor` and `rows` are those of the model that is attacked; the
    one that judges takes `judged_rows` rows a pass, where it is another.
    An example that the model gets wrong without attack is not attacked, nor, when targeted, one
    whose label is the target. At eps = 0 the ball holds x alone, so nothing is attacked.
    Raises: ContractError if the attack breaks a promise that leaves nothing to judge.
    """
    wanted = examples.clean_pred == examples.label
    if curve.goal == "targeted":
        wanted &= examples.target != examples.label
    chosen = Examples(*(field[wanted] for field in examples))
    positive = [index for index, eps in enumerate(curve.eps) if eps > 0]
    shape = (len(curve.eps), *examples.x.shape)
    x_adv = examples.x.cpu().expand(shape).clone()
    raw = None
    if positive and len(chosen.id):
        part = replace(curve, eps=tuple(curve.eps[index] for index in positive))
        attacked = model if source is None else source
        with untouched(attacked):
            raw = _attack(attacked, part, chosen, rows)
    seen = judged_rows or rows
    records, costs = [], []
    for index, eps in enumerate(curve.eps):
        if raw is None or index not in positive:
            records.append(_record(model, curve, eps, examples, wanted, None, 0, seen))
            costs.append(Cost(0, 0.0, 0.0, 0.0))
            continue
        at = positive.index(index)
        frame, seconds = meter.timed(
            lambda eps=eps, at=at: _record(model, curve, eps, examples, wanted, raw, at, seen),
            examples.x.device,
        )
        x_adv[index, wanted.cpu()] = raw.x_adv[at].cpu()
        records.append(frame)
        forwards, backwards = float(raw.forwards[at].sum()), float(raw.backwards[at].sum())
        floor_seconds = floor.seconds(forwards, backwards)
        costs.append(Cost(len(chosen.id), raw.seconds[at], seconds, floor_seconds))
    return Measured(records, costs, x_adv, raw.losses if raw is not None else None)


# ------------------------------------------------------------------------------------- attacking


def _attack(model: nn.Module, curve: Curve, chosen: Examples, rows: int) -> _Raw:
    y = chosen.label if curve.goal == "untargeted" else chosen.target
    if curve.attack.rule is None:
        return _whole(model, curve, chosen, y, rows)
    once = curve.attack.budget == "minimum"
    stream = replace(curve, eps=(torch.inf,)) if once else curve
    result, seconds = meter.timed(
        lambda: engine.attack(model, stream, chosen.x, y, chosen.id, rows, chosen.label),
        chosen.x.device,
    )
    if once:
        return _shared_out(_raw(result, [seconds]), len(curve.eps))
    # One stream serves all eps: its time is shared out by the passes that each eps took.
    weight = (result.forwards + 2 * result.backwards).sum(1)
    share = (weight / weight.sum()).tolist()
    return _raw(result, [seconds * part for part in share])


def _raw(result: engine.Attacked, seconds: list[float]) -> _Raw:
    x_adv, forwards, backwards, first, losses = result
    return _Raw(x_adv, forwards, backwards, first, seconds, losses)


def _shared_out(raw: _Raw, e: int) -> _Raw:
    """What one search for the least distance found, for each of e eps; its cost shared evenly."""
    return raw._replace(
        x_adv=raw.x_adv.expand(e, *raw.x_adv.shape[1:]),
        forwards=raw.forwards.expand(e, -1) / e,
        backwards=raw.backwards.expand(e, -1) / e,
        first_success=raw.first_success.expand(e, -1),
        seconds=[raw.seconds[0] / e] * e,
    )


def _whole(model: nn.Module, curve: Curve, chosen: Examples, y: Tensor, rows: int) -> _Raw:
    """A foreign loop, batch by batch; one that seeks the least distance runs once for all eps."""
    run = curve.attack.run
    assert run is not None
    once = curve.attack.budget == "minimum"
    x_adv, forwards, backwards, seconds = [], [], [], []
    for eps in [max(curve.eps)] if once else curve.eps:
        threat = Threat(norm=curve.norm, eps=eps, goal=curve.goal)
        parts, there, back, spent = [], [], [], 0.0
        for at in torch.arange(len(y), device=y.device).split(rows):
            noise = rng.Noise(curve.seed, curve.name, chosen.id[at], torch.zeros_like(at))
            first = int(chosen.id[at[0]])
            with (
                evaluating(model),
                rng.seeded(curve.seed, curve.name, first, len(at)),
                meter.counted(model) as passes,
            ):
                x, labels = chosen.x[at].clone(), y[at].clone()
                part, took = meter.timed(
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
    raw = _Raw(images, torch.stack(forwards), torch.stack(backwards), never, seconds)
    return _shared_out(raw, len(curve.eps)) if once else raw


def _promised(x_adv: object, x: Tensor) -> Tensor:
    """`x_adv` if it is a tensor of x's shape and dtype; raises ContractError if not."""
    if not isinstance(x_adv, Tensor):
        raise ContractError(f"expected the attack to return a tensor, got {type(x_adv).__name__}")
    if x_adv.shape != x.shape or x_adv.dtype != x.dtype:
        raise ContractError(
            f"expected the attack to return {tuple(x.shape)} {x.dtype}, "
            f"got {tuple(x_adv.shape)} {x_adv.dtype}"
        )
    return x_adv.detach().to(x.device)


# --------------------------------------------------------------------------- verifying and judging


def _record(
    model: nn.Module,
    curve: Curve,
    eps: float,
    examples: Examples,
    wanted: Tensor,
    raw: _Raw | None,
    at: int,
    rows: int,
) -> pd.DataFrame:
    """The records of one cell's shard: one row per example, attacked (`wanted`) or not."""
    n = len(examples.id)
    pred, pred_8bit = examples.clean_pred.clone(), examples.clean_pred.clone()
    confidence = examples.clean_confidence.clone()
    distances = torch.zeros(len(NORMS), n, device=wanted.device)
    passes = torch.zeros(2, n, dtype=torch.float64, device=wanted.device)
    first = torch.full((n,), -1, dtype=torch.int64, device=wanted.device)
    violation = [""] * n
    fooled = torch.zeros_like(wanted)
    if raw is not None:
        x, x_adv = examples.x[wanted], raw.x_adv[at]
        if curve.attack.budget == "minimum":
            near = geometry.distance(x_adv, x, curve.norm) <= _allowed(eps)
            keep = near | ~x_adv.flatten(1).isfinite().all(1)
            x_adv = torch.where(geometry.per_row(keep, x), x_adv, x)
        pred[wanted], confidence[wanted], _ = judge(model, x_adv, rows)
        pred_8bit[wanted], _, _ = judge(model, (x_adv * 255).round() / 255, rows)
        found = violations(x_adv, x, eps, curve.norm, pred[wanted])
        for position, text in zip(wanted.nonzero()[:, 0].tolist(), found, strict=True):
            violation[position] = text
        sound = torch.tensor([not text for text in found], device=wanted.device)
        success = pred != examples.label if curve.goal == "untargeted" else pred == examples.target
        fooled[wanted] = success[wanted] & sound
        for index, norm in enumerate(NORMS):
            distances[index, wanted] = geometry.distance(x_adv, x, norm)
        passes[0, wanted] = raw.forwards[at].to(passes)
        passes[1, wanted] = raw.backwards[at].to(passes)
        first[wanted] = raw.first_success[at]
        if curve.attack.rule is not None:
            first = torch.where(fooled & (first < 0), curve.params.steps, first)
    columns = {
        "example": examples.id,
        "label": examples.label,
        "target": examples.target,
        "clean_pred": examples.clean_pred,
        "adv_pred": pred,
        "adv_pred_8bit": pred_8bit,
        "clean_correct": examples.clean_pred == examples.label,
        "fooled": fooled,
        "violation": violation,
        "confidence": confidence,
        **dict(zip(NORMS, distances, strict=True)),
        "forwards": passes[0],
        "backwards": passes[1],
        "first_success_step": first,
        "clean_confidence": examples.clean_confidence,
        "attacked": wanted,
    }
    return pd.DataFrame(
        {
            key: value.cpu().numpy() if isinstance(value, Tensor) else value
            for key, value in columns.items()
        }
    )


def violations(x_adv: Tensor, x: Tensor, eps: float, norm: Norm, pred: Tensor) -> list[str]:
    """For each returned image the promise that it breaks, measured and allowed; "" if none.

    Shapes: x_adv, x (n, c, h, w); pred (n,), -1 where the model's output was not finite.
    """
    finite = x_adv.flatten(1).isfinite().all(1)
    low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
    far = geometry.distance(x_adv, x, norm)
    allowed = _allowed(eps)
    found = [""] * len(x)
    suspect = ~finite | (low < 0) | (high > 1) | (far > allowed) | (pred < 0)
    for row in suspect.nonzero()[:, 0].tolist():
        if not finite[row]:
            found[row] = "image is not finite"
        elif low[row] < 0 or high[row] > 1:
            found[row] = f"pixels in [{low[row]:.6g}, {high[row]:.6g}], allowed [0, 1]"
        elif far[row] > allowed:
            found[row] = f"{norm} distance {far[row]:.8g}, allowed {allowed:.8g}"
        else:
            found[row] = "the model's output is not finite"
    return found


def _allowed(eps: float) -> float:
    return eps + ABSOLUTE + RELATIVE * eps
