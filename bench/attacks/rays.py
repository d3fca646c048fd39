"""RayS: find by labels the direction of signs along which the decision boundary is nearest in linf.

A direction is a sign for each entry; its radius is the least r at which x + r times the signs, in
the box, is adversarial. The signs of one block of entries are turned at a time: the whole image,
its halves, quarters, ... down to single entries, and from the beginning again. Only if the turned
direction is adversarial at the present radius does a binary search find its own.
Source: Chen and Gu 2020, algorithms 1 to 3, https://arxiv.org/abs/2006.12792
Differs from the paper: the first direction is the one that darkens every pixel, at a radius of 1,
where each image is a corner of the box; the binary search ends at a share of the radius, since an
absolute tolerance is too coarse for a net with small distances; it begins again after single
entries.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from bench.attacks.common import best_image, update_nearest
from bench.core.contracts.attack import IterativeAttack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import norms
from bench.engine.functional.norms import per_row


@dataclass(frozen=True, kw_only=True)
class Params:
    """Parameters of the attack."""

    steps: Count = 5000
    """Queries."""
    tolerance: Annotated[float, Gt(0), Lt(1)] = 0.01
    """Length of the interval at which the binary search ends, as a share of the radius."""
    restarts: ClassVar[int] = 1
    loss: ClassVar[Loss] = "logit-difference"


class State(NamedTuple):
    """State of the rows."""

    x: Tensor
    """The query."""
    signs: Tensor
    """The best direction, (n, d)."""
    radius: Tensor
    """Its radius, (n,); 1 while no direction is adversarial."""
    attempt: Tensor
    """The direction of the query, (n, d)."""
    blocks: Tensor
    """Blocks that the image is divided into, (n,), int64."""
    block: Tensor
    """Number of the next block to turn, (n,), int64."""
    low: Tensor
    """Radius at which the attempt is not adversarial, (n,)."""
    high: Tensor
    """Radius at which it is, (n,); infinite unless a binary search is under way."""
    nearest: Tensor
    """Distance of the nearest adversarial query, (n,); infinite if there is none."""
    best: Tensor
    """That image; x if there is none."""


def init(batch: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    """Darken every pixel.

    Args:
        batch: Images, labels and radii of the rows.
        noise: Not used.
        params: Params of the attack.
        norm: Norm of the distance.

    Returns:
        State at step 0.
    """
    signs, number = -torch.ones_like(batch.x.flatten(1)), torch.zeros_like(batch.eps)
    zero, never = torch.zeros_like(batch.k), number + torch.inf
    return State(
        _move(batch.x, signs, number + 1), signs, number + 1, signs, zero + 1, zero, number, never,
        never, batch.x,
    )  # fmt: skip


def respond(
    state: State, observed: StepInput, batch: AttackBatch, params: Params, norm: Norm
) -> State:
    """Shorten the radius of an adversarial direction, or try the next block.

    Args:
        state: State of the rows.
        observed: Labels at the queries; scores are not read.
        batch: Images, labels and radii of the rows.
        params: Params of the attack.
        norm: Norm of the distance.

    Returns:
        State after the step.
    """
    fooled = observed.fooled
    far = norms.distance(state.x, batch.x, norm)
    nearest, best = update_nearest(state.x, far, fooled, state.nearest, state.best)
    searching = state.high.isfinite()
    middle = torch.where(searching, (state.low + state.high) / 2, state.radius)
    # Where the box cuts off what the radius allows, the image is nearer than its radius.
    high = torch.where(fooled, torch.minimum(middle, far), state.high)
    low = torch.where(searching & ~fooled, middle, state.low)
    found = high.isfinite()
    settled = found & (high - low <= params.tolerance * high)
    signs = torch.where(settled[:, None], state.attempt, state.signs)
    radius = torch.where(settled, high, state.radius)
    onward = settled | ~found
    turned, blocks, block = _turn_block(signs, state.blocks, state.block)
    attempt = torch.where(onward[:, None], turned, state.attempt)
    low, high = torch.where(onward, 0.0, low), torch.where(onward, torch.inf, high)
    x = _move(batch.x, attempt, torch.where(onward, radius, (low + high) / 2))
    blocks = torch.where(onward, blocks, state.blocks)
    block = torch.where(onward, block, state.block)
    return State(x, signs, radius, attempt, blocks, block, low, high, nearest, best)


def _move(x: Tensor, signs: Tensor, radius: Tensor) -> Tensor:
    """Move x (n, *input) by the radius (n,) along signs (n, d), in the box."""
    return (x + per_row(radius, x) * signs.view_as(x)).clamp(0, 1)


def _turn_block(signs: Tensor, blocks: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Turn the signs (n, d) of one block; return them and the blocks and number of the next."""
    d = signs.shape[1]
    size = (d + blocks - 1) // blocks
    place = torch.arange(d, device=signs.device) // size[:, None]
    turned = torch.where(place == block[:, None], -signs, signs)
    last = (block + 1) * size >= d
    finer = torch.where(size > 1, 2 * blocks, 1)
    return turned, torch.where(last, finer, blocks), torch.where(last, 0, block + 1)


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    """Describe the attack for cross-checks.

    Args:
        params: Params of the attack.
        norm: Norm of the distance.
        eps: Radius of the ball.

    Returns:
        Properties by name.
    """
    return {
        "start": "every pixel darkened",
        "steps": str(params.steps),
        "tolerance": f"{params.tolerance:g} of the radius",
    }


ATTACK = IterativeAttack(
    summary="least distance by labels alone: turns the signs of blocks of the perturbation",
    source="Chen and Gu 2020",
    params=Params,
    norms=("linf",),
    goals=("untargeted",),  # as in the paper
    needs="labels",
    budget="minimum",
    anytime=True,
    rule=Rule(init=init, respond=respond, result=best_image, seeks=True),
    traits=traits,
)
