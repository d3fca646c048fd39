"""bench itself: the engine over all eps in one stream, then one forward pass to count.

It differentiates a copy of the model that was prepared for speed and counts with it, too; whether
the model itself would have counted the same is what the judge says, outside the timed work. Each
idea can be taken away: the stop, the copy, the copy's say in counting.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.attack import AttackSpec, EnsembleAttack
from bench.core.contracts.types import Precision, Stop, Sweep
from bench.engine import stream
from bench.engine.acceleration import accelerate
from bench.engine.model_state import allow_tf32
from bench.evaluation import ensemble
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import judge
from bench.workflows.speed.setup import Brought, Contestant, Run, Task, still_right
from bench.workflows.speed.workloads import Variant, Work


class Way(NamedTuple):
    """How bench runs a work."""

    name: str
    note: str
    stop: Stop = "first-success"
    sweep: Sweep = "independent"
    copied: bool = True
    precision: Precision = "float32"
    judged: bool = False
    """Whether the model itself counts within the timed work, as in every bench run."""


WAYS: dict[Variant, Way] = {
    "first-success": Way("bench", "stops each example at its first success"),
    "judged": Way("bench, model counts", "the model itself counts, not its copy", judged=True),
    "never": Way("bench, every step", "makes every step, as the libraries do", stop="never"),
    "nested": Way(
        "bench, nested",
        "stops at the first success and tries an eps only where the smaller one failed",
        sweep="nested",
    ),
    "plain": Way("bench, no copy", "differentiates the model itself", copied=False),
    "plain-never": Way(
        "bench, no copy, every step",
        "differentiates the model itself and makes every step",
        stop="never",
        copied=False,
    ),
    "bfloat16": Way(
        "bench, bfloat16",
        "gradients in bfloat16, counted by the model in float32; stops at the first success",
        precision="bfloat16",
        judged=True,
    ),
    "bfloat16-never": Way(
        "bench, bfloat16, every step",
        "gradients in bfloat16, counted by the model in float32",
        stop="never",
        precision="bfloat16",
        judged=True,
    ),
}


def enter(work: Work) -> Iterator[Contestant]:
    for variant in work.ours:
        way = WAYS[variant]
        plain = work.attack == "fgsm" and variant == "first-success"
        yield Contestant(
            name=way.name, prepare=partial(prepare, way), note="" if plain else way.note
        )


def prepare(way: Way, task: Task) -> Run:
    curve = AttackSpec(
        name=task.work.attack,
        attack=task.attack,
        params=task.params,
        norm="linf",
        eps=task.eps,
        stop=way.stop,
        sweep=way.sweep,
        precision=way.precision,
    )
    copy = task.model
    if way.copied:
        copy = accelerate.accelerate_model(
            task.model, task.x, task.rows, way.precision, fixed=True
        ).model
    return partial(run, task, curve, copy, way.judged)


def run(task: Task, curve: AttackSpec, copy: nn.Module, judges: bool, rows: int) -> Brought:
    """The timed work: attack at every eps, then ask about what came out."""
    ids = torch.arange(len(task.x), device=task.device)
    x_adv = attacked(task, curve, copy, ids, rows)
    with allow_tf32(False):
        if judges:
            found = [judge(task.model, each, rows).pred for each in x_adv]
            right = [int((pred == task.y).sum()) for pred in found]
        else:
            right = [int(still_right(copy, each, task.y, rows)) for each in x_adv]
    return Brought(x_adv, right)


def attacked(task: Task, curve: AttackSpec, copy: nn.Module, ids: Tensor, rows: int) -> Tensor:
    """What the attack makes of the images at every eps, (e, n, c, h, w)."""
    if not isinstance(curve.attack, EnsembleAttack):
        return stream.run_attack(
            task.model, curve, task.x, task.y, ids, rows, accelerated=copy
        ).x_adv
    unused = torch.zeros(len(ids), device=task.device)
    chosen = Examples(ids, task.x, task.y, ids - ids - 1, task.y, unused, unused)
    return ensemble.run_ensemble(task.model, curve, chosen, rows, copy).x_adv
