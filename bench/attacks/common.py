"""Helpers of several attacks: steps, schedules, starts, the nearest example, caveats."""

from typing import Annotated, Literal, Protocol

import torch
from annotated_types import Gt, Le
from torch import Tensor, nn

from bench.core.contracts.types import Goal, Norm
from bench.core.rng import Noise, hash_uniform
from bench.engine.functional import norms, projections
from bench.engine.functional.logits import reaches_goal, widen


def reach_caveats(alpha: float, steps: int, eps: float) -> tuple[str, ...]:
    """Return the caveat of an iterative attack whose steps cannot cross its ball.

    Args:
        alpha: Step size, in the unit of eps.
        steps: Number of steps.
        eps: Radius of the ball.

    Returns:
        One sentence, or none if the steps can cross it.
    """
    if alpha * steps >= eps * (1 - 1e-6):
        return ()
    return (
        f"alpha * steps = {alpha * steps:.4g} does not reach eps = {eps:.4g}, "
        "so part of the ball is out of the attack's reach.",
    )


def anneal(first: float, last: float, k: Tensor, steps: int) -> Tensor:
    """Decrease a value along half a cosine.

    Source: Loshchilov and Hutter 2017, equation 5, https://arxiv.org/abs/1608.03983

    Args:
        first: Value at step 0.
        last: Value after `steps`.
        k: Number of steps made, (n,).
        steps: Number of steps.

    Returns:
        Value at step k, (n,).
    """
    return last + (first - last) * (1 + torch.cos(torch.pi * k / steps)) / 2


def update_nearest(
    x: Tensor, far: Tensor, fooled: Tensor, nearest: Tensor, best: Tensor
) -> tuple[Tensor, Tensor]:
    """Update the nearest adversarial iterate of a search.

    Args:
        x: Present iterates, (n, *input).
        far: Their distances from the clean images, (n,).
        fooled: Whether they are adversarial, (n,), bool.
        nearest: Distance of the nearest one before, (n,); infinite if there was none.
        best: That iterate, (n, *input).

    Returns:
        Distance (n,) and image (n, *input) of the nearest one now.
    """
    nearer = fooled & (far < nearest)
    return torch.where(nearer, far, nearest), torch.where(norms.per_row(nearer, x), x, best)


class _Search(Protocol):
    @property
    def best(self) -> Tensor: ...


def best_image(state: _Search) -> Tensor:
    """Return the nearest adversarial iterate: the `result` of a search.

    Args:
        state: State of the rows, with the field `best`.

    Returns:
        Images, (n, c, h, w).
    """
    return state.best


COARSE = 4
"""Rows and columns of the grid of a coarse random image."""


def draw_start(key: Tensor, x: Tensor, k: Tensor) -> Tensor:
    """Draw an image from which a decision-based attack may start if the model misclassifies it.

    Pixels that are independent are of one class for many models. So four kinds take turns from
    query to query: independent pixels, a grid of `COARSE` by `COARSE` areas, such a grid of black
    and white, and the clean image blended half and half with independent pixels.

    Args:
        key: Key of each row's random numbers, (n,), int64.
        x: Clean images, (n, c, h, w), in [0, 1].
        k: Number of queries that each row has made, (n,), int64.

    Returns:
        Images in the box, (n, c, h, w); a function of the row's key, image and number of queries.
    """
    u = hash_uniform(key, k, x[0].numel()).to(x.dtype).view_as(x)
    rows, columns = (
        torch.arange(size, device=x.device) * min(COARSE, size) // size for size in x.shape[2:]
    )
    coarse = u[:, :, rows][:, :, :, columns]
    turn = norms.per_row(k % 4, x)
    grid = torch.where(turn == 1, coarse, (coarse < 0.5).to(x.dtype))
    noise = torch.where(turn == 0, u, (x + u) / 2)
    return torch.where((turn == 1) | (turn == 2), grid, noise)


Start = Literal["library", "hopskipjump"]
"""Where a decision-based attack of a library starts: at an image that the library finds, or at the
image that bench's `hopskipjump` starts at on the same example."""
MOST_STARTS = 1000
"""Images that `find_start` asks about before it gives an example up."""


@torch.no_grad()
def find_start(
    model: nn.Module, x: Tensor, y: Tensor, goal: Goal, noise: Noise
) -> tuple[Tensor, Tensor]:
    """Find the image that bench's `hopskipjump` starts at, for an attack of another library.

    Args:
        model: The model, which is asked about every image that is drawn for a row.
        x: Clean images, (n, c, h, w), in [0, 1].
        y: Class to leave or to reach, (n,), int64.
        goal: Goal of the attack.
        noise: Random numbers keyed by example; those of `hopskipjump` with the same seed are used.

    Returns:
        Images (n, c, h, w) that reach the goal, and whether one was found, (n,), bool; a row
        without one has its clean image.
    """
    key, start = noise.of_attack("hopskipjump").keys(x), x.clone()
    found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for k in range(MOST_STARTS):
        left = (~found).nonzero()[:, 0]
        if not len(left):
            break
        drawn = draw_start(key[left], x[left], torch.full_like(left, k))
        won = reaches_goal(widen(model(drawn)), y[left], goal)
        start[left[won]] = drawn[won]
        found[left[won]] = True
    return start, found


def point_between(x: Tensor, far: Tensor, share: Tensor, norm: Norm) -> Tensor:
    """Return the point of a path from the clean image to another one at a share of the way.

    l2: the segment. linf: the other image, clipped to the ball of `share` times its distance.

    Args:
        x: Clean images, (n, *input).
        far: Images at the end, (n, *input).
        share: Shares, (n,); at 1 the result is `far` to the bit.
        norm: "l2" or "linf".

    Returns:
        Images, (n, *input).
    """
    if norm == "l2":
        return torch.lerp(x, far, norms.per_row(share, x).to(x.dtype))
    radius = norms.per_row(share * norms.distance(far, x, norm), x)
    clipped = torch.minimum(torch.maximum(far, x - radius), x + radius)
    return torch.where(norms.per_row(share, x) >= 1, far, clipped)


Share = Annotated[float, Gt(0), Le(1)]


def ascend(x: Tensor, gradient: Tensor, alpha: Tensor, norm: Norm, l1_share: float) -> Tensor:
    """Make a step in the steepest direction, in l1 over a share of the pixels.

    Args:
        x: Iterates, (n, *input).
        gradient: Gradients, (n, *input).
        alpha: Length of the step, (n,).
        norm: Norm of the ball.
        l1_share: Share of the entries that a step in l1 moves.

    Returns:
        Iterates after the step, not projected.
    """
    if norm == "l1":
        return x + projections.steepest_sparse_step(gradient, x, alpha, l1_share)
    return projections.step_steepest(x, gradient, alpha, norm)


PROJECTION: dict[Norm, str] = {
    "linf": "ball and box commute",
    "l2": "ball, then box",
    "l1": "nearest point of ball and box",
    "l0": "ball, then box",
}

ONE_IMAGE = "pgd"
"""The attack of `bench attack` where none is named."""
