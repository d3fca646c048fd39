"""The bare loop: the passes that the attack's definition names, on the user's model, and no more.

For each eps as many forward passes with the gradient of their input as the attack has steps, then
one forward pass to count. Nothing is updated or projected, so it attacks
nothing: it is the floor under every loop that makes those passes one by one on this model.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from bench.core.rng import Noise
from bench.engine.acceleration import accelerate
from bench.workflows.speed.setup import Brought, Contestant, Run, Task, still_right
from bench.workflows.speed.workloads import Work

NAME = "bare loop"
UNKNOWN = ("apgd_t", "fab_t", "square", "autoattack")
"""Attacks whose passes depend on what they have found, or are no gradients."""


def enter(work: Work) -> Iterator[Contestant]:
    if work.attack in UNKNOWN:
        return
    told = "the attack's forward and gradient passes and nothing else: it attacks nothing"
    yield Contestant(name=NAME, prepare=partial(prepare, False), note=told)
    if work.attack == "fgsm":
        once = "the same with one gradient that serves all eps"
        yield Contestant(name="bare loop, one gradient", prepare=partial(prepare, True), note=once)
    copied = "the same passes on the copy that bench attacks"
    yield Contestant(name="bare loop on the copy", prepare=on_the_copy, note=copied)


def prepare(once: bool, task: Task) -> Run:
    """Images are as noisy as attacked ones, which cost a CPU up to a fifth more than clean ones;
    a gradient that the attack takes at the clean image is taken there."""
    ids = torch.arange(len(task.x))
    noise = Noise(0, NAME, ids, torch.zeros_like(ids)).uniform(task.x)
    noisy = (task.x + max(task.eps) * noise).clamp(0, 1)
    seen = task.x if task.steps == 1 else noisy

    def run(rows: int) -> Brought:
        for _ in range(1 if once else len(task.eps)):
            for x, y in zip(seen.split(rows), task.y.split(rows), strict=True):
                for _ in range(task.steps):
                    gradient(task.model, x, y)
        return Brought(None, [int(still_right(task.model, noisy, task.y, rows)) for _ in task.eps])

    return run


def on_the_copy(task: Task) -> Run:
    """The floor under `stop = "never"` in the layout that bench runs in."""
    copy = accelerate.accelerate_model(task.model, task.x, task.rows, fixed=True).model
    return prepare(False, replace(task, model=copy))


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One forward pass and the gradient of its summed cross-entropy with respect to x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]
