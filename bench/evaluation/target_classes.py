"""Choose the classes that targeted attacks aim at."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.core import rng
from bench.suite import targets
from bench.suite.schema import AttackEntry


def choose_target_classes(
    entry: AttackEntry,
    ids: Tensor,
    label: Tensor,
    *,
    seed: int,
    classes: int,
    names: Sequence[str],
    least_likely: Callable[[], Tensor],
) -> Tensor:
    """Choose the target class of each example.

    Args:
        entry: The attack's entry, with a class or a rule.
        ids: Ids of the examples, (n,), int64.
        label: Their labels, (n,), int64.
        seed: Seed of random targets, which are keyed by example.
        classes: Number of classes of the attacked model.
        names: Names of the data's classes in index order; may be empty.
        least_likely: Returns the class that the attacked model finds least likely of each clean
            image, (n,).

    Returns:
        Classes, (n,), int64; -1 where the attack is untargeted.

    Raises:
        SuiteError: There is no such class, or several have that name.
    """
    if entry.goal == "untargeted":
        return torch.full_like(ids, -1)
    wanted = targets.resolve_target(entry, classes, names)
    if isinstance(wanted, int):
        return torch.full_like(ids, wanted)
    if wanted == "next":
        return (label + 1) % classes
    if wanted == "complement":
        return classes - 1 - label
    if wanted == "random":
        shift = rng.draw_integers(seed, "target", ids, classes - 1).to(ids)
        return (label + 1 + shift) % classes
    return least_likely()
