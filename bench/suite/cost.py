"""Bound the passes that an attack costs, before it runs."""

import dataclasses

from bench.core.contracts.attack import AttackSpec, EnsembleAttack, IterativeAttack


def count_passes(spec: AttackSpec, classes: int | None = None) -> tuple[float | None, float | None]:
    """Count the most passes that an attack costs per example and eps.

    Args:
        spec: The attack with its params and all eps.
        classes: Classes of the model that the examples are crafted on; None if unknown. An attack
            towards single classes has no more targets than wrong classes.

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
            count_passes(dataclasses.replace(one, attack=part.attack, params=part.params), classes)
            for part in parts
        ]
        return sum(there or 0.0 for there, _ in each), sum(back or 0.0 for _, back in each)
    iterates = _count_iterates(spec, classes)
    if iterates is None:
        return None, None if attack.needs == "gradient" else 0.0
    looks, slopes = _count_ranking(spec, classes)
    forwards = iterates * (spec.transforms.forwards if spec.transforms else 1)
    backwards = iterates * (spec.transforms.backwards if spec.transforms else 1)
    return forwards + looks, backwards + slopes if attack.needs == "gradient" else 0.0


def _count_ranking(spec: AttackSpec, classes: int | None) -> tuple[float, float]:
    """Return the most passes per example and eps that rank classes by their distance."""
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    choice = None if rule is None else rule.choose_targets(spec.params)
    if choice is None or choice.ranking != "distance":
        return 0.0, 0.0
    each = spec.samples / (sum(eps > 0 for eps in spec.eps) or 1)
    return each, each * _limit_to_wrong_classes(choice.candidates, classes)


def _limit_to_wrong_classes(number: int, classes: int | None) -> int:
    return number if classes is None else min(number, classes - 1)


def _count_iterates(spec: AttackSpec, classes: int | None) -> float | None:
    """Return the most iterates per example and eps; None if unknown."""
    positive = sum(eps > 0 for eps in spec.eps) or 1
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    shared = rule is not None and rule.one_gradient and spec.sweep == "independent"
    if shared and not spec.victim_queries:
        return spec.samples / positive
    steps = getattr(spec.params, "steps", None)
    if not isinstance(steps, int) or not spec.attack.counts_steps:
        return None
    restarts = getattr(spec.params, "restarts", 1)
    rounds = restarts if isinstance(restarts, int) else 1
    if rule is not None and (choice := rule.choose_targets(spec.params)) is not None:
        rounds *= _limit_to_wrong_classes(choice.number, classes)
    iterates = float(steps * rounds * spec.samples)
    return iterates / positive if spec.attack.budget == "minimum" else iterates
