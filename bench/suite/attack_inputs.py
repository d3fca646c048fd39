"""Read norm and radii as Python code states them: numbers of any type, or an attack object's."""

from collections.abc import Iterable
from fractions import Fraction
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from bench.attacks.objects import AttackObject
from bench.core.contracts.types import Norm
from bench.core.errors import SuiteError

DEFAULT_EPS = 0.1
TOLERANCE = 1e-6
"""Relative difference between equal radii, one of which was stored in single precision."""


def choose_threat(
    attack: AttackObject | None, model: Any, norm: Norm | None, eps: Any
) -> dict[str, Any]:
    """Choose norm and radii of an evaluation.

    Args:
        attack: The attack object; None if the attack was named.
        model: The model that examples are crafted on.
        norm: As asked for; the object's own, or L-inf, if None.
        eps: As asked for; the object's own, or `DEFAULT_EPS`, if None.

    Returns:
        The keys `norm` and `eps` of an [[attacks]] table.

    Raises:
        SuiteError: The object was made for another radius or model, or a radius is no number.
    """
    own = attack.eps if attack else None
    radii = list_radii((DEFAULT_EPS if own is None else own) if eps is None else eps)
    if attack is not None and attack.model is not None and attack.model is not model:
        raise SuiteError(
            f"attack '{attack.name}': expected an object that was made for the model evaluated "
            f"(or its source), got one for another {type(attack.model).__name__}"
        )
    for radius in radii if own is not None else ():
        if not _equals(radius, own):
            raise SuiteError(
                f"attack '{attack.name if attack else ''}': expected the eps that the object was "
                f"made with, {own:.6g}, got {radius}; make the object with eps={radius}, or leave "
                "eps out"
            )
    return {"norm": norm or (attack.norm if attack else None) or "linf", "eps": radii}


def _equals(radius: float | str, own: float | None) -> bool:
    try:
        value = float(Fraction(radius)) if isinstance(radius, str) else radius
    except (ValueError, ZeroDivisionError):  # the check of the table names the mistake
        return True
    return own is not None and abs(value - own) <= TOLERANCE * abs(own)


def list_radii(eps: Any) -> list[float | str]:
    """List radii.

    Numbers of single and half precision mean their shortest decimal: `np.float32(0.1)` is 0.1.

    >>> import numpy as np
    >>> list_radii(np.float32(0.1)), list_radii(["8/255", np.array(0.5)])
    ([0.1], ['8/255', 0.5])

    Args:
        eps: Text, a number of Python, NumPy or PyTorch, or several of them in a sequence or array.

    Returns:
        Numbers, or texts as they are.

    Raises:
        SuiteError: There is something else among them.
    """
    if isinstance(eps, Tensor):
        eps = (eps.detach().cpu().float() if eps.element_size() < 4 else eps.detach().cpu()).numpy()
    if isinstance(eps, np.ndarray):
        eps = list(eps.ravel()) if eps.ndim else eps[()]
    if isinstance(eps, str | bytes | Real | np.generic) or not isinstance(eps, Iterable):
        return [_read_radius(eps)]
    return [radius for each in eps for radius in list_radii(each)]


def _read_radius(value: Any) -> float | str:
    """Convert one radius."""
    if isinstance(value, str):
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, np.floating):
        return float(str(value))
    try:
        if isinstance(value, bool | np.bool_ | bytes):
            raise TypeError
        return value if isinstance(value, int) else float(value)
    except (TypeError, ValueError):
        raise SuiteError(
            f"eps: expected numbers or fractions such as '8/255', got {value!r}"
        ) from None
