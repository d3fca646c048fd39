"""Types of attack parameters: lengths, counts and step sizes, checked when a suite is read."""

import re
from typing import Annotated, TypeVar

from annotated_types import Ge
from pydantic import AfterValidator, BeforeValidator
from torch import Tensor

from bench.core.validation import parse_fraction

Real = TypeVar("Real", float, Tensor)
_EPS_SHARE = re.compile(r"(?:(?P<times>[\d.eE+-]+)\s*\*\s*)?eps(?:\s*/\s*(?P<over>steps|[\d.]+))?")


def _parse_length(written: object) -> object:
    """Convert text such as "8/255" to a number; leave other values to pydantic."""
    try:
        return parse_fraction(written) if isinstance(written, str) else written
    except ValueError:
        raise ValueError("expected a number or a fraction such as '8/255'") from None


Length = Annotated[float, BeforeValidator(_parse_length)]
"""A length in pixels of [0, 1], written as a number or a fraction."""


def step_size(alpha: float | str, eps: Real, steps: int) -> Real:
    """Compute the absolute step size from a number, a fraction or a share of eps.

    >>> step_size(0.01, 0.3, 40), step_size("eps/10", 0.3, 40), step_size("2.5*eps/steps", 2.0, 50)
    (0.01, 0.03, 0.1)
    >>> step_size("2/255", 0.3, 40) == 2 / 255
    True

    Args:
        alpha: A number, a fraction such as "2/255", "[number*]eps[/number]" or
            "[number*]eps[/steps]".
        eps: Radius of the ball, in pixels of [0, 1]; a float or a tensor (n,).
        steps: Number of steps of the attack.

    Returns:
        Step size in the unit and the shape of `eps`.

    Raises:
        ValueError: `alpha` is text of none of these forms.
    """
    match = _EPS_SHARE.fullmatch(alpha.strip()) if isinstance(alpha, str) else None
    if match is None:
        try:
            return eps * 0.0 + parse_fraction(alpha)
        except ValueError:
            raise ValueError(
                "expected a number, a fraction such as '2/255' or a share of eps such as 'eps/10' "
                "or '2.5*eps/steps'"
            ) from None
    over = match["over"]
    divisor = float(steps) if over == "steps" else float(over or 1)
    return eps * float(match["times"] or 1) / divisor


def _check_step_size(alpha: float | str) -> float | str:
    """Refuse a step size that is not above 0; convert a fraction to a number."""
    if not step_size(alpha, 1.0, 1) > 0:  # written so that NaN is refused, too
        raise ValueError("expected a step size above 0")
    share = isinstance(alpha, str) and _EPS_SHARE.fullmatch(alpha.strip())
    return alpha if share else parse_fraction(alpha)


Alpha = Annotated[float | str, AfterValidator(_check_step_size)]
"""A step size as `step_size` reads it."""
Count = Annotated[int, Ge(1)]
"""A whole number of at least 1."""
UNLESS_DEFAULT = "unless default"
"""Key of a field's metadata: True if identities contain the parameter only where it is not at its
default, so that a parameter that is added changes no identity."""
