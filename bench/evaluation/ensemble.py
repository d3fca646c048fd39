"""Run an ensemble: its parts one after another, each on the examples that still resist.

Each part's images are judged and verified before the next one starts (`verify`), so an example
counts as broken exactly if one part broke it: the count never rises from one part to the next, and
the part is recorded. At each eps the ensemble starts from the clean images; under sweep = "nested"
it takes over what a smaller eps broke.
"""

from dataclasses import replace

import torch
from torch import nn

from bench.core.contracts.attack import AttackSpec, EnsembleAttack, Part
from bench.evaluation.crafting import AttackOutput, Examples, final_images
from bench.evaluation.part_forecast import PartForecast
from bench.evaluation.verify import craft_and_verify, find_violations, is_success


def run_ensemble(
    model: nn.Module,
    spec: AttackSpec,
    chosen: Examples,
    rows: int,
    accelerated: nn.Module | None = None,
    judge_rows: int | None = None,
) -> AttackOutput:
    """Attack with every part of an ensemble at every eps.

    Args:
        model: The attacked model, which also judges between two parts.
        spec: An ensemble with its params, eps and threat model.
        chosen: Examples to attack, n > 0.
        rows: Most rows per pass of the attacks.
        accelerated: Model to differentiate in place of `model`.
        judge_rows: Rows per pass of the judge; `rows` by default.

    Returns:
        Images, summed costs and the successful part of each example, for e eps and n examples.
        An image that broke the threat model is returned where no later part succeeded.

    Raises:
        ContractError: As `crafting.craft`.
    """
    assert isinstance(spec.attack, EnsembleAttack)
    parts = spec.attack.parts(spec.params, spec.norm)
    e, n, device = len(spec.eps), len(chosen.id), chosen.x.device
    passes = torch.zeros(2, e, n, dtype=torch.float64, device=device)
    output = AttackOutput(
        x_adv=chosen.x.expand(e, *chosen.x.shape).clone(),
        forwards=passes[0],
        backwards=passes[1],
        first_success=torch.full((e, n), -1, device=device),
        seconds=[0.0] * e,
        rows=rows,
        part=torch.full((e, n), -1, device=device),
        nonfinite=torch.zeros(e, n, dtype=torch.int64, device=device),
    )
    forecast = PartForecast(spec, n)
    smaller: int | None = None
    for at in sorted(range(e), key=lambda index: spec.eps[index]):
        if smaller is not None and spec.sweep == "nested":
            for field in (output.x_adv, output.first_success, output.part):
                field[at] = field[smaller]  # type: ignore[index]
        left = _count_resisting(output, at)
        for number, part in enumerate(parts):
            if not left:
                break
            with forecast.run_part(number, spec.eps[at], left) as resisted:
                output = _run_part(
                    model, spec, chosen, output, at, number, part, accelerated, judge_rows
                )
                left = _count_resisting(output, at)
                resisted.append(left)
        smaller = at
    return output


def _count_resisting(output: AttackOutput, at: int) -> int:
    """Count the examples that no part has broken at the eps of index `at`."""
    assert output.part is not None
    return int((output.part[at] < 0).sum())


def _run_part(
    model: nn.Module,
    spec: AttackSpec,
    chosen: Examples,
    output: AttackOutput,
    at: int,
    number: int,
    part: Part,
    accelerated: nn.Module | None,
    judge_rows: int | None,
) -> AttackOutput:
    """Add to `output` what one part breaks, at the eps of index `at`, of what still resists."""
    assert output.part is not None
    remaining = (output.part[at] < 0).nonzero()[:, 0]
    subset = Examples(*(field[remaining] for field in chosen))
    part_spec = replace(
        spec,
        name=part.name,
        attack=part.attack,
        params=part.params,
        eps=(spec.eps[at],),
        sweep="independent",
        # A search stops at its first success within the ball: here only that counts.
        stop="first-success" if part.attack.budget == "minimum" else spec.stop,
    )
    if output.dropped:  # by an earlier part
        accelerated, part_spec = None, replace(part_spec, precision="float32")
    verified = craft_and_verify(
        model, part_spec, subset, output.rows,
        accelerated=accelerated, judge_rows=judge_rows, recheck_all=True,
    )  # fmt: skip
    got, predicted, eps = verified.output, verified.predictions[0], spec.eps[at]
    images = final_images(part_spec, eps, subset.x, got, 0)
    violations = find_violations(images, subset.x, eps, spec.norm, predicted.pred)
    valid = torch.tensor([not text for text in violations], device=remaining.device)
    won = is_success(part_spec, subset, predicted) & valid
    output.forwards[at, remaining] += got.forwards[0]
    output.backwards[at, remaining] += got.backwards[0]
    if output.nonfinite is not None and got.nonfinite is not None:
        output.nonfinite[at, remaining] += got.nonfinite[0]
    output.seconds[at] += got.seconds[0]
    # A violation is no success, and is shown where no later part succeeds.
    output.x_adv[at, remaining[~valid]] = images[~valid]
    broken = remaining[won]
    output.x_adv[at, broken] = images[won]
    output.part[at, broken] = number
    output.first_success[at, broken] = got.first_success[0, won]
    return output._replace(rows=got.rows, dropped=output.dropped or got.dropped)
