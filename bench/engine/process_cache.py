"""Keep what was found out about models for later calls in the same process.

A fact is a plain value that belongs to the fingerprint of a model, so that another model with the
same weights and code shares it, and a model whose weights were changed has none. Facts refer to no
model: the cache keeps none alive.
"""

from collections import OrderedDict
from typing import Any

MOST_FACTS = 256
"""Facts that are kept; the one that was not asked for the longest is dropped first."""

_facts: OrderedDict[tuple[Any, ...], Any] = OrderedDict()


def recall(fingerprint: str, *key: Any) -> Any:
    """Look up a fact.

    Args:
        fingerprint: Of the model, as it is now.
        key: What was found out, and under which settings; hashable values.

    Returns:
        The fact; None if there is none.
    """
    fact = _facts.pop((fingerprint, *key), None)
    if fact is not None:
        _facts[fingerprint, *key] = fact  # at the end again
    return fact


def store(fact: Any, fingerprint: str, *key: Any) -> None:
    """Keep a fact.

    Args:
        fact: A value that refers to no model and is not written to.
        fingerprint: Of the model; nothing is kept of a model without one.
        key: As in `recall`.
    """
    if not fingerprint:
        return
    _facts.pop((fingerprint, *key), None)
    _facts[fingerprint, *key] = fact
    while len(_facts) > MOST_FACTS:
        _facts.popitem(last=False)


def clear() -> None:
    """Forget all facts."""
    _facts.clear()
