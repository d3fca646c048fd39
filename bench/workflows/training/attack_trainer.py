"""Train an attack by a recipe: its networks are updated against one fixed target model.

Reproducible from the recipe's seed on one device, resumable after every epoch, and without use of
the test set, as `trainer`.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.learner import Learner, TrainingBatch
from bench.core.errors import SuiteError
from bench.evaluation import loading
from bench.models.preflight.checks import LoadedModel
from bench.workflows.training.recipe import AttackRecipe
from bench.workflows.training.resume import TrainingState, build_component
from bench.workflows.training.trainer import load_training_data, predict_classes

ROWS = 500


class AttackEpoch(NamedTuple):
    """Measurements of one epoch."""

    epoch: int
    losses: Mapping[str, Mapping[str, float]]
    """Network -> term of its loss -> mean per image over the training steps of the epoch."""
    validation_fooled: int
    validation_n: int
    """Held-out images that the target classifies correctly without attack."""
    seconds: float


class TrainedAttack(NamedTuple):
    """The attacking network of the best validation epoch, and its training."""

    network: nn.Module
    target: LoadedModel
    best: AttackEpoch
    history: list[AttackEpoch]
    train_n: int


class AttackOutcome(NamedTuple):
    """Attacked images with the target's predictions; every field is per image."""

    x_adv: Tensor
    before: Tensor
    """Class predicted for the clean image."""
    after: Tensor
    """Class predicted for the attacked image."""
    eligible: Tensor
    """Whether the clean image is classified correctly."""

    @property
    def fooled(self) -> Tensor:
        """Whether the attack changed a correct prediction, (n,) bool."""
        return self.eligible & (self.after != self.before)


def train_attack(
    recipe: AttackRecipe,
    data_dir: Path,
    device: torch.device,
    on_epoch: Callable[[AttackEpoch], None] = lambda epoch: None,
    progress_file: Path | None = None,
) -> TrainedAttack:
    """Train an attack and select the epoch that fools the most held-out images.

    Args:
        recipe: What to train.
        data_dir: Folder of the data sets.
        device: Where to train.
        on_epoch: Called after every epoch.
        progress_file: Resumed from if it exists, and rewritten after every epoch.

    Returns:
        The network of the first of the best epochs, in evaluation mode.

    Raises:
        SuiteError: The recipe cannot be followed, or the progress file is of another run.
    """
    training = load_training_data(recipe, data_dir, device)
    x, y, data = training.x, training.y, training.data
    target = loading.load_model(recipe.model, Path(), recipe.seed, data, device, data_dir)
    target.model.requires_grad_(False)
    held_out, rows = training.held_out, training.train[: recipe.limit]
    if not (predict_classes(target.model, x[held_out]) == y[held_out]).any():
        raise SuiteError(
            f"recipe '{recipe.name}': model '{recipe.model.label}' gets none of the held-out "
            f"images of {data.name} right, so there is nothing to fool it about"
        )
    with rng.seed_global(recipe.seed, "training", recipe.name):
        built = find_learner(recipe).build(data.shape, recipe.attack.params)
        networks = {name: network.to(device).train() for name, network in built.items()}
        optimisers: dict[str, torch.optim.Optimizer] = {
            name: build_component(torch.optim, recipe.optimiser, "optimiser", net.parameters())
            for name, net in networks.items()
        }
        published = networks[find_learner(recipe).published]
        state = TrainingState[AttackEpoch](
            {
                **{f"network {name}": each for name, each in networks.items()},
                **{f"optimiser {name}": each for name, each in optimisers.items()},
            },
            published,
            epoch_type=AttackEpoch,
            rank=lambda epoch: epoch.validation_fooled,
            epochs=recipe.epochs,
            recipe=recipe.name,
            identity=f"{recipe!r} against {target.fingerprint}",
        )

        def train_epoch(number: int) -> AttackEpoch:
            started = time.perf_counter()
            order = rows[rng.permute(recipe.seed, f"epoch {number}", len(rows))]
            losses = _run_epoch(recipe, target.model, networks, optimisers, x, y, order)
            result = evaluate_attack(recipe, published, target.model, x[held_out], y[held_out])
            fooled, eligible = int(result.fooled.sum()), int(result.eligible.sum())
            return AttackEpoch(number, losses, fooled, eligible, time.perf_counter() - started)

        state.run(train_epoch, on_epoch, progress_file)
    return TrainedAttack(published.eval(), target, state.best, state.history, len(rows))


def find_learner(recipe: AttackRecipe) -> Learner:
    """Return the training procedure of the recipe's attack.

    Args:
        recipe: A recipe as `read_attack_recipe` returns it.

    Returns:
        The procedure.
    """
    learner = recipe.attack.attack.learn
    assert learner is not None  # `read_attack_recipe` refuses others
    return learner


def _run_epoch(
    recipe: AttackRecipe,
    target: nn.Module,
    networks: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
    x: Tensor,
    y: Tensor,
    order: Tensor,
) -> Mapping[str, Mapping[str, float]]:
    """Train on x[order] once; return the mean of every term of every network's loss."""
    sums: dict[str, dict[str, Tensor]] = {}
    for network in networks.values():
        network.train()
    for rows in order.to(x.device).split(recipe.batch_size):
        lesson = TrainingBatch(target, x[rows], y[rows], recipe.attack.threat)
        losses = find_learner(recipe).step(networks, optimisers, lesson, recipe.attack.params)
        for name, terms in losses.items():
            totals = sums.setdefault(name, {})
            for term, loss in terms.items():  # summed on the device: no step waits for the host
                totals[term] = totals.get(term, torch.zeros_like(loss)) + loss * len(rows)
    return {
        name: {term: total.item() / len(order) for term, total in totals.items()}
        for name, totals in sums.items()
    }


@torch.no_grad()
def evaluate_attack(
    recipe: AttackRecipe, network: nn.Module, target: nn.Module, x: Tensor, y: Tensor
) -> AttackOutcome:
    """Attack images at the recipe's eps, with all networks in evaluation mode.

    Args:
        recipe: Attack and threat model.
        network: The attacking network.
        target: The attacked model.
        x: Images, (n, c, h, w) in [0, 1].
        y: Labels, (n,).

    Returns:
        Attacked images and predictions.
    """
    network.eval()
    craft, threat = find_learner(recipe).craft, recipe.attack.threat
    x_adv = torch.cat([craft(network, part, threat) for part in x.split(ROWS)])
    before = predict_classes(target, x)
    return AttackOutcome(x_adv, before, predict_classes(target, x_adv), before == y)
