"""Standard training by a recipe: data on the device as tensors, validation held out, best kept.

Reproducible from the recipe's seed on one device: initialisation and dropout draw from global
generators forked and seeded for this run, the order of images from a keyed permutation per epoch.
"""

import copy
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench import registry, rng
from bench.contracts import Data
from bench.errors import SuiteError, nearest
from bench.training.recipe import Part, Recipe


class Epoch(NamedTuple):
    """What one epoch gave; losses are means per image, accuracies counts over n."""

    epoch: int
    lr: float
    train_loss: float
    train_correct: int
    train_n: int
    validation_loss: float
    validation_correct: int
    validation_n: int
    seconds: float


class Trained(NamedTuple):
    """The model of the best validation epoch and how it came about."""

    model: nn.Module
    best: Epoch
    history: list[Epoch]


def train(
    recipe: Recipe,
    data_dir: Path,
    device: torch.device,
    listen: Callable[[Epoch], None] = lambda epoch: None,
) -> Trained:
    """Train by `recipe` and return the weights of the epoch with the least validation errors
    (of those, the least validation loss). `listen` hears of every epoch."""
    dataset = registry.find("datasets", recipe.data.name)
    data: Data = dataset.load(split="train", limit=None, data_dir=data_dir, **recipe.data.params)
    assert data.labels is not None
    if recipe.validation >= data.n:
        raise SuiteError(
            f"recipe '{recipe.name}': validation: expected fewer than the {data.n} training "
            f"images of {data.name}, got {recipe.validation}"
        )
    order = rng.shuffled(recipe.seed, "validation split", data.n)
    x, y = data.read(0, data.n).to(device), data.labels.to(device)
    held_out, kept = order[: recipe.validation], order[recipe.validation :]
    validation = x[held_out], y[held_out]
    with rng.seeded(recipe.seed, "training", recipe.name):
        model = registry.find("models", recipe.model.name).build(**recipe.model.params).to(device)
        optimiser = _made(torch.optim, recipe.optimiser, "optimiser", model.parameters())
        schedule: Any = None
        if recipe.schedule is not None:
            schedule = _made(torch.optim.lr_scheduler, recipe.schedule, "schedule", optimiser)
        history: list[Epoch] = []
        best_state, best = None, None
        for number in range(1, recipe.epochs + 1):
            started = time.perf_counter()
            shuffle = kept[rng.shuffled(recipe.seed, f"epoch {number}", len(kept))]
            loss, correct = _one_epoch(model, optimiser, x, y, shuffle, recipe.batch_size)
            lr = optimiser.param_groups[0]["lr"]
            held_loss, held_correct = assess(model, *validation)
            if isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
                schedule.step(held_loss)
            elif schedule is not None:
                schedule.step()
            seconds = time.perf_counter() - started
            epoch = Epoch(
                number, lr, loss, correct, len(kept),
                held_loss, held_correct, len(held_out), seconds,
            )  # fmt: skip
            history.append(epoch)
            listen(epoch)
            if best is None or _rank(epoch) > _rank(best):
                best, best_state = epoch, copy.deepcopy(model.state_dict())
    assert best is not None
    assert best_state is not None
    model.load_state_dict(best_state)
    return Trained(model.eval(), best, history)


def _made(module: ModuleType, part: Part, what: str, on: Any) -> Any:
    """The optimiser or schedule that a recipe names, with its parameters."""
    known = [name for name in vars(module) if name[0].isupper()]
    if part.name not in known:
        raise SuiteError(f"{what} '{part.name}' is unknown; {nearest(part.name, known)}")
    try:
        return getattr(module, part.name)(on, **part.params)
    except (TypeError, ValueError) as error:
        raise SuiteError(f"{what} '{part.name}': {error}") from error


def _rank(epoch: Epoch) -> tuple[int, float]:
    return epoch.validation_correct, -epoch.validation_loss


def _one_epoch(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    order: Tensor,
    batch_size: int,
) -> tuple[float, int]:
    """One pass over x[order]; the mean loss and the number correct, both while training."""
    model.train()
    total = torch.zeros((), device=x.device)
    correct = torch.zeros((), dtype=torch.int64, device=x.device)
    for rows in order.to(x.device).split(batch_size):
        logits = model(x[rows])
        loss = nn.functional.cross_entropy(logits, y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += loss.detach() * len(rows)
        correct += (logits.detach().argmax(1) == y[rows]).sum()
    return total.item() / len(order), int(correct)


@torch.no_grad()
def assess(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, int]:
    """Mean cross-entropy and number correct in evaluation mode."""
    model.eval()
    loss, correct = 0.0, 0
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        logits = model(images)
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(1) == labels).sum())
    return loss / len(y), correct
