"""Bound the passes that an attack costs, before it runs."""

import dataclasses

from bench.core.contracts.attack import AttackSpec, EnsembleAttack, IterativeAttack


def count_passes(spec: AttackSpec) -> tuple[float | None, float | None]:
    """Count the most passes that an attack costs per example and eps.

    Args:
        spec: The attack with its params and all eps.

    Returns:
        Forward passes and input gradients; None where unknown, as of a library's attack.
    """
    attack = spec.attack
    if attack.needs == "nothing":
        return 0.0, 0.0
    if isinstance(attack, EnsembleAttack):
        parts = attack.parts(spec.params, spec.norm)
        one = dataclasses.replace(spec, eps=(1.0,), sweep="independent")
        each = [
            count_passes(dataclasses.replace(one, attack=part.attack, params=part.params))
            for part in parts
        ]
        return sum(there or 0.0 for there, _ in each), sum(back or 0.0 for _, back in each)
    iterates = _count_iterates(spec)
    if iterates is None or spec.transforms is None:
        return iterates, iterates if attack.needs == "gradient" else 0.0
    return iterates * spec.transforms.forwards, iterates * spec.transforms.backwards


def _count_iterates(spec: AttackSpec) -> float | None:
    """Return the most iterates per example and eps; None if unknown."""
    positive = sum(eps > 0 for eps in spec.eps) or 1
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    if rule is not None and rule.one_gradient and spec.sweep == "independent":
        return spec.samples / positive
    steps = getattr(spec.params, "steps", None)
    if not isinstance(steps, int) or not spec.attack.counts_steps:
        return None
    restarts = getattr(spec.params, "restarts", 1)
    rounds = restarts if isinstance(restarts, int) else 1
    if rule is not None and rule.aims is not None:
        rounds *= rule.aims(spec.params)
    iterates = float(steps * rounds * spec.samples)
    return iterates / positive if spec.attack.budget == "minimum" else iterates
