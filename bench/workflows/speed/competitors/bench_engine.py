"""bench itself: all eps in one stream of the engine, then one forward pass to count.

Gradients and counts come from the accelerated model; outside the timed work, the model itself
judges the images. Variants switch off early stopping, acceleration, or counting by the accelerated
model. Where a lower precision leads, the model in float32 confirms every success within the timed
work, as in a suite run.
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
from bench.engine.float32_precision import allow_tf32
from bench.evaluation import ensemble
from bench.evaluation.crafting import Examples
from bench.evaluation.judge import judge
from bench.evaluation.verify import craft_and_verify
from bench.workflows.speed.setup import Competitor, RaceTask, RunWork, WorkResult, count_correct
from bench.workflows.speed.workloads import Variant, Workload


class EngineVariant(NamedTuple):
    """How bench runs a workload."""

    name: str
    note: str
    stop: Stop = "first-success"
    sweep: Sweep = "independent"
    copied: bool = True
    precision: Precision = "float32"
    judged: bool = False
    """Whether the model itself counts within the timed work, as in a suite run."""
    confirmed: bool = False
    """Whether the model itself also attacks again what it does not confirm, as in a suite run."""


LEADS = (
    "gradients in {}; the model in float32 confirms every success, attacks again what it does not "
    "confirm, and counts; stops at the first success"
)
VARIANTS: dict[Variant, EngineVariant] = {
    "first-success": EngineVariant("bench", "stops each example at its first success"),
    "judged": EngineVariant(
        "bench, model counts", "the model itself counts, not its copy", judged=True
    ),
    "never": EngineVariant(
        "bench, every step", "makes every step, as the libraries do", stop="never"
    ),
    "nested": EngineVariant(
        "bench, nested",
        "stops at the first success and tries an eps only where the smaller one failed",
        sweep="nested",
    ),
    "plain": EngineVariant("bench, no copy", "differentiates the model itself", copied=False),
    "plain-never": EngineVariant(
        "bench, no copy, every step",
        "differentiates the model itself and makes every step",
        stop="never",
        copied=False,
    ),
    "bfloat16": EngineVariant(
        "bench, bfloat16",
        "gradients in bfloat16, counted by the model in float32; stops at the first success",
        precision="bfloat16",
        judged=True,
    ),
    "bfloat16-never": EngineVariant(
        "bench, bfloat16, every step",
        "gradients in bfloat16, counted by the model in float32",
        stop="never",
        precision="bfloat16",
        judged=True,
    ),
    "bfloat16-leads": EngineVariant(
        "bench, bfloat16 leads, float32 judges",
        LEADS.format("bfloat16"),
        precision="bfloat16",
        confirmed=True,
    ),
    "tf32-leads": EngineVariant(
        "bench, TF32 leads, float32 judges", LEADS.format("TF32"), precision="tf32", confirmed=True
    ),
}


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    for name in work.ours:
        variant = VARIANTS[name]
        plain = work.attack == "fgsm" and name == "first-success"
        yield Competitor(
            name=variant.name,
            prepare=partial(prepare, variant),
            note="" if plain else variant.note,
            needs_tf32=variant.precision == "tf32",
        )


def prepare(variant: EngineVariant, task: RaceTask) -> RunWork:
    """Prepare the work: accelerate the model and build the attack spec.

    Args:
        variant: How to run the engine.
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    spec = AttackSpec(
        name=task.work.attack,
        attack=task.attack,
        params=task.params,
        norm="linf",
        eps=task.eps,
        stop=variant.stop,
        sweep=variant.sweep,
        precision=variant.precision,
    )
    copy = task.model
    if variant.copied:
        copy = accelerate.accelerate_model(
            task.model, task.x, task.rows, variant.precision, fixed=True
        ).model
    if variant.confirmed:
        return partial(run_confirmed, task, spec, copy)
    return partial(run_engine, task, spec, copy, variant.judged)


def run_engine(
    task: RaceTask, spec: AttackSpec, copy: nn.Module, judges: bool, rows: int
) -> WorkResult:
    """Attack at every eps and count: the timed work.

    Args:
        task: Model, images and parameters.
        spec: The attack.
        copy: The accelerated model.
        judges: Count with the model itself.
        rows: Rows of a pass.

    Returns:
        Attacked images and counts.
    """
    ids = torch.arange(len(task.x), device=task.device)
    with allow_tf32(spec.precision == "tf32"):
        x_adv = attack_images(task, spec, copy, ids, rows)
    with allow_tf32(False):
        if judges:
            found = [judge(task.model, each, rows).pred for each in x_adv]
            right = [int((pred == task.y).sum()) for pred in found]
        else:
            right = [int(count_correct(copy, each, task.y, rows)) for each in x_adv]
    return WorkResult(x_adv, right)


def run_confirmed(task: RaceTask, spec: AttackSpec, copy: nn.Module, rows: int) -> WorkResult:
    """Attack as a suite run does, with the model in float32 as the judge: the timed work.

    Args:
        task: Model, images and parameters.
        spec: A rule; no ensemble.
        copy: The accelerated model, which leads.
        rows: Rows of a pass.

    Returns:
        Attacked images, and the model's own counts.
    """
    ids = torch.arange(len(task.x), device=task.device)
    found = craft_and_verify(task.model, spec, _as_examples(task, ids), rows, accelerated=copy)
    right = [int((each.pred == task.y).sum()) for each in found.predictions]
    return WorkResult(found.output.x_adv, right)


def attack_images(
    task: RaceTask, spec: AttackSpec, copy: nn.Module, ids: Tensor, rows: int
) -> Tensor:
    """Attack all images at every eps.

    Args:
        task: Model, images and parameters.
        spec: The attack.
        copy: The accelerated model.
        ids: Indices of the images, (n,).
        rows: Rows of a pass.

    Returns:
        Attacked images, (e, n, c, h, w).
    """
    if not isinstance(spec.attack, EnsembleAttack):
        return stream.run_attack(
            task.model, spec, task.x, task.y, ids, rows, accelerated=copy
        ).x_adv
    return ensemble.run_ensemble(task.model, spec, _as_examples(task, ids), rows, copy).x_adv


def _as_examples(task: RaceTask, ids: Tensor) -> Examples:
    """All images of a task, each of which is attacked."""
    unused = torch.zeros(len(ids), device=task.device)
    return Examples(ids, task.x, task.y, ids - ids - 1, task.y, unused, unused)
