"""Resolve the target of a targeted attack to a class or a rule."""

from collections.abc import Sequence

from bench.core.errors import SuiteError, nearest
from bench.suite.schema import TARGET_RULES, AttackEntry


def resolve_target(entry: AttackEntry, classes: int, names: Sequence[str]) -> int | str:
    """Resolve the target of a targeted attack.

    Args:
        entry: The attack's entry, which has a target.
        classes: Number of classes of the model.
        names: Names of the data's classes in index order; may be empty.

    Returns:
        The class index, or one of TARGET_RULES.

    Raises:
        SuiteError: There is no such class, or several have that name.
    """
    target = entry.target
    assert target is not None
    if isinstance(target, str) and target in TARGET_RULES:
        return target
    matches = [k for k, name in enumerate(names) if name.casefold() == str(target).casefold()]
    if len(matches) > 1:  # ImageNet has two cranes
        both = " and ".join(map(str, matches))
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' names the classes {both}; give the index"
        )
    if matches:
        return matches[0]
    index = int(target) if str(target).isdecimal() else -1
    if not 0 <= index < classes:
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' is no class; expected an index below "
            f"{classes} or a class name; {nearest(str(target), [*TARGET_RULES, *names])}"
        )
    return index
