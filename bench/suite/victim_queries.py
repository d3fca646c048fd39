"""Check the budget of queries that an attack on a source has on the judged model, the victim."""

from collections.abc import Sequence
from typing import Any

from bench.core.contracts.attack import Attack, IterativeAttack
from bench.core.contracts.types import Precision, Stop
from bench.core.validation import Validator

DEFAULT_BUDGET = 50
"""What `true` stands for: `maximum_queries` in the scenarios of TransferBench.
Source: https://github.com/pralab/transfer-bench"""


def read_budget(
    check: Validator,
    key: str,
    written: Any,
    name: str,
    attack: Attack,
    *,
    params: Sequence[Any],
    has_source: bool,
    stop: Stop | None,
    precision: Precision,
) -> int:
    """Read the budget, and check that the attack can show its iterates.

    Args:
        check: Collects the mistakes.
        key: Key of the budget in the file.
        written: As written in the attack's table; None if it is not.
        name: Name of the attack.
        attack: The attack.
        params: Params of its entries; None for invalid ones.
        has_source: Whether examples are crafted on a source.
        stop: As written in the table.
        precision: Of the gradients.

    Returns:
        Most queries for one example at one eps; 0 without any, or after a mistake.
    """
    if written is None:
        return 0
    before = len(check.problems)
    budget = DEFAULT_BUDGET if written is True else written
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        expected = (
            f"expected the most queries per example, at least 1, or true for {DEFAULT_BUDGET}"
        )
        check.say(key, f"{expected}, got {_spell(written)}")
        return 0
    if not shows_iterates(attack):
        check.say(
            key,
            "expected none: only iterative attacks that follow gradients within a ball show their "
            f"iterates, got attack '{name}'",
        )
        return 0
    if not has_source:
        check.say(
            key, "expected a source beside it: only an attack on another model asks a victim; "
            "take the key out"
        )  # fmt: skip
    elif stop == "first-success":
        check.say(
            key,
            "expected stop = 'never' beside it: the victim, and not the source, ends the search; "
            "got stop = 'first-success'",
        )
    if precision == "bfloat16":
        expected = "expected float32 or tf32 beside it, since the source is not accelerated"
        check.say(key, f"{expected}, got bfloat16")
    rounds = max((count_rounds(attack, each) for each in params if each is not None), default=1)
    if budget < rounds:
        check.say(
            key,
            f"expected at least {rounds}, one query for each restart of attack '{name}' (and for "
            f"each class that it attacks towards), got {budget}",
        )
    return budget if len(check.problems) == before else 0


def _spell(value: Any) -> str:
    """Return a value as TOML spells it."""
    return str(value).lower() if isinstance(value, bool) else repr(value)


def shows_iterates(attack: Attack) -> bool:
    """Return whether an attack has iterates within its ball that a victim could be shown.

    Args:
        attack: The attack.

    Returns:
        True for a rule that follows gradients and does not search for the least distance.
    """
    follows = isinstance(attack, IterativeAttack) and attack.needs == "gradient"
    return follows and attack.budget == "fixed"


def count_rounds(attack: Attack, params: Any) -> int:
    """Count the restarts of an attack, for all classes that it attacks towards.

    Args:
        attack: An attack that shows its iterates.
        params: Its params.

    Returns:
        The most restarts for one example.
    """
    assert isinstance(attack, IterativeAttack)
    choice = attack.rule.choose_targets(params)
    return int(getattr(params, "restarts", 1)) * (1 if choice is None else choice.number)
