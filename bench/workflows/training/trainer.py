"""Train a model by a recipe: plain, adversarial or certified training.

All training images stay on the device; some are held out for validation, which selects the epoch.
Reproducible from the recipe's seed on one device: initialisation and dropout draw from global
generators that are forked and seeded for the run, and a keyed permutation orders the images of each
epoch.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core import registry, rng
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.workflows.training.adversarial import AdversarialBatches
from bench.workflows.training.certified import CertifiedLoss
from bench.workflows.training.recipe import AttackRecipe, Recipe
from bench.workflows.training.resume import Stateful, TrainingState, build_component

VALIDATION_ROWS = 250


class Epoch(NamedTuple):
    """Measurements of one epoch; losses are means per image, accuracies are counts."""

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
    """On attacked training images; this and the next three under adversarial training only."""
    adversarial_correct: int | None = None
    validation_adversarial_loss: float | None = None
    validation_adversarial_correct: int | None = None
    certified_loss: float | None = None
    """At the worst logits for the eps of each step; this and the next three under certified
    training only."""
    certified_correct: int | None = None
    validation_certified_loss: float | None = None
    """At the recipe's `judged` radius, as the next."""
    validation_certified_correct: int | None = None


class TrainedModel(NamedTuple):
    """The model of the best validation epoch, and its training."""

    model: nn.Module
    best: Epoch
    history: list[Epoch]


class TrainingData(NamedTuple):
    """All training images on the device, and how they are split."""

    data: Data
    x: Tensor
    """Images, (n, c, h, w) in [0, 1]."""
    y: Tensor
    """Labels, (n,)."""
    held_out: Tensor
    """Indices of the validation images, on the CPU."""
    train: Tensor
    """Indices of the other images, on the CPU."""


def load_training_data(
    recipe: Recipe | AttackRecipe, data_dir: Path, device: torch.device
) -> TrainingData:
    """Load the training images of a recipe and hold some out for validation.

    Args:
        recipe: Data set, seed and number of validation images.
        data_dir: Folder of the data sets.
        device: Where the images go.

    Returns:
        Images, labels and split.

    Raises:
        SuiteError: The data are missing, or all of them would be held out.
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
    return TrainingData(data, x, y, order[: recipe.validation], order[recipe.validation :])


def train_model(
    recipe: Recipe,
    data_dir: Path,
    device: torch.device,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    progress_file: Path | None = None,
) -> TrainedModel:
    """Train a model and select the epoch with the best validation result, see `rank_epoch`.

    Args:
        recipe: What to train.
        data_dir: Folder of the data sets.
        device: Where to train.
        on_epoch: Called after every epoch.
        progress_file: Resumed from if it exists, and rewritten after every epoch.

    Returns:
        The model of the first of the best epochs, in evaluation mode.

    Raises:
        SuiteError: The recipe cannot be followed, or the progress file is of another run.
    """
    training = load_training_data(recipe, data_dir, device)
    with rng.seed_global(recipe.seed, "training", recipe.name):
        run = _Run(recipe, training)
        run.state.run(run.train_epoch, on_epoch, progress_file)
    return TrainedModel(run.model.eval(), run.state.best, run.state.history)


class Score(NamedTuple):
    """Mean cross-entropy and number of correct predictions over a set of images."""

    loss: float
    correct: int


class _Scores(NamedTuple):
    clean: Score
    attacked: Score | None = None
    bounded: Score | None = None


class _Run:
    """One training run: model, optimiser and schedule, and how they train for an epoch."""

    def __init__(self, recipe: Recipe, training: TrainingData) -> None:
        self.recipe, self.training = recipe, training
        self.adversary = (
            AdversarialBatches(recipe.adversarial, recipe.seed) if recipe.adversarial else None
        )
        build = registry.find("models", recipe.model.name).build
        self.model: nn.Module = build(**recipe.model.params).to(training.x.device)
        self.bound = (
            CertifiedLoss(recipe.certified, self.model, training.data.shape)
            if recipe.certified is not None
            else None
        )
        self.optimiser: torch.optim.Optimizer = build_component(
            torch.optim, recipe.optimiser, "optimiser", self.model.parameters()
        )
        components: dict[str, Stateful] = {"model": self.model, "optimiser": self.optimiser}
        self.schedule: Any = None
        if recipe.schedule is not None:
            schedules = torch.optim.lr_scheduler
            self.schedule = build_component(schedules, recipe.schedule, "schedule", self.optimiser)
            components["schedule"] = self.schedule
        self.state = TrainingState[Epoch](
            components,
            self.model,
            epoch_type=Epoch,
            rank=rank_epoch,
            epochs=recipe.epochs,
            patience=recipe.patience,
            recipe=recipe.name,
            identity=repr(recipe),
        )

    def train_epoch(self, number: int) -> Epoch:
        """Train and validate for one epoch, then step the schedule."""
        started = time.perf_counter()
        rows, held_out = self.training.train, self.training.held_out
        order = rows[rng.permute(self.recipe.seed, f"epoch {number}", len(rows))]
        lr = self.optimiser.param_groups[0]["lr"]
        train, validation = self._train(order, number), self._validate(held_out)
        epoch = Epoch(
            epoch=number,
            lr=lr,
            train_loss=train.clean.loss,
            train_correct=train.clean.correct,
            train_n=len(rows),
            validation_loss=validation.clean.loss,
            validation_correct=validation.clean.correct,
            validation_n=len(held_out),
            seconds=time.perf_counter() - started,
        )
        if train.attacked and validation.attacked:
            epoch = epoch._replace(
                adversarial_loss=train.attacked.loss,
                adversarial_correct=train.attacked.correct,
                validation_adversarial_loss=validation.attacked.loss,
                validation_adversarial_correct=validation.attacked.correct,
            )
        if train.bounded and validation.bounded:
            epoch = epoch._replace(
                certified_loss=train.bounded.loss,
                certified_correct=train.bounded.correct,
                validation_certified_loss=validation.bounded.loss,
                validation_certified_correct=validation.bounded.correct,
            )
        if isinstance(self.schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.schedule.step(epoch.validation_loss)
        elif self.schedule is not None:
            self.schedule.step()
        return epoch

    def _train(self, order: Tensor, number: int) -> _Scores:
        """Train on x[order] once; the scores are those of the training steps."""
        model, optimiser, recipe = self.model.train(), self.optimiser, self.recipe
        x, y = self.training.x, self.training.y
        clean, hardened = _Tally(x.device), _Tally(x.device)
        autocast = recipe.precision != "float32"
        batches = order.to(x.device).split(recipe.batch_size)
        for step, rows in enumerate(batches):
            # Without the cache of cast weights, which lasts as long as the outermost autocast: if
            # that is the caller's, every step would use the weights of the first.
            with torch.autocast(
                x.device.type, torch.bfloat16, enabled=autocast, cache_enabled=False
            ):
                if self.adversary is not None:
                    x_adv = self.adversary.train(model, x[rows], y[rows], rows, number)
                    share = self.adversary.adversary.share
                    with torch.set_grad_enabled(share > 0):
                        loss = share * clean.add(model(x[rows]).float(), y[rows])
                    loss = loss + (1 - share) * hardened.add(model(x_adv).float(), y[rows])
                elif self.bound is not None:
                    eps, share = self.bound.progress(number - 1 + step / len(batches))
                    worst, front = self.bound.worst(x[rows], y[rows], eps)
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
            attacked=hardened.score(n) if self.adversary else None,
            bounded=hardened.score(n) if self.bound else None,
        )

    def _validate(self, held_out: Tensor) -> _Scores:
        """Score the held-out images in evaluation mode: clean, and attacked or certified.

        Attacks use the full eps and the same noise in every epoch, so that epochs compare.
        """
        x, y = self.training.x, self.training.y
        clean = evaluate_model(self.model, x[held_out], y[held_out])
        parts = held_out.to(x.device).split(VALIDATION_ROWS)
        if self.adversary is not None:
            attacked = [self.adversary.validate(self.model, x[at], y[at], at) for at in parts]
            return _Scores(
                clean, attacked=evaluate_model(self.model, torch.cat(attacked), y[held_out])
            )
        if self.bound is not None:
            return _Scores(clean, bounded=self._certify(self.bound, parts))
        return _Scores(clean)

    @torch.no_grad()
    def _certify(self, bound: CertifiedLoss, parts: Sequence[Tensor]) -> Score:
        """Score the worst logits at the recipe's `judged` radius, in evaluation mode."""
        self.model.eval()
        x, y = self.training.x, self.training.y
        tally = _Tally(x.device)
        for at in parts:
            tally.add(*bound.worst(x[at], y[at], bound.certificate.judged))
        return tally.score(sum(map(len, parts)))


def rank_epoch(epoch: Epoch) -> tuple[int, float]:
    """Rank an epoch for selecting among epochs and seeds.

    Fewest errors on the validation images, then the least loss; under adversarial training of the
    attacked images (Goodfellow et al. 2015, section 6), under certified training of the bounds.

    Args:
        epoch: Measurements.

    Returns:
        Sort key; the larger, the better.
    """
    if epoch.validation_adversarial_correct is not None:
        assert epoch.validation_adversarial_loss is not None
        return epoch.validation_adversarial_correct, -epoch.validation_adversarial_loss
    if epoch.validation_certified_correct is not None:
        assert epoch.validation_certified_loss is not None
        return epoch.validation_certified_correct, -epoch.validation_certified_loss
    return epoch.validation_correct, -epoch.validation_loss


class _Tally:
    """Sums of losses and correct predictions on the device, so that no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.loss = torch.zeros((), device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, logits: Tensor, y: Tensor) -> Tensor:
        """Add a batch; return its mean cross-entropy, to be differentiated."""
        loss = nn.functional.cross_entropy(logits, y)
        self.loss += loss.detach() * len(y)
        self.correct += (logits.detach().argmax(1) == y).sum()
        return loss

    def score(self, n: int) -> Score:
        """Divide the loss by the number of images."""
        return Score(self.loss.item() / n, int(self.correct))


@torch.no_grad()
def evaluate_model(model: nn.Module, x: Tensor, y: Tensor) -> Score:
    """Compute loss and accuracy; the model is left in evaluation mode.

    Args:
        model: Maps images to logits (n, classes).
        x: Images, (n, c, h, w) in [0, 1].
        y: Labels, (n,).

    Returns:
        Mean cross-entropy and number of correct predictions.
    """
    model.eval()
    tally = _Tally(x.device)
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        tally.add(model(images), labels)
    return tally.score(len(y))


@torch.no_grad()
def predict_classes(model: nn.Module, x: Tensor) -> Tensor:
    """Predict the class of each image; the model is left in evaluation mode.

    Args:
        model: Maps images to logits (n, classes).
        x: Images, (n, c, h, w) in [0, 1].

    Returns:
        Classes, (n,).
    """
    model.eval()
    return torch.cat([model(images).argmax(1) for images in x.split(500)])
