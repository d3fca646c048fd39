"""The published outcome of training an attack: weights and, beside them, card, history and page."""

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

import pandas as pd
from safetensors.torch import save

from bench.core import registry
from bench.core.contracts.dataset import Data
from bench.core.files import write_atomic
from bench.engine.functional import norms
from bench.reporting.formats import markdown
from bench.reporting.formats.numbers import NORM_NAMES, format_number, format_plural, format_seconds
from bench.reporting.plots import figures as drawing
from bench.storage import environment
from bench.workflows.training import figures
from bench.workflows.training.attack_trainer import TrainedAttack, evaluate_attack, find_learner
from bench.workflows.training.page import describe_device, format_rate, render_origin
from bench.workflows.training.recipe import AttackRecipe, list_recipes

ATTACK_FIGURES = {
    "curves": "Each part of each network's loss, as seen while training, and the success on "
    "held-out images with its 95 % band; the dotted line is the epoch that was kept.",
    "examples": "The first test image of each class that the target gets right: clean, the change "
    "(grey is none), and attacked; above, the prediction before → after.",
}


def publish_attack(
    recipe: AttackRecipe, trained: TrainedAttack, data_dir: Path, folder: Path
) -> Path:
    """Write ATTACK-WEIGHTS.safetensors, .json (the card), .csv (the history), .md (the page) and
    figures; the test images are looked at here for the first time. Returns the weights' path."""
    data: Data = registry.find("datasets", recipe.data.name).load(
        split="test", limit=None, data_dir=data_dir, **recipe.data.params
    )
    assert data.labels is not None
    target, device = trained.target.model, next(trained.network.parameters()).device
    x, y = data.read(0, data.n).to(device), data.labels.to(device)
    done = evaluate_attack(recipe, trained.network, target, x, y)
    length = norms.distance(done.x_adv, x, "l2")[done.eligible].mean()

    weights = folder / f"{recipe.attack.name}-{recipe.weights}.safetensors"
    state = {key: value.cpu().contiguous() for key, value in trained.network.state_dict().items()}
    told = find_learner(recipe).metadata(data.shape, recipe.attack.threat)
    content = save(state, metadata=dict(told))
    write_atomic(weights, content)
    card = {
        "schema": 1,
        "recipe": dataclasses.asdict(recipe),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "target_fingerprint": trained.target.fingerprint,
        "test_fooled": int(done.fooled.sum()),
        "test_eligible": int(done.eligible.sum()),
        "test_n": data.n,
        "test_fingerprint": data.fingerprint,
        "test_mean_l2": float(length),
        "seed": recipe.seed,
        "best_epoch": trained.best.epoch,
        "epochs": len(trained.history),
        "train_n": trained.train_n,
        "validation_fooled": trained.best.validation_fooled,
        "validation_n": trained.best.validation_n,
        "median_seconds_per_epoch": median(epoch.seconds for epoch in trained.history),
        "environment": environment.describe_environment(device),
    }
    write_atomic(weights.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    write_atomic(weights.with_suffix(".csv"), _attack_history(trained).to_csv(index=False).encode())
    classes = data.classes or tuple(map(str, range(trained.target.classes)))
    on_cpu = type(done)(*(field.cpu() for field in done))
    drawn = {
        "curves": figures.plot_attack_curves(trained.history, trained.best),
        "examples": figures.plot_attack_examples(
            x.cpu(), y.cpu(), on_cpu, classes, recipe.attack.eps
        ),
    }
    for name, figure in drawn.items():
        drawing.save_figure(figure, weights.with_name(f"{weights.stem}-{name}"))
    write_atomic(
        weights.with_suffix(".md"), render_attack_page(recipe, card, weights.stem).encode()
    )
    return weights


def _attack_history(trained: TrainedAttack) -> pd.DataFrame:
    """A row for each epoch, a column for each part of each network's loss."""
    rows = []
    for epoch in trained.history:
        losses = {
            f"{network}_{part}": loss
            for network, parts in epoch.losses.items()
            for part, loss in parts.items()
        }
        fields = epoch._asdict()
        del fields["losses"]
        rows.append({"epoch": fields.pop("epoch"), **losses, **fields})
    return pd.DataFrame(rows)


def render_attack_page(recipe: AttackRecipe, card: Mapping[str, Any], stem: str) -> str:
    """The page in Markdown; `stem` begins the names of the weights and of their figures."""
    name = recipe.name if recipe.name in list_recipes() else f"{recipe.name}.toml"
    command = f"bench train {shlex.quote(name)} --seed {recipe.seed}"
    parts = [
        "<!-- Generated by `bench train` from the recipe and the card beside this page. -->",
        f"# {markdown.escape(recipe.title)}",
        _attack_sentence(recipe, card),
        markdown.format_code_block(command),
        "## Outcome",
        markdown.render_table(_attack_outcome(card)),
        "Fooled: of the images that the target classifies correctly, those that it does not when "
        "they are attacked. In brackets: 95 % Wilson intervals.",
        "## Figures",
    ]
    for figure, caption in ATTACK_FIGURES.items():
        parts += [f"![{figure}]({quote(f'{stem}-{figure}.png')})", caption]
    return "\n\n".join([*parts, "## Where it comes from", render_origin(card, stem)]) + "\n"


def _attack_sentence(recipe: AttackRecipe, card: Mapping[str, Any]) -> str:
    attacker, model, optimiser = recipe.attack, recipe.model, recipe.optimiser
    settings = ", ".join(
        f"{key} {value}" for key, value in dataclasses.asdict(attacker.params).items()
    )
    steps = ", ".join(f"{key} {value}" for key, value in optimiser.params.items())
    course = (
        f"{attacker.name} ({settings}) at {NORM_NAMES[attacker.norm]} eps {format_number(attacker.eps, 4)} "
        f"against {model.label} with weights {model.weights}: {optimiser.name} ({steps}), "
        f"{format_plural(recipe.epochs, 'epoch')} of {format_plural(card['train_n'], 'image')} of "
        f"{recipe.data.name} in batches of {recipe.batch_size}; {recipe.validation} training "
        f"images are held out, and the epoch that fools the most of them is kept."
    )
    source = f"Source of the recipe: {recipe.source}."
    return f"{markdown.escape(course)} {markdown.escape(source)}"


def _attack_outcome(card: Mapping[str, Any]) -> pd.DataFrame:
    rates = {
        "held-out images fooled": (card["validation_fooled"], card["validation_n"]),
        "test images fooled": (card["test_fooled"], card["test_eligible"]),
    }
    rows = [(what, f"{k}/{n}", format_rate(k, n)) for what, (k, n) in rates.items()]
    rows += [
        ("mean length of the change, l2", "", format_number(card["test_mean_l2"])),
        (f"time of an epoch, median ({describe_device(card)})", "",
         format_seconds(card["median_seconds_per_epoch"])),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["what", "count", "measured"])
