"""Read the [[unions]] tables of a suite: threat models that a model must withstand together.

They change no cell. An attack counts for a threat model if it has its norm and an eps of at most
its radius, since a smaller ball lies in the larger one.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.core.contracts.types import Norm
from bench.core.validation import Validator
from bench.suite.checks import format_radius
from bench.suite.labels import ALL_THREATS


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnionThreat:
    """A ball: every perturbation of at most `eps` in `norm`."""

    norm: Norm
    eps: float
    eps_text: str
    """The radius as the suite spells it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThreatUnion:
    """Threat models of different norms, to be withstood together."""

    label: str
    threats: tuple[UnionThreat, ...]


@dataclasses.dataclass
class UnionTable:
    """A [[unions]] table as written."""

    label: str
    threats: list[Any]


@dataclasses.dataclass
class ThreatTable:
    """One entry of `threats` as written."""

    norm: Norm
    eps: float | str


def read_unions(
    check: Validator, raw: dict[str, Any], attacked: Sequence[tuple[str, str, float]] | None
) -> tuple[ThreatUnion, ...]:
    """Read all [[unions]] tables.

    Args:
        check: Collects the mistakes.
        raw: The suite as read from TOML.
        attacked: Goal, norm and eps of every attack of the suite; None if attacks have mistakes, so
            that they are not known.

    Returns:
        The unions of all tables that could be read.
    """
    unions = tuple(check.each(raw, "unions", lambda e, key: _read_union(check, e, key, attacked)))
    for label, count in Counter(union.label for union in unions).items():
        if count > 1:
            check.say("unions", f"expected each label once, got '{label}' {count} times")
    return unions


def _read_union(
    check: Validator, raw: Any, key: str, attacked: Sequence[tuple[str, str, float]] | None
) -> ThreatUnion | None:
    """Read one table; None after a mistake."""
    table: UnionTable | None = check.fill(UnionTable, raw, key)
    if table is None:
        return None
    n_problems = len(check.problems)
    if not table.label.strip():
        check.say(f"{key}.label", f"expected a name, got {table.label!r}")
    elif table.label == ALL_THREATS:
        expected = f"expected a label other than '{ALL_THREATS}', which every suite has"
        check.say(f"{key}.label", f"{expected}, got {table.label!r}")
    threats = [
        _read_threat(check, entry, f"{key}.threats[{index}]", attacked)
        for index, entry in enumerate(table.threats)
    ]
    if len(threats) < 2:
        expected = "expected at least two threat models, such as { norm = 'linf', eps = '8/255' }"
        check.say(f"{key}.threats", f"{expected}, got {len(threats)}")
    found = [threat for threat in threats if threat is not None]
    for norm, count in Counter(threat.norm for threat in found).items():
        if count > 1:
            radii = ", ".join(threat.eps_text for threat in found if threat.norm == norm)
            nested = "since the smaller ball lies in the larger one"
            check.say(f"{key}.threats", f"expected each norm once, {nested}; got {norm} at {radii}")
    if len(check.problems) == n_problems and attacked is not None:
        sides = [
            {goal for goal, norm, eps in attacked if norm == threat.norm and 0 < eps <= threat.eps}
            for threat in found
        ]
        if not set.intersection(*sides):
            check.say(f"{key}.threats", "expected attacks of one goal in every norm, got none")
    if len(check.problems) > n_problems:
        return None
    return ThreatUnion(label=table.label, threats=tuple(found))


def _read_threat(
    check: Validator, raw: Any, key: str, attacked: Sequence[tuple[str, str, float]] | None
) -> UnionThreat | None:
    """Read one threat model; None after a mistake."""
    table: ThreatTable | None = check.fill(ThreatTable, raw, key)
    eps = None if table is None else check.radius(table.eps, f"{key}.eps")
    if table is None or eps is None:
        return None
    written = format_radius(table.eps)
    if not 0 < eps < float("inf"):
        check.say(f"{key}.eps", f"expected a finite number above 0, got {written}")
        return None
    if attacked is not None:
        above = [(norm, radius) for _, norm, radius in attacked if radius > 0]
        radii = sorted(radius for norm, radius in above if norm == table.norm)
        expected = f"expected an attack of the suite in {table.norm} at an eps of at most {written}"
        if not radii:
            norms = ", ".join(dict.fromkeys(norm for norm, _ in above))
            check.say(f"{key}.norm", f"{expected}, got attacks in {norms or 'no norm'} only")
        elif radii[0] > eps:
            check.say(f"{key}.eps", f"{expected}, got {radii[0]:g} as the smallest")
    return UnionThreat(norm=table.norm, eps=eps, eps_text=written)
