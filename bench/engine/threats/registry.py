"""Find a family of images by its name, and say what a level means."""

import importlib

from bench.core.contracts.threat import ThreatFamily
from bench.core.contracts.types import BALLS


def find_threat(name: str) -> ThreatFamily:
    """Find a family.

    Args:
        name: A `norm` that is none of BALLS.

    Returns:
        Its record.
    """
    module = importlib.import_module(f"bench.engine.threats.{name.replace('-', '_')}")
    threat: ThreatFamily = module.THREAT
    return threat


def find_level_problem(norm: str, eps: float) -> str:
    """Check an eps of a suite against the threat model.

    Args:
        norm: A norm or the name of a family.
        eps: A finite number or infinity.

    Returns:
        What was expected; "" if the eps is allowed.
    """
    if norm not in BALLS:
        return "" if eps == 0 else find_threat(norm).find_level_problem(eps)
    most = 1.0 if norm == "linf" else float("inf")
    if 0 <= eps <= most and eps != float("inf"):
        return ""
    if norm != "linf":
        return f"expected an eps at least 0 for {norm}"
    scale = f" ('{eps:g}/255' is {eps:g} of 255 grey levels)" if 1 < eps <= 255 else ""
    return f"expected an eps in [0, 1] for linf{scale}"
