"""Training an attack by a recipe: its networks step in turn against one model that never changes.

Reproducible from the recipe's seed on one device, interruptible after every epoch, and blind to the
test set, as in `standard`.
"""

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.learner import Learner, TrainingBatch
from bench.core.errors import SuiteError
from bench.evaluation import loading
from bench.models.preflight.checks import LoadedModel
from bench.workflows.training import resume as progress
from bench.workflows.training.attack_recipe import AttackRecipe
from bench.workflows.training.trainer import made, predict

ROWS = 500


class Epoch(NamedTuple):
    """What one epoch gave."""

    epoch: int
    losses: Mapping[str, Mapping[str, float]]
    """Network -> part of its loss -> that part's mean per image, as seen while training."""
    validation_fooled: int
    validation_n: int
    """Held-out images that the target gets right when they are clean."""
    seconds: float


class Trained(NamedTuple):
    """The attacking network of the best validation epoch and how it came about."""

    network: nn.Module
    target: LoadedModel
    best: Epoch
    history: list[Epoch]
    train_n: int


class Outcome(NamedTuple):
    """What an attack did to some images; every field is per image."""

    x_adv: Tensor
    before: Tensor
    """Class predicted for the clean image."""
    after: Tensor
    eligible: Tensor
    """Whether the clean image is classified correctly."""

    @property
    def fooled(self) -> Tensor:
        return self.eligible & (self.after != self.before)


def train(
    recipe: AttackRecipe,
    data_dir: Path,
    device: torch.device,
    listen: Callable[[Epoch], None] = lambda epoch: None,
    kept_in: Path | None = None,
) -> Trained:
    """Train by `recipe` and keep the epoch that fools the most held-out images, of several the
    first. `listen` hears of every epoch.

    After each epoch all that the next one needs goes into the file `kept_in`; where it is there
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
    target = loading.load_model(recipe.model, Path(), recipe.seed, data, device, data_dir)
    target.model.requires_grad_(False)
    order = rng.permute(recipe.seed, "validation split", data.n)
    x, y = data.read(0, data.n).to(device), data.labels.to(device)
    held_out, kept = order[: recipe.validation], order[recipe.validation :][: recipe.limit]
    if not (predict(target.model, x[held_out]) == y[held_out]).any():
        raise SuiteError(
            f"recipe '{recipe.name}': model '{recipe.model.label}' gets none of the held-out "
            f"images of {data.name} right, so there is nothing to fool it about"
        )
    with rng.seed_global(recipe.seed, "training", recipe.name):
        course = _Course(recipe, target, data, device)
        if kept_in is not None and kept_in.exists():
            course.resume(kept_in)
        while len(course.history) < recipe.epochs:
            started = time.perf_counter()
            number = len(course.history) + 1
            shuffle = kept[rng.permute(recipe.seed, f"epoch {number}", len(kept))]
            losses = _one_epoch(course, x, y, shuffle)
            held = outcome(recipe, course.attacking, target.model, x[held_out], y[held_out])
            fooled, eligible = int(held.fooled.sum()), int(held.eligible.sum())
            epoch = Epoch(number, losses, fooled, eligible, time.perf_counter() - started)
            course.end(epoch)
            if kept_in is not None:
                course.save(kept_in)
            listen(epoch)
    course.attacking.load_state_dict(course.best_state)
    return Trained(course.attacking, target, course.best, course.history, len(kept))


class _Course:
    """Where a training run stands between two epochs."""

    def __init__(
        self, recipe: AttackRecipe, target: LoadedModel, data: Data, device: torch.device
    ) -> None:
        self.recipe, self.target = recipe, target
        self.learner = learner(recipe)
        built = self.learner.build(data.shape, recipe.attack.params)
        self.networks = {name: network.to(device).train() for name, network in built.items()}
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            name: made(torch.optim, recipe.optimiser, "optimiser", network.parameters())
            for name, network in self.networks.items()
        }
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}

    @property
    def attacking(self) -> nn.Module:
        return self.networks[self.learner.published]

    @property
    def best(self) -> Epoch:
        return max(self.history, key=lambda epoch: epoch.validation_fooled)

    @property
    def _about(self) -> str:
        """What must not change between an interruption and what follows."""
        return f"{self.recipe!r} against {self.target.fingerprint}"

    def end(self, epoch: Epoch) -> None:
        self.history.append(epoch)
        if self.best is epoch:
            self.best_state = copy.deepcopy(self.attacking.state_dict())

    def save(self, path: Path) -> None:
        state = {
            "networks": {name: each.state_dict() for name, each in self.networks.items()},
            "optimisers": {name: each.state_dict() for name, each in self.optimisers.items()},
            "best": self.best_state,
            "history": [tuple(epoch) for epoch in self.history],
        }
        progress.save(path, self._about, state)

    def resume(self, path: Path) -> None:
        state = progress.load(path, self._about, self.recipe.name)
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
            self.optimisers[name].load_state_dict(state["optimisers"][name])
        self.best_state = state["best"]
        self.history = [Epoch(*epoch) for epoch in state["history"]]


def learner(recipe: AttackRecipe) -> Learner:
    """How the recipe's attack learns."""
    found = recipe.attack.attack.learn
    assert found is not None  # the recipe was refused otherwise
    return found


def _one_epoch(
    course: _Course, x: Tensor, y: Tensor, order: Tensor
) -> Mapping[str, Mapping[str, float]]:
    """One pass over x[order]; the mean of every part of every network's loss."""
    sums: dict[str, dict[str, Tensor]] = {}
    for network in course.networks.values():
        network.train()
    for rows in order.to(x.device).split(course.recipe.batch_size):
        lesson = TrainingBatch(course.target.model, x[rows], y[rows], course.recipe.attack.threat)
        losses = course.learner.step(
            course.networks, course.optimisers, lesson, course.recipe.attack.params
        )
        for name, parts in losses.items():
            totals = sums.setdefault(name, {})
            for part, loss in parts.items():  # summed on the device: no step waits for the host
                totals[part] = totals.get(part, torch.zeros_like(loss)) + loss * len(rows)
    return {
        name: {part: total.item() / len(order) for part, total in totals.items()}
        for name, totals in sums.items()
    }


@torch.no_grad()
def outcome(
    recipe: AttackRecipe, network: nn.Module, target: nn.Module, x: Tensor, y: Tensor
) -> Outcome:
    """What `network` does to x at the recipe's eps, all in evaluation mode."""
    network.eval()
    craft, threat = learner(recipe).craft, recipe.attack.threat
    x_adv = torch.cat([craft(network, part, threat) for part in x.split(ROWS)])
    before = predict(target, x)
    return Outcome(x_adv, before, predict(target, x_adv), before == y)
