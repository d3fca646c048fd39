"""FAB-T: steps onto the linearised boundary to one wrong class after another, drawn towards x.

At an iterate x_k the difference of logits z_target - z_label is taken for linear: its zeros are a
hyperplane. d1 and d2 are the shortest steps in the box onto it, from x_k and from the image x; with
a = min(||d1|| / (||d1|| + ||d2||), alpha_max), eta going a little beyond the boundary,
x_{k+1} = clip((1 - a) (x_k + eta d1) + a (x + eta d2)). An adversarial iterate is kept if it is the
nearest so far, and pulled back to x + beta (x_k - x). The wrong classes are those likeliest on the
clean image; any of them is a success. A further restart begins at random, half as far as the
nearest find.
Source: Croce and Hein 2020, algorithm 1, https://arxiv.org/abs/1907.02044; towards one class at a
time as in section 4 of https://arxiv.org/abs/2003.01690
Differs from the paper: its authors' code looks at every iterate twice, to judge it and, pulled
back, to linearise there; here one pass does both. A point pulled back from a find that came at
least 1 % nearer is looked at, and if adversarial is kept and pulled back again; from any other
adversarial iterate the step begins at the point pulled back and takes the hyperplane of the
iterate, which lies nearer to the boundary. The first of the `steps` looks is at x. There is no
final search, as in that code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from bench.attacks.common import update_nearest
from bench.core.contracts.attack import Attack
from bench.core.contracts.parameters import Count
from bench.core.contracts.rule import AttackBatch, Rule, StepInput
from bench.core.contracts.types import Loss, Norm
from bench.core.rng import Noise
from bench.engine.functional import hyperplane, norms
from bench.engine.functional.norms import per_row

TINY = 1e-8
"""Least length of a step when two are compared, so that 0 over 0 is one half."""
WORTH = 0.99
"""The share of the least distance within which a find earns a look at the point pulled back."""


@dataclass(frozen=True, kw_only=True)
class Params:
    steps: Count = 100
    """Looks for each class, a pass forward and back each; 150 are as many passes as 100 iterations
    of the authors' code."""
    targets: Count = 9
    restarts: Count = 1
    """Runs towards each class; all but the first from a random point."""
    alpha_max: Annotated[float, Ge(0), Le(1)] = 0.1
    """Largest weight of the way from x itself."""
    eta: Annotated[float, Ge(1)] = 1.05
    """Length of a step over that of the one onto the hyperplane."""
    beta: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share of its distance at which an adversarial iterate is left."""
    loss: ClassVar[Loss] = "label-and-target"


class State(NamedTuple):
    x: Tensor
    nearest: Tensor
    """Distance of the nearest adversarial iterate so far, (n,); infinite if there is none."""
    best: Tensor
    """That iterate; x if there is none."""


def init(items: AttackBatch, noise: Noise, params: Params, norm: Norm) -> State:
    x, nothing = items.x, torch.full_like(items.eps, torch.inf)
    if params.restarts > 1:
        again = per_row(items.restart > 0, x)
        x = torch.where(again, _random_start(items, noise, norm), x)
    return State(x, nothing, items.x)


def _random_start(items: AttackBatch, noise: Noise, norm: Norm) -> Tensor:
    """A point in a random direction, half as far as what was found, or as the radius if that is
    less; as the most distant image if neither is finite."""
    draw = noise.uniform(items.x) if norm == "linf" else noise.normal(items.x)
    corner = torch.maximum(items.x, 1 - items.x)
    radius = torch.minimum(items.eps, items.nearest)
    radius = torch.minimum(radius, norms.norm_of(corner, norm))
    scale = radius / 2 / norms.norm_of(draw, norm)
    return (items.x + per_row(scale, draw) * draw).clamp(0, 1)


def respond(state: State, seen: StepInput, items: AttackBatch, params: Params, norm: Norm) -> State:
    x = state.x
    far = norms.distance(x, items.x, norm)
    nearest, best = update_nearest(x, far, seen.fooled, state.nearest, state.best)
    gained = seen.fooled & (far < WORTH * state.nearest)
    pulled = items.x + params.beta * (x - items.x)
    start = torch.where(per_row(seen.fooled, x), pulled, x)

    own = _onto_boundary(start, x, seen, norm)
    clean = _onto_boundary(items.x, x, seen, norm)
    lengths = [norms.norm_of(step, norm).clamp_min(TINY) for step in (own, clean)]
    alpha = per_row((lengths[0] / (lengths[0] + lengths[1])).clamp_max(params.alpha_max), x)
    ahead = (1 - alpha) * (start + params.eta * own) + alpha * (items.x + params.eta * clean)
    return State(torch.where(per_row(gained, x), pulled, ahead).clamp(0, 1), nearest, best)


def _onto_boundary(point: Tensor, x: Tensor, seen: StepInput, norm: Norm) -> Tensor:
    """The shortest step from a point onto the boundary, as linearised at the iterate `x`."""
    lead = seen.loss + (seen.gradient * (point - x)).flatten(1).sum(1)
    return hyperplane.shortest_step(point, seen.gradient, -lead, norm)


def result(state: State) -> Tensor:
    return state.best


def aims(params: Params) -> int:
    return params.targets


def traits(params: Params, norm: Norm, eps: float) -> Mapping[str, str]:
    return {
        "start": "clean" if params.restarts == 1 else "clean, then random",
        "steps": str(params.steps),
        "targets": str(params.targets),
        "restarts": str(params.restarts),
        "alpha_max": f"{params.alpha_max:g}",
        "eta": f"{params.eta:g}",
        "beta": f"{params.beta:g}",
        "loss": params.loss,
        "projection": "nearest point of hyperplane and box",
    }


ATTACK = Attack(
    summary="least distance: onto the linearised boundary to each of the likeliest wrong classes",
    source="Croce and Hein 2020",
    params=Params,
    norms=("linf", "l2", "l1"),
    goals=("untargeted",),
    budget="minimum",
    rule=Rule(init=init, respond=respond, result=result, seeks=True, aims=aims),
    traits=traits,
)
