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
    matches = find_named_classes(target, names)
    if len(matches) > 1:  # ImageNet has two cranes
        both = " and ".join(map(str, matches))
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' names the classes {both}; give the index"
        )
    index = int(target) if str(target).isdecimal() else -1
    index = matches[0] if matches else index
    if not 0 <= index < classes:
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' is no class; expected an index below "
            f"{classes} or a class name; {nearest(str(target), [*TARGET_RULES, *names])}"
        )
    return index


def find_named_classes(target: str | int | None, names: Sequence[str]) -> list[int]:
    """Find the classes that a target names.

    Args:
        target: As the entry has it. A number is an index also where classes are named by numbers.
        names: Names of the data's classes in index order; may be empty.

    Returns:
        Their indices; empty of a number, a rule or no name.
    """
    if not isinstance(target, str) or target in TARGET_RULES:
        return []
    return [k for k, name in enumerate(names) if name.casefold() == target.casefold()]
