"""One file per attack, each ending in an ATTACK record; a library enters through one adapter file.

An attack ascends a loss and knows nothing of files, timing, normalisation or devices. The engine
drives its rule; the harness verifies and judges what it returns.
"""

from bench.contracts import Norm


def reach(alpha: float, steps: int, eps: float) -> tuple[str, ...]:
    """The caveat of an iterative attack whose steps cannot cross its ball; empty if they can."""
    if alpha * steps >= eps * (1 - 1e-6):
        return ()
    return (
        f"alpha * steps = {alpha * steps:.4g} does not reach eps = {eps:.4g}, "
        "so part of the ball is out of the attack's reach.",
    )


PROJECTION: dict[Norm, str] = {
    "linf": "ball and box commute",
    "l2": "ball, then box",
    "l1": "ball, then box",
    "l0": "ball, then box",
}

ONE_IMAGE = "raw_gradient"
"""The attack of `bench attack` where none is named."""
