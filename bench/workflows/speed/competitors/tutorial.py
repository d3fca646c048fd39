"""The loop of PyTorch's FGSM tutorial: eps by eps, one image at a time.

Source: https://docs.pytorch.org/tutorials/beginner/fgsm_tutorial.html
Differs from the source: cross-entropy on logits in place of the likelihood of log-probabilities.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bench.workflows.speed.setup import Competitor, RaceTask, RunWork, WorkResult
from bench.workflows.speed.workloads import Workload

IMAGES = 100
"""Number of images that it runs on; its seconds are scaled up."""


def list_variants(work: Workload) -> Iterator[Competitor]:
    """List the ways in which this competitor runs a workload.

    Args:
        work: The workload.

    Yields:
        Competitors; one that cannot run the workload says why.
    """
    if work.attack == "fgsm":
        yield Competitor(
            name="tutorial loop",
            prepare=prepare,
            note="one image at a time, the parameters' gradients computed too, as published; "
            f"extrapolated: run on the first {IMAGES} images at most, its seconds scaled up",
            rows=1,
            share=lambda task: min(1.0, IMAGES / len(task.x)),
        )


def prepare(task: RaceTask) -> RunWork:
    """Prepare the work; see `Competitor.prepare`.

    Args:
        task: Model, images and parameters.

    Returns:
        The work to be timed.
    """
    images = task.x[:IMAGES]
    pairs = TensorDataset(images, task.y[:IMAGES])

    def run(rows: int) -> WorkResult:
        x_adv = images.expand(len(task.eps), *images.shape).clone()
        right = [0] * len(task.eps)
        task.model.requires_grad_(True)
        try:
            for index, eps in enumerate(task.eps):
                for at, (data, target) in enumerate(DataLoader(pairs, batch_size=1)):
                    x_adv[index, at], correct = _one(task.model, data, target, eps)
                    right[index] += int(correct)
        finally:
            task.model.zero_grad(set_to_none=True)
            task.model.requires_grad_(False)
        return WorkResult(x_adv, right)

    return run


def _one(model: nn.Module, data: Tensor, target: Tensor, eps: float) -> tuple[Tensor, bool]:
    """Attack one image (1, c, h, w) of class `target` (1,); return it and whether it is correct."""
    data = data.clone().requires_grad_()
    with torch.enable_grad():
        output = model(data)
        if output.argmax(1).item() != target.item():
            return data.detach()[0], False
        loss = nn.functional.cross_entropy(output, target)
        model.zero_grad()
        loss.backward()
        assert data.grad is not None
        data = (data + eps * data.grad.sign()).clamp(0, 1).detach()
        output = model(data)
    return data[0], output.argmax(1).item() == target.item()
