"""Training by a recipe, plain, adversarial or certified: data on the device, validation apart,
best kept.

Reproducible from the recipe's seed on one device: initialisation and dropout draw from global
generators forked and seeded for this run, the order of images from a keyed permutation per epoch.
"""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError, nearest
from bench.workflows.training import resume as progress
from bench.workflows.training.adversarial import AdversarialBatches
from bench.workflows.training.certified import CertifiedLoss
from bench.workflows.training.recipe import ComponentSpec, Recipe

VALIDATION_ROWS = 250


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
    adversarial_loss: float | None = None
    """On the attacked training images; this and what follows under adversarial training only."""
    adversarial_correct: int | None = None
    validation_adversarial_loss: float | None = None
    validation_adversarial_correct: int | None = None
    certified_loss: float | None = None
    """At the worst logits of the training's present eps; this and what follows under certified
    training only."""
    certified_correct: int | None = None
    validation_certified_loss: float | None = None
    """At the eps that the recipe judges by, as the next."""
    validation_certified_correct: int | None = None


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
    kept_in: Path | None = None,
) -> Trained:
    """Train by `recipe` and return the weights of the epoch with the least validation errors
    (of those, the least validation loss); under adversarial training, the least errors on attacked
    validation images (Goodfellow et al. 2015, section 6), and under certified training the least
    that are not certified. `listen` hears of every epoch.

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
    order = rng.permute(recipe.seed, "validation split", data.n)
    x, y = data.read(0, data.n).to(device), data.labels.to(device)
    held_out, kept = order[: recipe.validation], order[recipe.validation :]
    with rng.seed_global(recipe.seed, "training", recipe.name):
        course = TrainingState(recipe, device, data.shape)
        if kept_in is not None and kept_in.exists():
            course.resume(kept_in)
        while not course.ended:
            started = time.perf_counter()
            number = len(course.history) + 1
            shuffle = kept[rng.permute(recipe.seed, f"epoch {number}", len(kept))]
            lr = course.optimiser.param_groups[0]["lr"]
            seen = _one_epoch(course, x, y, shuffle)
            held = _validate(course, x, y, held_out)
            epoch = Epoch(
                epoch=number,
                lr=lr,
                train_loss=seen.clean.loss,
                train_correct=seen.clean.correct,
                train_n=len(kept),
                validation_loss=held.clean.loss,
                validation_correct=held.clean.correct,
                validation_n=len(held_out),
                seconds=time.perf_counter() - started,
            )
            if seen.attacked and held.attacked:
                epoch = epoch._replace(
                    adversarial_loss=seen.attacked.loss,
                    adversarial_correct=seen.attacked.correct,
                    validation_adversarial_loss=held.attacked.loss,
                    validation_adversarial_correct=held.attacked.correct,
                )
            if seen.bounded and held.bounded:
                epoch = epoch._replace(
                    certified_loss=seen.bounded.loss,
                    certified_correct=seen.bounded.correct,
                    validation_certified_loss=held.bounded.loss,
                    validation_certified_correct=held.bounded.correct,
                )
            course.end(epoch)
            if kept_in is not None:
                course.save(kept_in)
            listen(epoch)
    course.model.load_state_dict(course.best_state)
    return Trained(course.model.eval(), course.best, course.history)


class Score(NamedTuple):
    """Mean cross-entropy and number correct over some images."""

    loss: float
    correct: int


class _Scores(NamedTuple):
    clean: Score
    attacked: Score | None = None
    bounded: Score | None = None


class TrainingState:
    """Where a training run stands between two epochs."""

    def __init__(self, recipe: Recipe, device: torch.device, shape: tuple[int, ...]) -> None:
        self.recipe = recipe
        self.craft = (
            AdversarialBatches(recipe.adversarial, recipe.seed) if recipe.adversarial else None
        )
        build = registry.find("models", recipe.model.name).build
        self.model: nn.Module = build(**recipe.model.params).to(device)
        self.bound = (
            CertifiedLoss(recipe.certified, self.model, shape)
            if recipe.certified is not None
            else None
        )
        self.optimiser: torch.optim.Optimizer = made(
            torch.optim, recipe.optimiser, "optimiser", self.model.parameters()
        )
        self.schedule: Any = None
        if recipe.schedule is not None:
            schedules = torch.optim.lr_scheduler
            self.schedule = made(schedules, recipe.schedule, "schedule", self.optimiser)
        self.history: list[Epoch] = []
        self.best_state: dict[str, Tensor] = {}

    @property
    def best(self) -> Epoch:
        return max(self.history, key=rank)

    @property
    def ended(self) -> bool:
        done, patience = len(self.history), self.recipe.patience
        return done >= self.recipe.epochs or (
            patience is not None and done > 0 and done - self.best.epoch >= patience
        )

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
        state = {
            "model": self.model.state_dict(),
            "best": self.best_state,
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule and self.schedule.state_dict(),
            "history": [tuple(epoch) for epoch in self.history],
        }
        progress.save(path, repr(self.recipe), state)

    def resume(self, path: Path) -> None:
        state = progress.load(path, repr(self.recipe), self.recipe.name)
        self.model.load_state_dict(state["model"])
        self.best_state = state["best"]
        self.optimiser.load_state_dict(state["optimiser"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.history = [Epoch(*epoch) for epoch in state["history"]]


def made(module: ModuleType, part: ComponentSpec, what: str, on: Any) -> Any:
    """The optimiser or schedule that a recipe names, with its parameters."""
    known = [name for name in vars(module) if name[0].isupper()]
    if part.name not in known:
        raise SuiteError(f"{what} '{part.name}' is unknown; {nearest(part.name, known)}")
    try:
        return getattr(module, part.name)(on, **part.params)
    except (TypeError, ValueError) as error:
        raise SuiteError(f"{what} '{part.name}': {error}") from error


def rank(epoch: Epoch) -> tuple[int, float]:
    """The larger, the better: what decides which epoch, and which seed, is kept."""
    if epoch.validation_adversarial_correct is not None:
        assert epoch.validation_adversarial_loss is not None
        return epoch.validation_adversarial_correct, -epoch.validation_adversarial_loss
    if epoch.validation_certified_correct is not None:
        assert epoch.validation_certified_loss is not None
        return epoch.validation_certified_correct, -epoch.validation_certified_loss
    return epoch.validation_correct, -epoch.validation_loss


class _Tally:
    """Losses and hits summed on the device, so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, logits: Tensor, y: Tensor) -> Tensor:
        """Count a batch; returns its mean cross-entropy, to be differentiated."""
        loss = nn.functional.cross_entropy(logits, y)
        self.loss += loss.detach() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()
        return loss

    def score(self, n: int) -> Score:
        return Score(self.loss.item() / n, int(self.correct))


def _one_epoch(course: TrainingState, x: Tensor, y: Tensor, order: Tensor) -> _Scores:
    """One pass over x[order]; the scores are those seen while training."""
    model, optimiser, recipe = course.model.train(), course.optimiser, course.recipe
    clean, hardened = _Tally(x.device), _Tally(x.device)
    low, done = recipe.precision != "float32", len(course.history)
    batches = order.to(x.device).split(recipe.batch_size)
    for step, rows in enumerate(batches):
        # Without the cache of cast weights, which lasts as long as the outermost autocast: where
        # that is the caller's, every step would be computed with the weights of the first.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=low, cache_enabled=False):
            if course.craft is not None:
                x_adv = course.craft.train(model, x[rows], y[rows], rows, done + 1)
                share = course.craft.adversary.share
                with torch.set_grad_enabled(share > 0):
                    loss = share * clean.add(model(x[rows]).float(), y[rows])
                loss = loss + (1 - share) * hardened.add(model(x_adv).float(), y[rows])
            elif course.bound is not None:
                eps, share = course.bound.progress(done + step / len(batches))
                worst, front = course.bound.worst(x[rows], y[rows], eps)
                loss = share * clean.add(model(x[rows]).float(), y[rows])
                loss = loss + (1 - share) * hardened.add(worst.float(), front)
            else:
                loss = clean.add(model(x[rows]).float(), y[rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    n = len(order)
    return _Scores(
        clean.score(n),
        attacked=hardened.score(n) if course.craft else None,
        bounded=hardened.score(n) if course.bound else None,
    )


def _validate(course: TrainingState, x: Tensor, y: Tensor, held_out: Tensor) -> _Scores:
    """Scores in evaluation mode, attacked at the full eps with the same noise in every epoch, or
    certified at the eps that the recipe judges by."""
    clean = assess(course.model, x[held_out], y[held_out])
    parts = held_out.to(x.device).split(VALIDATION_ROWS)
    if course.craft is not None:
        attacked = [course.craft.validate(course.model, x[at], y[at], at) for at in parts]
        scored = assess(course.model, torch.cat(attacked), y[held_out])
        return _Scores(clean, attacked=scored)
    if course.bound is not None:
        return _Scores(clean, bounded=_certify(course, course.bound, x, y, parts))
    return _Scores(clean)


@torch.no_grad()
def _certify(
    course: TrainingState, bound: CertifiedLoss, x: Tensor, y: Tensor, parts: Sequence[Tensor]
) -> Score:
    """Cross-entropy of the worst logits, and images certified, in evaluation mode."""
    course.model.eval()
    tally = _Tally(x.device)
    for at in parts:
        tally.add(*bound.worst(x[at], y[at], bound.certificate.judged))
    return tally.score(sum(map(len, parts)))


@torch.no_grad()
def assess(model: nn.Module, x: Tensor, y: Tensor) -> Score:
    """Mean cross-entropy and number correct in evaluation mode."""
    model.eval()
    tally = _Tally(x.device)
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        tally.add(model(images), labels)
    return tally.score(len(y))


@torch.no_grad()
def predict(model: nn.Module, x: Tensor) -> Tensor:
    """The predicted class of each image in evaluation mode, (n,)."""
    model.eval()
    return torch.cat([model(images).argmax(1) for images in x.split(500)])
