"""`bench train`: a model, or an attack that must learn, by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from bench.cli.main import DATA_DIR, DEVICE, FOLDER, cli, echo

if TYPE_CHECKING:
    import torch


@cli.command()
@click.argument("recipe")
@click.option(
    "--out", type=FOLDER, default=Path(), help="Folder for weights, card and page [current folder]."
)
@DEVICE
@DATA_DIR
@click.option(
    "--seed",
    "seeds",
    type=int,
    multiple=True,
    help="Train with this seed only, and add it to the training of the same recipe in the folder; "
    "may be repeated [every seed of the recipe].",
)
@click.option(
    "--fresh",
    is_flag=True,
    help="Discard an interrupted training and start again; with --seed, replace a seed that the "
    "folder's card has, or the card of another recipe.",
)
def train(
    recipe: str,
    out: Path,
    device: str,
    data_dir: Path | None,
    seeds: tuple[int, ...],
    fresh: bool,
) -> None:
    """Train a model, or an attack that must be trained.

    RECIPE is the path of a TOML file or the name of a shipped recipe (`bench list recipes`). An
    interrupted training is resumed. With several seeds the one that is best on the validation
    images is kept. Weights, their card, a page, the history of the epochs and figures are written.

    Seeds may be trained one by one, on several machines that share the folder too: --seed adds a
    seed to the card and the page there, and replaces the weights only if it is better on the
    validation images. Without --seed the folder's card is replaced.
    """
    from dataclasses import replace

    from bench.core import files
    from bench.engine import malloc
    from bench.engine.device import enter_device
    from bench.evaluation import loading
    from bench.workflows.training import added_seeds, model_card, trainer
    from bench.workflows.training.recipe import detect_recipe_kind, read_recipe

    malloc.keep_freed_memory()
    where, folder = loading.select_device(device), files.data_folder(data_dir)
    click.get_current_context().with_resource(enter_device(where))
    if detect_recipe_kind(recipe) == "attack":
        if len(seeds) > 1:
            raise click.UsageError("an attack is trained with one --seed")
        _train_attack(recipe, out, where, folder, seeds[0] if seeds else None, fresh)
        return
    checked = read_recipe(recipe)
    files.check_writable(out)  # found out now, not after an hour of training
    added = bool(seeds)
    if added:
        added_seeds.find_training(checked, out, seeds, fresh)  # what it refuses, too
    many = sorted({*seeds}) or range(checked.seed, checked.seed + checked.seeds)
    # A finished seed's progress stays until all are published: an interruption loses none of them.
    progress = {each: out / f"{checked.name}.{each}.progress" for each in many}

    def report(epoch: trainer.Epoch) -> None:
        attacked = ""
        if epoch.validation_certified_correct is not None:
            attacked = f" (certified {epoch.validation_certified_correct})"
        if epoch.validation_adversarial_correct is not None:
            attacked = f" (attacked {epoch.validation_adversarial_correct})"
        echo(
            f"epoch {epoch.epoch}/{checked.epochs}: loss {epoch.train_loss:.4f}, validation "
            f"{epoch.validation_correct}/{epoch.validation_n}{attacked}, {epoch.seconds:.1f} s",
            err=True,
        )

    runs = []
    for each, path in progress.items():
        if fresh:
            path.unlink(missing_ok=True)
        if len(progress) > 1:
            echo(f"seed {each}", err=True)
        trained = trainer.train_model(replace(checked, seed=each), folder, where, report, path)
        runs.append(model_card.SeedRun(each, trained))
    weights = model_card.publish_model(checked, runs, folder, out, add=added, fresh=fresh)
    kept, all_seeds = model_card.read_seeds(weights)
    if len(all_seeds) > 1:
        echo(f"kept: seed {kept} of {', '.join(map(str, all_seeds))}")
    echo(f"weights: {weights}")
    echo(f"page: {weights.with_suffix('.md')}")
    for path in progress.values():
        path.unlink(missing_ok=True)


def _train_attack(
    name: str, out: Path, device: "torch.device", data_dir: Path, seed: int | None, fresh: bool
) -> None:
    """Train an attack that has to learn, by the recipe `name`."""
    from dataclasses import replace

    from bench.core import files
    from bench.workflows.training import attack_trainer, model_card
    from bench.workflows.training.recipe import read_attack_recipe

    recipe = read_attack_recipe(name)
    recipe = recipe if seed is None else replace(recipe, seed=seed)
    files.check_writable(out)
    progress = out / f"{recipe.name}.{recipe.seed}.progress"
    if fresh:
        progress.unlink(missing_ok=True)

    def report(epoch: attack_trainer.AttackEpoch) -> None:
        losses = ", ".join(
            f"{network} " + " ".join(f"{part} {loss:.3f}" for part, loss in parts.items())
            for network, parts in epoch.losses.items()
        )
        echo(
            f"epoch {epoch.epoch}/{recipe.epochs}: {losses}, validation fooled "
            f"{epoch.validation_fooled}/{epoch.validation_n}, {epoch.seconds:.1f} s",
            err=True,
        )

    trained = attack_trainer.train_attack(recipe, data_dir, device, report, progress)
    weights = model_card.publish_attack(recipe, trained, data_dir, out)
    echo(f"weights: {weights}")
    echo(f"page: {weights.with_suffix('.md')}")
    progress.unlink(missing_ok=True)
