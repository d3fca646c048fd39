"""Resolve `skip_certified`: which attacks leave out the examples that a certificate proves robust.

Certificates by bound propagation hold for every image of a ball, so that no attack within it can
succeed. Those of randomised smoothing are of another classifier, and are not used. A certificate at
one eps says of the least distance only that it is larger: a search for it needs every example.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from bench.core.contracts.types import BoundMethod, Norm
from bench.core.validation import Validator
from bench.suite.attack_tables import ExpandedTable
from bench.suite.schema import AttackEntry, CertificateEntry

_CERTIFIABLE = ("linf", "l2")


def resolve_skips(
    check: Validator,
    tables: Sequence[ExpandedTable],
    certify: Sequence[CertificateEntry],
    *,
    default: bool,
) -> list[AttackEntry]:
    """Set the methods whose certified examples each attack leaves out.

    Args:
        check: Collects the mistakes: an attack asks for it to which no certificate of the suite
            applies, or the suite does and there is no attack that one applies to.
        tables: The expanded [[attacks]] tables.
        certify: The entries of `certify`.
        default: The value at the top of the suite, which holds for those attacks that certificates
            apply to, unless their tables say otherwise.

    Returns:
        The entries of all tables, in their order.
    """
    methods: dict[Norm, tuple[BoundMethod, ...]] = {}
    for entry in certify:
        if entry.method != "smoothing":
            methods[entry.norm] = (*methods.get(entry.norm, ()), entry.method)
    resolved: list[AttackEntry] = []
    for index, table in enumerate(tables):
        problems = [_find_problem(entry, methods) for entry in table.entries]
        problem = next(filter(None, problems), "")
        if table.skip_certified and problem:
            check.say(f"attacks[{index}].skip_certified", problem)
        asked = default if table.skip_certified is None else table.skip_certified
        applies = asked and not problem
        resolved += [
            dataclasses.replace(entry, skip_certified=methods[entry.norm]) if applies else entry
            for entry in table.entries
        ]
    complete = all(len(table.entries) == len(table.labels) for table in tables)
    if default and complete and resolved and not any(each.skip_certified for each in resolved):
        expected = "expected an attack of fixed budget in a norm that `certify` bounds the model in"
        why = _find_problem(resolved[0], methods) or "every attack's table says false"
        check.say("skip_certified", f"{expected}, got none ({resolved[0].label}: {why})")
    return resolved


def _find_problem(entry: AttackEntry, methods: Mapping[Norm, tuple[BoundMethod, ...]]) -> str:
    """Say why no certificate of the suite spares an attack an example; "" if one may."""
    if entry.norm not in _CERTIFIABLE:
        return (
            "certificates are of L-inf and L2 balls alone, and the attack's threat model is "
            f"'{entry.norm}'; take the key out"
        )
    if entry.attack.budget == "minimum":
        return (
            f"attack '{entry.name}' searches for the least distance, of which a certificate at one "
            "eps says only that it is larger; take the key out"
        )
    if entry.norm not in methods:
        example = '{ method = "crown", norm = "l2" }' if entry.norm == "l2" else '"crown"'
        return (
            f"expected bounds in {entry.norm} in `certify`, whose certified examples are left "
            f"out, got none; add certify = [{example}] or take the key out"
        )
    return ""
