"""What a record is made from: clean pass, attack, verification and judgement of one shard.

No attack is trusted, bench's own included, and nothing is repaired: what an attack returns is
checked for shape, box and ball, and the model is asked again in evaluation mode and full precision,
on the image as returned and after rounding it to 8 bits.
"""

import time
from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.types import Norm
from bench.core.errors import ContractError
from bench.engine import timing
from bench.engine.functional import norms
from bench.engine.model_state import allow_tf32, eval_mode, frozen
from bench.evaluation import ensemble
from bench.evaluation.crafting import (
    AttackOutput,
    Examples,
    craft,
    final_images,
    recheck_claims,
    searches,
    spot_checked,
    success,
    verdicts_on,
    violations,
    vote,
)
from bench.evaluation.judge import Prediction, judge

TIE_TOLERANCE = 1e-5
"""How far two logits may be apart, as a share of the largest, for a verdict to be a matter of
rounding: some hundred times float32's."""
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")


class CleanPass(NamedTuple):
    """One clean pass over a data set, shared by all attacks on a model; every field is (n,)."""

    label: Tensor
    """The data set's label, or the clean prediction where the data set has none."""
    pred: Tensor
    confidence: Tensor
    least_likely: Tensor
    agreement: Tensor


class ChunkCost(NamedTuple):
    """What one cell's shard took; the harness's own passes are in `verify_seconds` alone."""

    attacked: int
    seconds: float
    verify_seconds: float
    floor_seconds: float
    busy_seconds: float = 0.0
    """As `seconds` and `floor_seconds`, in the seconds of `meter.busy`."""
    busy_floor_seconds: float = 0.0
    nonfinite_gradients: int = 0
    """Gradients in which entries were not finite and were taken for 0."""
    nonfinite_examples: int = 0
    """Examples that had any."""


class VerifiedChunk(NamedTuple):
    """One shard of a curve, a frame and a cost for each eps in the curve's order."""

    records: list[pd.DataFrame]
    costs: list[ChunkCost]
    x_adv: Tensor
    """(e, n, *input), on the CPU; rows that were not attacked hold the clean image."""
    losses: Tensor | None
    """What was ascended, step by step, (positive eps, attacked examples, steps), if traced."""
    rows: int
    """Rows a pass held at the end: fewer than asked for where memory ran out."""
    dropped: str = ""
    """Why the copy that led was dropped, and the model itself attacked; empty if it was not."""


def evaluate_chunk(
    model: nn.Module,
    curve: AttackSpec,
    examples: Examples,
    rows: int,
    floor: timing.Floor,
    source: nn.Module | None = None,
    judged_rows: int | None = None,
    copy: nn.Module | None = None,
) -> VerifiedChunk:
    """Attack `examples` at every eps of `curve`, verify and judge; at most `rows` rows a pass.

    The attack sees `source` alone (the model itself if there is none), or for its gradients a
    `copy` of that; the verdict is the model's: the threat model of transfer. `floor` and `rows` are
    those of what is attacked; the judge takes `judged_rows` rows a pass, or as many.
    An example that the model gets wrong without attack is not attacked, nor, when targeted, one
    whose label is the target. At eps = 0 the ball holds x alone, so nothing is attacked.
    Raises: ContractError if the attack breaks a promise that leaves nothing to judge, or if the
    model no longer takes the clean images for what it took them for.
    """
    wanted = examples.clean_pred == examples.label
    if curve.goal == "targeted":
        wanted &= examples.target != examples.label
    chosen = Examples(*(field[wanted] for field in examples))
    positive = [index for index, eps in enumerate(curve.eps) if eps > 0]
    shape = (len(curve.eps), *examples.x.shape)
    x_adv = examples.x.cpu().expand(shape).clone()
    raw: AttackOutput | None = None
    verdicts: list[Prediction] = []
    judging, judges, busy = 0.0, judged_rows or rows, 1.0
    if positive and len(chosen.id):
        part = replace(curve, eps=tuple(curve.eps[index] for index in positive))
        attacked = model if source is None else source
        with frozen(attacked):
            started, worked = time.perf_counter(), timing.busy(examples.x.device)
            if part.attack.parts is not None:
                raw = ensemble.attack(attacked, part, chosen, rows, copy, judges)
            else:
                raw = craft(attacked, part, chosen, rows, copy)
            timing.synchronise(examples.x.device)
            worked = timing.busy(examples.x.device) - worked
            busy = worked / (time.perf_counter() - started)
            verdicts, judging = timing.timed(
                lambda raw=raw: verdicts_on(model, part, chosen, raw, judges), examples.x.device
            )
            led = copy not in (None, attacked) or part.precision != "float32"
            rule = part.attack.rule
            if rule is not None:
                raw, again = spot_checked(attacked, copy, part, chosen, rows, raw, verdicts)
                verdicts = verdicts_on(model, part, chosen, raw, judges) if again else verdicts
            led = led and not raw.dropped
            if led and rule is not None and (part.stop == "first-success" or rule.seeks):
                own = attacked is model
                seen = verdicts if own else verdicts_on(attacked, part, chosen, raw, rows)
                raw, again = recheck_claims(attacked, part, chosen, rows, raw, seen)
                verdicts = verdicts_on(model, part, chosen, raw, judges) if again else verdicts
            verdicts = _settled(model, part, examples, wanted, raw, verdicts, judges)
            if searches(part):
                least, spent = timing.timed(
                    lambda raw=raw: _least(model, part, chosen, raw, judges), examples.x.device
                )
                raw, judging = raw._replace(distance=least), judging + spent
    if not _are_equal(chosen.x, examples.x[wanted]):
        raise ContractError("the attack or the model wrote into the images that it was shown")
    records, costs = [], []
    for index, eps in enumerate(curve.eps):
        if raw is None or index not in positive:
            records.append(_record(model, curve, eps, examples, wanted, None, 0, None, rows))
            costs.append(ChunkCost(0, 0.0, 0.0, 0.0))
            continue
        at = positive.index(index)
        frame, seconds = timing.timed(
            lambda eps=eps, at=at: _record(
                model, curve, eps, examples, wanted, raw, at, verdicts[at], judges
            ),
            examples.x.device,
        )
        x_adv[index, wanted.cpu()] = raw.x_adv[at].cpu()
        records.append(frame)
        forwards, backwards = float(raw.forwards[at].sum()), float(raw.backwards[at].sum())
        verifying = seconds + judging / len(positive)
        spoilt = torch.zeros(1) if raw.nonfinite is None else raw.nonfinite[at]
        costs.append(
            ChunkCost(
                attacked=len(chosen.id),
                seconds=raw.seconds[at],
                verify_seconds=verifying,
                floor_seconds=floor.seconds(forwards, backwards),
                busy_seconds=raw.seconds[at] * busy,
                busy_floor_seconds=floor.busy_seconds(forwards, backwards),
                nonfinite_gradients=int(spoilt.sum()),
                nonfinite_examples=int((spoilt > 0).sum()),
            )
        )
    losses = raw.losses if raw is not None else None
    left, dropped = (raw.rows, raw.dropped) if raw is not None else (rows, "")
    return VerifiedChunk(records, costs, x_adv, losses, left, dropped)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same numbers; NaN is NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


# --------------------------------------------------------------------------- verifying and judging


def _settled(
    model: nn.Module,
    curve: AttackSpec,
    examples: Examples,
    wanted: Tensor,
    raw: AttackOutput,
    verdicts: list[Prediction],
    rows: int,
) -> list[Prediction]:
    """The verdicts, with the clean one wherever the image that was returned is x itself.

    Another verdict on the same image is no success: of a model that is asked among other images,
    or other numbers of them, a tie may fall to the other side.
    Raises: ContractError if the clean images, asked about again just as in the clean pass, are
    taken for other classes than then, by more than rounding: the model was changed, or does not
    answer alike.
    """
    if curve.random:
        return verdicts
    x, clean = examples.x[wanted], examples.clean_pred[wanted]
    settled, again = [], None
    for at, (eps, verdict) in enumerate(zip(curve.eps, verdicts, strict=True)):
        same = (final_images(curve, eps, x, raw, at) == x).flatten(1).all(1)
        other = same & (verdict.pred != clean)
        if not other.any():
            settled.append(verdict)
            continue
        again = judge(model, examples.x, rows) if again is None else again
        turned = other & (again.pred[wanted] != clean)
        turned &= ~_tied(model, x, rows)
        if turned.any():
            row = int(turned.nonzero()[0, 0])
            raise ContractError(
                f"example {int(examples.id[wanted][row])}: the clean image was class "
                f"{int(clean[row])} before the attack and is class {int(verdict.pred[row])} after "
                "it: the model was changed, or does not answer alike twice"
            )
        settled.append(
            verdict._replace(
                pred=torch.where(other, clean, verdict.pred),
                confidence=torch.where(
                    other, examples.clean_confidence[wanted], verdict.confidence
                ),
            )
        )
    return settled


def _tied(model: nn.Module, x: Tensor, rows: int) -> Tensor:
    """Whether the two largest logits of each of x (n, c, h, w) differ by no more than rounding."""
    with eval_mode(model), torch.no_grad(), allow_tf32(False):
        logits = torch.cat([model(part.clone()) for part in x.split(rows)]).float()
    first, second = logits.topk(2, 1).values.unbind(1)
    return (first - second) <= TIE_TOLERANCE * logits.abs().amax(1)  # never of what is not finite


def _least(
    model: nn.Module, curve: AttackSpec, chosen: Examples, raw: AttackOutput, rows: int
) -> Tensor:
    """How far the example is that a search found, whatever the eps, (n,); infinite where what it
    returned is no image, or none that the model takes for what the attack is after."""
    x_adv = raw.x_adv[0]
    pred = judge(model, x_adv, rows, vote(curve, chosen.id)).pred
    broken = violations(x_adv, chosen.x, torch.inf, curve.norm, pred)
    sound = torch.tensor([not text for text in broken], device=x_adv.device)
    far = norms.distance(x_adv, chosen.x, curve.norm)
    moved = (x_adv != chosen.x).flatten(1).any(1)  # x itself is no find, whatever is said of it
    return torch.where(success(curve, chosen, pred) & sound & moved, far, torch.inf)


def _record(
    model: nn.Module,
    curve: AttackSpec,
    eps: float,
    examples: Examples,
    wanted: Tensor,
    raw: AttackOutput | None,
    at: int,
    verdict: Prediction | None,
    rows: int,
) -> pd.DataFrame:
    """The records of one cell's shard: one row per example, attacked (`wanted`) or not."""
    n = len(examples.id)
    pred, pred_8bit = examples.clean_pred.clone(), examples.clean_pred.clone()
    confidence, agreement = examples.clean_confidence.clone(), examples.clean_agreement.clone()
    distances = torch.zeros(len(NORMS), n, device=wanted.device)
    passes = torch.zeros(2, n, dtype=torch.float64, device=wanted.device)
    first = torch.full((n,), -1, dtype=torch.int64, device=wanted.device)
    least = torch.full((n,), torch.nan, device=wanted.device)
    violation, parts = [""] * n, [""] * n
    fooled = torch.zeros_like(wanted)
    if raw is not None and verdict is not None:
        x = examples.x[wanted]
        x_adv = final_images(curve, eps, x, raw, at)
        pred[wanted], confidence[wanted] = verdict.pred, verdict.confidence
        agreement[wanted] = verdict.agreement
        how = vote(curve, examples.id[wanted])
        pred_8bit[wanted] = judge(model, (x_adv * 255).round() / 255, rows, how).pred
        found = violations(x_adv, x, eps, curve.norm, pred[wanted])
        for position, text in zip(wanted.nonzero()[:, 0].tolist(), found, strict=True):
            violation[position] = text
        sound = torch.tensor([not text for text in found], device=wanted.device)
        fooled[wanted] = success(curve, examples, pred)[wanted] & sound
        for index, norm in enumerate(NORMS):
            distances[index, wanted] = norms.distance(x_adv, x, norm)
        passes[0, wanted] = raw.forwards[at].to(passes)
        passes[1, wanted] = raw.backwards[at].to(passes)
        first[wanted] = raw.first_success[at]
        if raw.distance is not None:
            least[wanted] = raw.distance.to(least)
        if raw.part is not None:
            parts = _parts(curve, raw.part[at], fooled, wanted)
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
        "part": parts,
        "agreement": agreement,
        "distance": least,
    }
    return pd.DataFrame(
        {
            key: value.cpu().numpy() if isinstance(value, Tensor) else value
            for key, value in columns.items()
        }
    )


def _parts(curve: AttackSpec, part: Tensor, fooled: Tensor, wanted: Tensor) -> list[str]:
    """For each example the label of the ensemble's part that fooled the model; "" if none did."""
    assert curve.attack.parts is not None
    labels = [each.label for each in curve.attack.parts(curve.params, curve.norm)]
    numbers = torch.full(wanted.shape, -1, device=wanted.device)
    numbers[wanted] = part
    return [labels[k] if k >= 0 else "" for k in torch.where(fooled, numbers, -1).tolist()]
