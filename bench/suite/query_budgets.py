"""Choose and check the numbers of queries at which an attack's result is reported."""

from collections.abc import Sequence
from typing import Any

from bench.core.contracts.attack import Attack, EnsembleAttack, ExternalAttack
from bench.core.contracts.types import BALLS, Norm
from bench.core.validation import Validator

QUERYING = ("scores", "labels")
"""What attacks need whose queries are counted."""
GRID = (1, 2, 5)
"""Multiples of powers of ten at which a search is recorded where no budgets are given."""
METRIC = "query_robust_accuracy"
"""The metric of `bench check` that is compared within budgets alone."""


def check_numbers(check: Validator, budgets: Sequence[int], key: str) -> None:
    """Check that budgets ascend.

    Args:
        check: Collects the mistakes.
        budgets: Numbers of queries.
        key: Their key in the file.
    """
    if list(budgets) != sorted(set(budgets)):
        check.say(key, f"expected ascending numbers of queries, each once, got {list(budgets)}")


def check_budgets(
    check: Validator,
    key: str,
    name: str,
    attack: Attack,
    norm: Norm,
    budgets: Sequence[int] | None,
    *,
    params: Sequence[Any],
    asks_other: bool,
    samples: int,
    batch_size: int | None,
) -> None:
    """Check that the queries of an attack can be counted, and that it makes as many.

    Args:
        check: Collects the mistakes.
        key: Key of the budgets in the file.
        name: Name of the attack.
        attack: The attack.
        norm: Norm, or family of images, of its threat model.
        budgets: As written in its table; None if they are not.
        params: Params of its entries; None for invalid ones.
        asks_other: Whether examples are crafted on another model than the judged one.
        samples: Passes that each step averages.
        batch_size: Rows per pass, if the table sets them.
    """
    if budgets is None:
        return
    if not budgets:
        check.say(key, "expected at least one number of queries, got an empty list")
    check_numbers(check, budgets, key)
    if attack.unavailable:  # what an attack asks is known to its library, which is not installed
        return
    if norm not in BALLS:
        check.say(
            key,
            f"queries are counted for threat models in a norm alone, and '{norm}' is a family of "
            "images; take the key out",
        )
    elif not asks(attack, norm):
        check.say(
            key,
            f"attack '{name}' does not search by the model's scores or labels, so its queries are "
            "not counted; take the key out",
        )
    elif asks_other:
        check.say(key, "an attack with a source asks the judged model nothing; take the key out")
    elif samples > 1:
        check.say(f"{key}", f"expected samples = 1 beside budgets, got {samples}")
    elif isinstance(attack, ExternalAttack) and batch_size != 1:
        got = "none" if batch_size is None else batch_size
        check.say(
            key,
            "expected batch_size = 1 beside budgets, since the queries of an attack with a loop of "
            f"its own can be counted on one example at a time only, got {got}",
        )
    for most in {count_queries(attack, each) for each in params if each is not None}:
        if most is not None and budgets and max(budgets) > most:
            check.say(
                key,
                f"expected at most {most}, the queries of attack '{name}' (params.steps), got "
                f"{max(budgets)}",
            )


def asks(attack: Attack, norm: Norm) -> bool:
    """Return whether an attack asks the model for scores or labels, so that its queries count.

    Args:
        attack: The attack.
        norm: Norm, or family of images, of its threat model.

    Returns:
        False for an attack with gradients, for an ensemble, and for a family of images: whether a
        query lies in it can be told only from parameters, which a query does not have.
    """
    return norm in BALLS and attack.needs in QUERYING and not isinstance(attack, EnsembleAttack)


def count_queries(attack: Attack, params: Any) -> int | None:
    """Count the most queries that an attack makes for one example.

    Args:
        attack: The attack.
        params: Its params.

    Returns:
        The number; None if it is unknown, as of an attack with a loop of its own.
    """
    steps = getattr(params, "steps", None)
    if isinstance(attack, ExternalAttack) or not isinstance(steps, int):
        return None
    return steps * int(getattr(params, "restarts", 1))


def choose_budgets(
    given: Sequence[int] | None,
    default: Sequence[int],
    attack: Attack,
    norm: Norm,
    params: Any,
    batch_size: int | None,
) -> tuple[int, ...]:
    """Choose the budgets of one entry.

    Args:
        given: As written in the attack's table; None if they are not.
        default: Those of the suite.
        attack: The attack.
        norm: Norm, or family of images, of its threat model.
        params: Its params.
        batch_size: Rows per pass, if the table sets them.

    Returns:
        The table's own; else those of the suite that the attack reaches, if its queries are
        counted.
    """
    if given is not None:
        return tuple(given)
    if not asks(attack, norm) or (isinstance(attack, ExternalAttack) and batch_size != 1):
        return ()
    most = count_queries(attack, params)
    return tuple(budget for budget in default if most is None or budget <= most)


def list_recorded(
    budgets: Sequence[int], attack: Attack, norm: Norm, params: Any
) -> tuple[int, ...]:
    """List the numbers of queries at which the least distance of a search is recorded.

    Args:
        budgets: Those of the entry.
        attack: The attack.
        norm: Norm, or family of images, of its threat model.
        params: Its params.

    Returns:
        The entry's budgets; if it has none, 10, 20, 50, 100, ... and the number of steps. Empty for
        an attack that is no search, or whose queries are not counted.
    """
    if attack.budget != "minimum" or not asks(attack, norm):
        return ()
    most = count_queries(attack, params)
    if budgets or most is None:
        return tuple(budgets)
    grid = {base * 10**power for power in range(1, len(str(most))) for base in GRID}
    return tuple(sorted({budget for budget in grid if budget < most} | {most}))
