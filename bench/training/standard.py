"""Standard training by a recipe: data on the device as tensors, validation held out, best kept.

Reproducible from the recipe's seed on one device: initialisation and dropout draw from global
generators forked and seeded for this run, the order of images from a keyed permutation per epoch.
"""

import copy
import io
import pickle
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
from bench.files import write_whole
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
    progress: Path | None = None,
) -> Trained:
    """Train by `recipe` and return the weights of the epoch with the least validation errors
    (of those, the least validation loss). `listen` hears of every epoch.

    After each epoch all that the next one needs goes into the file `progress`; where it is there
    already, training goes on from it and ends with the same weights as if never interrupted.
    Raises: SuiteError for a recipe that cannot be followed, or another recipe's progress.
    """
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
    with rng.seeded(recipe.seed, "training", recipe.name):
        course = _Course(recipe, device)
        if progress is not None and progress.exists():
            course.resume(progress)
        for number in range(len(course.history) + 1, recipe.epochs + 1):
            started = time.perf_counter()
            shuffle = kept[rng.shuffled(recipe.seed, f"epoch {number}", len(kept))]
            lr = course.optimiser.param_groups[0]["lr"]
            loss, correct = _one_epoch(course, x, y, shuffle)
            held_loss, held_correct = assess(course.model, x[held_out], y[held_out])
            seconds = time.perf_counter() - started
            epoch = Epoch(
                number, lr, loss, correct, len(kept),
                held_loss, held_correct, len(held_out), seconds,
            )  # fmt: skip
            course.end(epoch)
            if progress is not None:
                course.save(progress)
            listen(epoch)
    course.model.load_state_dict(course.best_state)
    return Trained(course.model.eval(), course.best, course.history)


class _Course:
    """Where a training run stands between two epochs."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        build = registry.find("models", recipe.model.name).build
        self.model: nn.Module = build(**recipe.model.params).to(device)
        self.optimiser: torch.optim.Optimizer = _made(
            torch.optim, recipe.optimiser, "optimiser", self.model.parameters()
        )
        self.schedule: Any = None
        if recipe.schedule is not None:
            schedules = torch.optim.lr_scheduler
            self.schedule = _made(schedules, recipe.schedule, "schedule", self.optimiser)
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}

    @property
    def best(self) -> Epoch:
        return max(self.history, key=_rank)

    def end(self, epoch: Epoch) -> None:
        """Step the schedule, and keep the weights if no epoch was better."""
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(epoch.validation_loss)
        elif self.schedule is not None:
            self.schedule.step()
        self.history.append(epoch)
        if self.best is epoch:
            self.best_state = copy.deepcopy(self.model.state_dict())

    def save(self, path: Path) -> None:
        """Raises: SuiteError if the file cannot be written."""
        buffer = io.BytesIO()
        state = {
            "recipe": repr(self.recipe),
            "model": self.model.state_dict(),
            "best": self.best_state,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule and self.schedule.state_dict(),
            "history": [tuple(epoch) for epoch in self.history],
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        torch.save(state, buffer)
        write_whole(path, buffer.getvalue())

    def resume(self, path: Path) -> None:
        """Raises: SuiteError if the file is damaged or belongs to another recipe."""
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            same = state["recipe"] == repr(self.recipe)
        except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            raise SuiteError(f"{path}: damaged; delete it and train again") from error
        if not same:
            raise SuiteError(
                f"{path}: holds the progress of another recipe '{self.recipe.name}'; delete it, "
                "or train into another folder"
            )
        self.model.load_state_dict(state["model"])
        self.best_state = state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(*epoch) for epoch in state["history"]]
        torch.set_rng_state(state["random"])
        torch.cuda.set_rng_state_all(state["random_cuda"])


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


def _one_epoch(course: _Course, x: Tensor, y: Tensor, order: Tensor) -> tuple[float, int]:
    """One pass over x[order]; the mean loss and the number correct, both while training."""
    model, optimiser = course.model.train(), course.optimiser
    total = torch.zeros((), device=x.device)
    correct = torch.zeros((), dtype=torch.int64, device=x.device)
    for rows in order.to(x.device).split(course.recipe.batch_size):
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


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of each image in evaluation mode, (n,)."""
    model.eval()
    return torch.cat([model(images).argmax(1) for images in x.split(500)])
