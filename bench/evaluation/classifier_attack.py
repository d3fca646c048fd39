"""Attack the classifier of a detector alone, on examples that resist an attack on both.

`bench.engine.rejection.attacks_classifier_too` says which attacks are repeated so, and why.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec
from bench.engine.rejection import attacks_classifier_too, find_detector, select_classifier
from bench.evaluation.crafting import AttackOutput, Examples, craft

IsWon = Callable[[Examples, AttackOutput], Tensor]
"""Examples and images -> which images are successes on the judged model, bool (e, n)."""


def attack_classifier_too(
    attacked: nn.Module, spec: AttackSpec, chosen: Examples, output: AttackOutput, is_won: IsWon
) -> AttackOutput:
    """Attack the classifier alone where an attack on classifier and detector has failed.

    Args:
        attacked: The attacked model.
        spec: A rule or an external attack; no ensemble.
        chosen: Examples that were attacked, n > 0.
        output: What the attack returned.
        is_won: Judges images by the whole model.

    Returns:
        `output` with the images of the second attack where they are the only success, and the costs
        of both; `output` itself where no second attack is made.
    """
    detector = find_detector(attacked)
    if detector is None or detector.spares or not attacks_classifier_too(spec):
        return output
    won = is_won(chosen, output)
    left = (~won).any(0)
    if not left.any():
        return output
    subset = Examples(*(field[left] for field in chosen))
    alone = craft(
        select_classifier(detector), replace(spec, precision="float32"), subset, output.rows
    )
    taken = ~won[:, left] & is_won(subset, alone)
    return _merge(output, alone, left.nonzero()[:, 0], taken)


def _merge(output: AttackOutput, alone: AttackOutput, left: Tensor, taken: Tensor) -> AttackOutput:
    """Add the costs of `alone` at the examples `left`, and its images where `taken`, (e, left)."""
    at, place = taken.nonzero(as_tuple=True)
    x_adv, first_success = output.x_adv.clone(), output.first_success.clone()
    x_adv[at, left[place]] = alone.x_adv[at, place]
    first_success[at, left[place]] = alone.first_success[at, place]
    return output._replace(
        x_adv=x_adv,
        first_success=first_success,
        forwards=_add(output.forwards, alone.forwards, left),
        backwards=_add(output.backwards, alone.backwards, left),
        nonfinite=None
        if output.nonfinite is None or alone.nonfinite is None
        else _add(output.nonfinite, alone.nonfinite, left),
        seconds=_add_seconds(output.seconds, alone.seconds),
        rows=alone.rows,
    )


def _add(whole: Tensor, part: Tensor, left: Tensor) -> Tensor:
    """Add counts (e, left) to counts (e, n)."""
    return torch.index_add(whole, 1, left, part.to(whole))


def _add_seconds(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)]
