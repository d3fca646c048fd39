"""Versions of bench's own numerics, part of the identity of every stored result.

Moving or rewording code must not invalidate a result, and changed outcomes must. So identities
contain these numbers in place of a hash of the source. `tests/golden` fails when outcomes change
and no version was raised. What changes one attack or model alone raises the `version` of that one.
"""

NUMERICS_VERSION: int = 1
"""Raise it when a change to the engine, norms, projections, losses, crafting or random numbers
changes outcomes of more than one attack: no finished cell is taken for current afterwards."""

JUDGE_VERSION: int = 1
"""Raise it when predictions, the check of returned images or what is recorded of them change."""

CERTIFICATION_VERSION: int = 1
"""Raise it when certified bounds, or what follows from them, change."""
