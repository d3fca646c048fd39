"""Decide at which steps an attack on a source shows its iterates to the victim.

The victim is the judged model. The engine knows it only as a function that answers whether an image
reaches the goal there.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

AskVictim = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(index of the eps (k,), index of the example (k,), images (k, c, h, w)) -> whether each image
reaches the attack's goal on the victim, (k,), bool. A pair of eps and example occurs once."""


def choose_intervals(budget: int, steps: int, rounds: int) -> Sequence[int]:
    """Choose the number of steps between two queries in each restart.

    The budget is divided evenly among the restarts, the earlier ones taking what is left over. With
    a share of b queries for its steps, a restart shows an iterate every ceil(steps / b) steps, and
    the image that it returns: ceil(steps / ceil(steps / b)) images, at most b.

    >>> choose_intervals(50, 10, 1), choose_intervals(5, 12, 2)
    ([1], [4, 6])

    Args:
        budget: Most queries for one example at one eps, at least `rounds`.
        steps: Steps of each restart.
        rounds: Number of restarts.

    Returns:
        Steps between two queries, one number per restart.
    """
    shares = [budget // rounds + (number < budget % rounds) for number in range(rounds)]
    return [-(-steps // share) for share in shares]
