"""Evaluate one chunk of examples under one attack spec, from clean predictions to records.

The attack is run and verified (`verify`, `ensemble`), and every example becomes one row per eps
(`chunk_records`).
"""

from dataclasses import replace
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, EnsembleAttack
from bench.core.contracts.types import BALLS
from bench.core.errors import ContractError
from bench.engine import timing
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional import norms
from bench.engine.model_state import eval_mode, frozen
from bench.engine.threats.registry import find_threat
from bench.evaluation.chunk_records import build_records
from bench.evaluation.crafting import AttackOutput, Examples, final_images, is_single_search
from bench.evaluation.ensemble import run_ensemble
from bench.evaluation.judge import Prediction, judge, vote_for
from bench.evaluation.queries import counts_queries
from bench.evaluation.verify import (
    VerifiedOutput,
    craft_and_verify,
    find_violations,
    is_success,
    measure_busy,
    predict_output,
)

TIE_TOLERANCE = 1e-5
"""How far two logits may be apart, as a share of the largest, for rounding to decide between them:
some hundred times float32's."""


class CleanPass(NamedTuple):
    """Predictions of one model on a whole data set, shared by all attacks; every field is (n,)."""

    label: Tensor
    """The data set's label; where it has none the clean prediction, of a rejected image that of the
    classifier."""
    pred: Tensor
    confidence: Tensor
    least_likely: Tensor
    agreement: Tensor


class ChunkCost(NamedTuple):
    """What one cell's chunk cost; the harness's own passes are in `verify_seconds` alone."""

    attacked: int
    seconds: float
    verify_seconds: float
    floor_seconds: float
    """0 where the floor was not timed."""
    busy_seconds: float = 0.0
    """As `seconds` and `floor_seconds`, in the seconds of `timing.busy_seconds`."""
    busy_floor_seconds: float = 0.0
    nonfinite_gradients: int = 0
    """Gradients in which entries were not finite and counted as 0."""
    nonfinite_examples: int = 0
    """Examples that had any."""


class VerifiedChunk(NamedTuple):
    """One chunk under a spec: a frame and a cost for each eps in the spec's order."""

    records: list[pd.DataFrame]
    costs: list[ChunkCost]
    x_adv: Tensor
    """(e, n, *input), on the CPU; rows that were not attacked hold the clean image."""
    losses: Tensor | None
    """The ascended loss, step by step, (positive eps, attacked examples, steps), if traced."""
    rows: int
    """Rows per pass at the end: fewer than asked for where memory ran out."""
    dropped: str = ""
    """Why the accelerated model was dropped and the model itself attacked; empty if it was not."""


def evaluate_chunk(
    model: nn.Module,
    spec: AttackSpec,
    examples: Examples,
    rows: int,
    floor: timing.Floor | None,
    *,
    source: nn.Module | None = None,
    judge_rows: int | None = None,
    accelerated: nn.Module | None = None,
    spared: Tensor | None = None,
) -> VerifiedChunk:
    """Attack examples at every eps of a spec, verify and judge the images.

    The attack sees `source` alone, or for its gradients the `accelerated` model, and `model` judges
    (the threat model of transfer). Examples that the model misclassifies without attack are not
    attacked, nor, when targeted, those whose label is the target; a family whose images do not
    depend on the model (`ThreatFamily.transforms_all`) transforms them, too, but never counts them
    as fooled. At eps = 0 nothing is attacked.

    Args:
        model: The judged model.
        spec: The attack with its params, eps and threat model.
        examples: The chunk's n examples with their clean predictions.
        rows: Most rows per pass of the attack.
        floor: Seconds of a bare loop on the attacked model at `rows` rows; None if it was not
            timed.
        source: The attacked model; the judged one by default.
        judge_rows: Rows per pass of the judge; `rows` by default.
        accelerated: Stands in for the attacked model's gradients.
        spared: Examples that are not attacked at any eps of the spec, (n,), bool; none by default.

    Returns:
        Records, costs and images for each eps.

    Raises:
        ContractError: The attack broke a promise that leaves nothing to judge, or the model no
            longer predicts the clean images as in the clean pass.
    """
    attacked = examples.clean_pred == examples.label
    if spec.norm not in BALLS and find_threat(spec.norm).transforms_all:
        attacked = torch.ones_like(attacked)
    if spec.goal == "targeted":
        attacked &= examples.target != examples.label
    if spared is not None:
        attacked &= ~spared
    chosen = Examples(*(field[attacked] for field in examples))
    positive = [index for index, eps in enumerate(spec.eps) if eps > 0]
    x_adv = examples.x.cpu().expand(len(spec.eps), *examples.x.shape).clone()
    judge_rows = judge_rows or rows
    verified: VerifiedOutput | None = None
    if positive and len(chosen.id):
        positive_spec = replace(spec, eps=tuple(spec.eps[index] for index in positive))
        verified = _attack_chunk(
            model, positive_spec, examples, attacked, chosen, rows, source, judge_rows, accelerated
        )
    if not _are_equal(chosen.x, examples.x[attacked]):
        raise ContractError("the attack or the model wrote into the images that it was shown")
    records, costs = [], []
    for index, eps in enumerate(spec.eps):
        if verified is None or index not in positive:
            records.append(build_records(model, spec, eps, examples, attacked, None, 0, rows))
            costs.append(ChunkCost(0, 0.0, 0.0, 0.0))
            continue
        at = positive.index(index)
        frame, seconds = timing.time_call(
            lambda eps=eps, at=at: build_records(
                model, spec, eps, examples, attacked, verified, at, judge_rows
            ),
            examples.x.device,
        )
        x_adv[index, attacked.cpu()] = verified.output.x_adv[at].cpu()
        records.append(frame)
        seconds += verified.judge_seconds / len(positive)
        costs.append(_count_cost(verified, at, seconds, floor))
    if verified is None:
        return VerifiedChunk(records, costs, x_adv, None, rows)
    output = verified.output
    return VerifiedChunk(records, costs, x_adv, output.losses, output.rows, output.dropped)


def _attack_chunk(
    model: nn.Module,
    spec: AttackSpec,
    examples: Examples,
    attacked: Tensor,
    chosen: Examples,
    rows: int,
    source: nn.Module | None,
    judge_rows: int,
    accelerated: nn.Module | None,
) -> VerifiedOutput:
    """Attack the `chosen` examples, those where `attacked`, and settle the predictions.

    All eps are positive. The caller compares the images of `chosen` afterwards: what the attack is
    given are these tensors and no copy of them.
    """
    device = examples.x.device
    attacked_model = model if source is None else source
    with frozen(attacked_model):
        if not isinstance(spec.attack, EnsembleAttack):
            verified = craft_and_verify(
                model, spec, chosen, rows,
                source=source, accelerated=accelerated, judge_rows=judge_rows,
            )  # fmt: skip
        else:
            output, busy = measure_busy(
                lambda: run_ensemble(
                    attacked_model, spec, chosen, rows, accelerated, judge_rows
                ),
                device,
            )  # fmt: skip
            predictions, seconds = timing.time_call(
                lambda: predict_output(model, spec, chosen, output, judge_rows), device
            )
            verified = VerifiedOutput(output, predictions, seconds, busy)
        predictions = _restore_clean_predictions(
            model, spec, examples, attacked, verified, judge_rows
        )
        verified = verified._replace(predictions=predictions)
        if not counts_queries(spec) or attacked_model is not model:  # another model was asked
            unknown = verified.output._replace(queries=None, nearest=None)
            verified = verified._replace(output=unknown)
        if is_single_search(spec):
            distance, seconds = timing.time_call(
                lambda: _search_distance(model, spec, chosen, verified.output, judge_rows), device
            )
            verified = verified._replace(
                output=verified.output._replace(distance=distance),
                judge_seconds=verified.judge_seconds + seconds,
            )
    return verified


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Check whether two tensors hold the same numbers; NaN equals NaN."""
    return torch.equal(one, other) or bool(((one == other) | (one.isnan() & other.isnan())).all())


def _count_cost(
    verified: VerifiedOutput, at: int, verify_seconds: float, floor: timing.Floor | None
) -> ChunkCost:
    """Compute what one eps cost; no floor has seconds of 0, as `ChunkCost` says."""
    output = verified.output
    forwards, backwards = float(output.forwards[at].sum()), float(output.backwards[at].sum())
    # The victim's passes are bare ones: their time is their floor.
    asked = 0.0 if output.victim_seconds is None else output.victim_seconds[at]
    nonfinite = torch.zeros(1) if output.nonfinite is None else output.nonfinite[at]
    seconds, busy = 0.0, 0.0
    if floor is not None:
        seconds = floor.seconds(forwards, backwards) + asked
        busy = floor.busy_seconds(forwards, backwards) + asked * verified.busy
    return ChunkCost(
        attacked=output.forwards.shape[1],
        seconds=output.seconds[at],
        verify_seconds=verify_seconds,
        floor_seconds=seconds,
        busy_seconds=output.seconds[at] * verified.busy,
        busy_floor_seconds=busy,
        nonfinite_gradients=int(nonfinite.sum()),
        nonfinite_examples=int((nonfinite > 0).sum()),
    )


# ------------------------------------------------------------------------------------- predictions


def _restore_clean_predictions(
    model: nn.Module,
    spec: AttackSpec,
    examples: Examples,
    attacked: Tensor,
    verified: VerifiedOutput,
    rows: int,
) -> list[Prediction]:
    """Replace predictions by the clean ones wherever the returned image is x itself.

    Another prediction on the same image is no success: beside other images, or other numbers of
    them, a tie may fall to the other side.

    Raises:
        ContractError: The clean images, predicted again just as in the clean pass, get other
            classes by more than rounding: the model was changed or is not deterministic.
    """
    if spec.random:
        return verified.predictions
    x, clean = examples.x[attacked], examples.clean_pred[attacked]
    restored, repeated = [], None
    for at, (eps, prediction) in enumerate(zip(spec.eps, verified.predictions, strict=True)):
        same = (final_images(spec, eps, x, verified.output, at) == x).flatten(1).all(1)
        differs = same & (prediction.pred != clean)
        if not differs.any():
            restored.append(prediction)
            continue
        repeated = judge(model, examples.x, rows) if repeated is None else repeated
        changed = differs & (repeated.pred[attacked] != clean)
        changed &= ~_are_tied(model, x, rows)
        if changed.any():
            row = int(changed.nonzero()[0, 0])
            raise ContractError(
                f"example {int(examples.id[attacked][row])}: the clean image was class "
                f"{int(clean[row])} before the attack and is class {int(prediction.pred[row])} "
                "after it: the model was changed, or does not answer alike twice"
            )
        confidence = examples.clean_confidence[attacked]
        restored.append(
            prediction._replace(
                pred=torch.where(differs, clean, prediction.pred),
                confidence=torch.where(differs, confidence, prediction.confidence),
            )
        )
    return restored


def _are_tied(model: nn.Module, x: Tensor, rows: int) -> Tensor:
    """Check whether the two largest logits of each x (n, c, h, w) differ by rounding alone."""
    with eval_mode(model), torch.no_grad(), allow_tf32(False):
        logits = torch.cat([model(batch.clone()) for batch in x.split(rows)]).float()
    first, second = logits.topk(2, 1).values.unbind(1)
    return (first - second) <= TIE_TOLERANCE * logits.abs().amax(1)  # False where not finite


def _search_distance(
    model: nn.Module, spec: AttackSpec, chosen: Examples, output: AttackOutput, rows: int
) -> Tensor:
    """Measure how far the examples are that a single search found, at any eps, (n,).

    Infinite where the returned image is x, breaks the box or is no success.
    """
    x_adv = output.x_adv[0]
    predicted = judge(model, x_adv, rows, vote_for(spec, chosen.id))
    violations = find_violations(x_adv, chosen.x, torch.inf, spec.norm, predicted.pred)
    valid = torch.tensor([not text for text in violations], device=x_adv.device)
    distance = norms.distance(x_adv, chosen.x, spec.norm)
    moved = (x_adv != chosen.x).flatten(1).any(1)
    return torch.where(is_success(spec, chosen, predicted) & valid & moved, distance, torch.inf)
