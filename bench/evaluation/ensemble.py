"""An ensemble: its parts one after another, each on the examples that those before left standing.

After every part the model itself judges, and ball and box are verified, so an example counts as
broken exactly if one part broke it: the count never rises from one part to the next and which
part it was is kept. At each eps an ensemble starts anew; under sweep = "nested" with what no
smaller eps broke.
"""

from dataclasses import replace

import torch
from torch import nn

from bench.core.contracts.attack import AttackSpec, EnsembleAttack, Part
from bench.evaluation import crafting
from bench.evaluation.crafting import AttackOutput, Examples


def attack(
    model: nn.Module,
    curve: AttackSpec,
    chosen: Examples,
    rows: int,
    copy: nn.Module | None = None,
    judged_rows: int | None = None,
) -> AttackOutput:
    """Every part of the curve's ensemble at every eps; arguments as `craft.craft`'s, `judged_rows`
    those of the judge between two parts."""
    assert isinstance(curve.attack, EnsembleAttack)
    parts = curve.attack.parts(curve.params, curve.norm)
    e, n, device = len(curve.eps), len(chosen.id), chosen.x.device
    counts = torch.zeros(2, e, n, dtype=torch.float64, device=device)
    raw = AttackOutput(
        x_adv=chosen.x.expand(e, *chosen.x.shape).clone(),
        forwards=counts[0],
        backwards=counts[1],
        first_success=torch.full((e, n), -1, device=device),
        seconds=[0.0] * e,
        rows=rows,
        part=torch.full((e, n), -1, device=device),
        nonfinite=torch.zeros(e, n, dtype=torch.int64, device=device),
    )
    before: int | None = None
    for at in sorted(range(e), key=lambda index: curve.eps[index]):
        if before is not None and curve.sweep == "nested":
            for field in (raw.x_adv, raw.first_success, raw.part):
                field[at] = field[before]  # type: ignore[index]
        for number, part in enumerate(parts):
            raw = _part(model, curve, chosen, raw, at, number, part, copy, judged_rows)
        before = at
    return raw


def _part(
    model: nn.Module,
    curve: AttackSpec,
    chosen: Examples,
    raw: AttackOutput,
    at: int,
    number: int,
    part: Part,
    copy: nn.Module | None,
    judged_rows: int | None,
) -> AttackOutput:
    """`raw` with what one part, at the curve's eps of index `at`, broke of what still stands."""
    assert raw.part is not None
    left = (raw.part[at] < 0).nonzero()[:, 0]
    if not len(left):
        return raw
    few = Examples(*(field[left] for field in chosen))
    own = replace(
        curve,
        name=part.name,
        attack=part.attack,
        params=part.params,
        eps=(curve.eps[at],),
        sweep="independent",
        # A search stops at its first find within the ball: here only that counts.
        stop="first-success" if part.attack.budget == "minimum" else curve.stop,
    )
    if raw.dropped:  # by an earlier part
        copy, own = None, replace(own, precision="float32")
    got = crafting.craft(model, own, few, raw.rows, copy)
    verdicts = crafting.verdicts_on(model, own, few, got, judged_rows or got.rows)
    got, again = crafting.spot_checked(model, copy, own, few, got.rows, got, verdicts)
    led = copy not in (None, model) or own.precision != "float32"
    if led and not got.dropped:
        got, again = crafting.recheck_claims(model, own, few, got.rows, got, verdicts)
    if again:
        verdicts = crafting.verdicts_on(model, own, few, got, judged_rows or got.rows)
    eps, pred = curve.eps[at], verdicts[0].pred
    images = crafting.final_images(own, eps, few.x, got, 0)
    broken_promises = crafting.violations(images, few.x, eps, curve.norm, pred)
    kept = torch.tensor([not promise for promise in broken_promises], device=left.device)
    won = crafting.success(own, few, pred) & kept
    raw.forwards[at, left] += got.forwards[0]
    raw.backwards[at, left] += got.backwards[0]
    if raw.nonfinite is not None and got.nonfinite is not None:
        raw.nonfinite[at, left] += got.nonfinite[0]
    raw.seconds[at] += got.seconds[0]
    # What breaks its promise is no success, and is shown where no later part succeeds.
    raw.x_adv[at, left[~kept]] = images[~kept]
    broken = left[won]
    raw.x_adv[at, broken] = images[won]
    raw.part[at, broken] = number
    raw.first_success[at, broken] = got.first_success[0, won]
    return raw._replace(rows=got.rows, dropped=raw.dropped or got.dropped)
