"""Build the per-example records of a chunk at one eps: one row per example, attacked or not.

The judged model is asked once more, on each adversarial image rounded to 8 bits.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, EnsembleAttack, IterativeAttack
from bench.core.contracts.types import BALLS
from bench.engine.functional import norms
from bench.engine.rejection import find_detector, spares_rejected
from bench.engine.threats.registry import find_threat
from bench.evaluation.crafting import AttackOutput, Examples, final_images, is_single_search
from bench.evaluation.judge import judge, vote_for
from bench.evaluation.verify import VerifiedOutput, find_output_violations, is_success

_Columns = dict[str, Any]
"""Name of a column -> a tensor (n,) or a list of n values."""


def build_records(
    model: nn.Module,
    spec: AttackSpec,
    eps: float,
    examples: Examples,
    attacked: Tensor,
    verified: VerifiedOutput | None,
    at: int,
    rows: int,
) -> pd.DataFrame:
    """Build the records of one cell's chunk.

    Args:
        model: The judged model.
        spec: The attack.
        eps: Radius of the cell.
        examples: All n examples of the chunk.
        attacked: Which of them were attacked, (n,), bool.
        verified: What the attack returned for those, with predictions; None if none was attacked.
        at: Index of the eps in `verified`.
        rows: Rows per pass of the judge.

    Returns:
        The columns that `storage.schema` declares of an example, n rows.
    """
    columns = _describe_unattacked(model, examples, attacked)
    if verified is not None:
        _fill_verdicts(columns, model, spec, eps, examples, attacked, verified, at, rows)
        _fill_passes(columns, spec, verified.output, at, attacked)
        _fill_queries(columns, spec, verified.output, at, attacked)
        _fill_texts(columns, spec, verified.output, at, attacked)
    return pd.DataFrame(
        {
            key: value.cpu().numpy() if isinstance(value, Tensor) else value
            for key, value in columns.items()
        }
    )


def _describe_unattacked(model: nn.Module, examples: Examples, attacked: Tensor) -> _Columns:
    """Return the records of examples of which none was attacked, in the order of the columns."""
    n, device, detector = len(examples.id), attacked.device, find_detector(model)
    unknown = torch.full((n,), torch.nan, dtype=torch.float64, device=device)
    return {
        "example": examples.id,
        "label": examples.label,
        "target": examples.target,
        "clean_pred": examples.clean_pred,
        "adv_pred": examples.clean_pred.clone(),
        "adv_pred_8bit": examples.clean_pred.clone(),
        "clean_correct": examples.clean_pred == examples.label,
        "fooled": torch.zeros_like(attacked),
        "violation": [""] * n,
        "confidence": examples.clean_confidence.clone(),
        **{norm: torch.zeros(n, device=device) for norm in BALLS},
        "forwards": torch.zeros_like(unknown),
        "backwards": torch.zeros_like(unknown),
        "first_success_step": torch.full((n,), -1, dtype=torch.int64, device=device),
        "clean_confidence": examples.clean_confidence,
        "attacked": attacked,
        "part": [""] * n,
        "agreement": examples.clean_agreement.clone(),
        "distance": torch.full((n,), torch.nan, device=device),
        "queries": unknown.clone(),
        "distance_within": [None] * n,
        "parameters": [""] * n,
        "rejection": torch.full_like(examples.id, -1 if detector is None else detector.classes),
        "rejected_is_robust": torch.full_like(attacked, spares_rejected(model)),
        "victim_queries": unknown.clone(),
        "certified": torch.zeros_like(attacked),
    }


def _fill_verdicts(
    columns: _Columns,
    model: nn.Module,
    spec: AttackSpec,
    eps: float,
    examples: Examples,
    attacked: Tensor,
    verified: VerifiedOutput,
    at: int,
    rows: int,
) -> None:
    """Fill in what the judge and the check of the threat model say of the attacked examples."""
    output, prediction = verified.output, verified.predictions[at]
    chosen = Examples(*(field[attacked] for field in examples))
    x_adv = final_images(spec, eps, chosen.x, output, at)
    columns["adv_pred"][attacked] = prediction.pred
    columns["confidence"][attacked] = prediction.confidence
    columns["agreement"][attacked] = prediction.agreement
    rounded = judge(model, (x_adv * 255).round() / 255, rows, vote_for(spec, chosen.id))
    columns["adv_pred_8bit"][attacked] = rounded.pred
    violations = find_output_violations(
        spec, eps, chosen.id, chosen.x, output, at, columns["adv_pred"][attacked]
    )
    _fill_rows(columns["violation"], attacked, violations)
    valid = torch.tensor([not text for text in violations], device=attacked.device)
    columns["fooled"][attacked] = is_success(spec, chosen, prediction) & valid
    columns["fooled"] &= columns["clean_correct"]
    for norm in BALLS:
        columns[norm][attacked] = norms.distance(x_adv, chosen.x, norm)


def _fill_passes(
    columns: _Columns, spec: AttackSpec, output: AttackOutput, at: int, attacked: Tensor
) -> None:
    """Fill in the passes of the attacked examples, and the step at which each fell."""
    for name, counts in (("forwards", output.forwards), ("backwards", output.backwards)):
        columns[name][attacked] = counts[at].to(columns[name])
    step = columns["first_success_step"]
    step[attacked] = output.first_success[at]
    if isinstance(spec.attack, IterativeAttack):
        late = columns["fooled"] & (step < 0)
        columns["first_success_step"] = torch.where(late, spec.params.steps, step)


def _fill_queries(
    columns: _Columns, spec: AttackSpec, output: AttackOutput, at: int, attacked: Tensor
) -> None:
    """Fill in what a search found within how many queries, and the queries of the victim."""
    if output.distance is not None:
        columns["distance"][attacked] = output.distance.to(columns["distance"])
    queries = columns["queries"]
    if output.queries is not None:
        # The queries of one search are divided among the eps.
        shares = len(output.forwards) if is_single_search(spec) else 1
        made = output.forwards[at].to(queries) * shares
        queries[attacked] = settle_queries(
            output.queries[at].to(queries), made, columns["fooled"][attacked]
        )
    if spec.budgets and output.nearest is not None:
        _fill_rows(columns["distance_within"], attacked, output.nearest.float().tolist())
    if output.victim_queries is not None:
        columns["victim_queries"][attacked] = output.victim_queries[at].to(queries)


def _fill_texts(
    columns: _Columns, spec: AttackSpec, output: AttackOutput, at: int, attacked: Tensor
) -> None:
    """Fill in what images of a family were made with, and which part of an ensemble succeeded."""
    if output.parameters is not None:
        describe = find_threat(spec.norm).describe
        texts = [describe(values.tolist()) for values in output.parameters[at]]
        _fill_rows(columns["parameters"], attacked, texts)
    if output.part is not None:
        columns["part"] = _name_parts(spec, output.part[at], columns["fooled"], attacked)


def _fill_rows(column: list[Any], attacked: Tensor, values: Sequence[Any]) -> None:
    """Set the values of the attacked examples, in place."""
    for position, value in zip(attacked.nonzero()[:, 0].tolist(), values, strict=True):
        column[position] = value


def settle_queries(fell: Tensor, made: Tensor, fooled: Tensor) -> Tensor:
    """Settle at which query examples fell, by the verdict on the returned images.

    An image that was returned although the model was not asked about it takes one more query than
    were made. An example that the verdict spares did not fall.

    Args:
        fell: Queries until an example was first seen to fall, (n,); NaN where unknown.
        made: Queries made, (n,).
        fooled: The verdict, (n,), bool.

    Returns:
        Queries, (n,); infinite where the example did not fall, NaN where unknown.
    """
    settled = torch.where(fooled, torch.where(fell.isinf(), made + 1, fell), torch.inf)
    return torch.where(fell.isnan(), torch.nan, settled)


def _name_parts(spec: AttackSpec, part: Tensor, fooled: Tensor, attacked: Tensor) -> list[str]:
    """Name, for each example, the ensemble's part that fooled the model; "" if none did."""
    assert isinstance(spec.attack, EnsembleAttack)
    labels = [each.label for each in spec.attack.parts(spec.params, spec.norm)]
    numbers = torch.full(attacked.shape, -1, device=attacked.device)
    numbers[attacked] = part
    return [labels[k] if k >= 0 else "" for k in torch.where(fooled, numbers, -1).tolist()]
