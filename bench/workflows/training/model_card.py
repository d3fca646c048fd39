"""Publish a trained model or attack: weights, card, history, page and figures.

The card (JSON) holds every number of the page; both kinds of training write the same set of files.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import save
from torch import Tensor

from bench.core import registry
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.core.files import write_atomic
from bench.core.lock import hold_lock
from bench.engine.functional import norms
from bench.engine.functional.logits import predict_class, probabilities
from bench.reporting.plots.saving import save_figure
from bench.storage import environment
from bench.workflows.training import figures, page
from bench.workflows.training.added_seeds import PublishedTraining, find_training
from bench.workflows.training.adversarial import AdversarialBatches
from bench.workflows.training.attack_trainer import (
    AttackOutcome,
    TrainedAttack,
    evaluate_attack,
    find_learner,
)
from bench.workflows.training.certified import certify_images
from bench.workflows.training.recipe import AttackRecipe, Recipe
from bench.workflows.training.trainer import (
    VALIDATION_ROWS,
    TrainedModel,
    predict_classes,
    rank_epoch,
)

PUBLISHING_SECONDS = 60.0
"""How long to wait for another process that publishes into the same folder."""


class SeedRun(NamedTuple):
    """The training of a recipe from one seed."""

    seed: int
    trained: TrainedModel


class ModelOutcome(NamedTuple):
    """Predictions of a run's model on the test images, with its stored weights; on the CPU."""

    state: dict[str, Tensor]
    pred: Tensor
    """(n,)"""
    attacked: Tensor | None
    """Predictions on the attacked images, (n,); None without adversarial training."""
    confidence: Tensor | None
    """Softmax confidence of each of those predictions, (n,)."""
    certified: Tensor | None = None
    """Whether each image is certified at the recipe's `judged` radius, (n,); None without certified
    training."""


def select_best_run(runs: Sequence[SeedRun]) -> SeedRun:
    """Select the run to publish.

    Args:
        runs: All runs of a recipe.

    Returns:
        The best on the validation images; of equals, the first.
    """
    return max(runs, key=lambda run: rank_epoch(run.trained.best))


def publish_model(
    recipe: Recipe,
    runs: Sequence[SeedRun],
    data_dir: Path,
    folder: Path,
    *,
    add: bool = False,
    fresh: bool = False,
) -> Path:
    """Write MODEL-WEIGHTS.safetensors, .json, .csv, .md and figures of the best run.

    The test images are first used after the run is chosen. The weights are rounded to the recipe's
    `store` precision first, and every test figure is that of the rounded weights.

    Args:
        recipe: What was trained.
        runs: All runs of the recipe, or those to be added.
        data_dir: Folder of the data sets.
        folder: Where the files go.
        add: Add the runs to the training whose card is in the folder: weights, history and figures
            are replaced only if one of the runs ranks better than the kept seed, see `rank_epoch`.
        fresh: With `add`, whether a seed of the card, or the card of another recipe, is replaced.

    Returns:
        Path of the weights.

    Raises:
        SuiteError: The data are missing, a file cannot be written, or the runs cannot be added, see
            `find_training`.
    """
    best = select_best_run(runs)
    data, labels = _load_test_data(recipe, data_dir)
    images = data.read(0, data.n)
    outcomes = {run.seed: _test_model(recipe, run, images, labels) for run in runs}
    entries = [_seed_entry(run, outcomes[run.seed], labels) for run in runs]
    weights = folder / f"{recipe.model.name}-{recipe.weights}.safetensors"
    # Another seed's process may add to the card at the same moment: neither entry may be lost.
    with hold_lock(folder, lambda text: None, wait_seconds=PUBLISHING_SECONDS):
        seeds = [run.seed for run in runs]
        earlier = find_training(recipe, folder, seeds, fresh) if add else None
        if earlier is not None:
            _check_test_images(earlier, data, weights)
            entries = sorted([*_list_others(earlier), *entries], key=lambda entry: entry["seed"])
        if earlier is not None and rank_epoch(earlier.best) >= rank_epoch(best.trained.best):
            card = {**earlier.card, "recipe": dataclasses.asdict(recipe), "seeds": entries}
            _write_card(weights, card)
        else:
            _write_run(recipe, best, outcomes[best.seed], entries, data, weights)
        page.write_page(recipe, weights)
    return weights


def _write_run(
    recipe: Recipe,
    run: SeedRun,
    outcome: ModelOutcome,
    entries: Sequence[Mapping[str, Any]],
    data: Data,
    weights: Path,
) -> None:
    """Write weights, card, history and figures of the run that is kept."""
    labels = data.labels
    assert labels is not None
    names = data.classes or tuple(map(str, range(int(labels.max()) + 1)))
    right = outcome.pred == labels
    of = labels.bincount(minlength=len(names)).tolist()
    correct = labels[right].bincount(minlength=len(names)).tolist()
    content = save(outcome.state)
    trained = run.trained
    card = {
        "schema": 1,
        "recipe": dataclasses.asdict(recipe),
        "seed": run.seed,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "test_correct": int(right.sum()),
        "test_n": data.n,
        "test_fingerprint": data.fingerprint,
        "test_per_class": {name: [k, n] for name, k, n in zip(names, correct, of, strict=True)},
        **_attacked_counts(outcome, labels),
        **_certified_counts(outcome),
        "best_epoch": trained.best.epoch,
        "epochs": len(trained.history),
        "train_correct": trained.best.train_correct,
        "train_n": trained.best.train_n,
        **_validation_counts(trained),
        "validation_n": trained.best.validation_n,
        "seeds": entries,
        "median_seconds_per_epoch": median(epoch.seconds for epoch in trained.history),
        "environment": environment.describe_environment(next(trained.model.parameters()).device),
    }
    history = [
        ",".join("" if cell is None else str(cell) for cell in row)
        for row in (trained.best._fields, *trained.history)
    ]
    drawn = {
        "curves": figures.plot_learning_curves(trained.history, trained.best),
        "per-class": figures.plot_class_accuracy(correct, of, names),
        "predictions": figures.plot_predictions(data.read(0, data.n), labels, outcome.pred, names),
    }
    _write_files(weights, content, card, "\n".join(history) + "\n", drawn)


def read_seeds(weights: Path) -> tuple[int, list[int]]:
    """Read the seeds of a training from the card beside its weights.

    Args:
        weights: Path of the weights.

    Returns:
        The kept seed, and all seeds.
    """
    card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    return card["seed"], [entry["seed"] for entry in card["seeds"]]


def publish_attack(
    recipe: AttackRecipe, trained: TrainedAttack, data_dir: Path, folder: Path
) -> Path:
    """Write ATTACK-WEIGHTS.safetensors, .json, .csv, .md and figures of a trained attack.

    The test images are first used here.

    Args:
        recipe: What was trained.
        trained: The trained attack.
        data_dir: Folder of the data sets.
        folder: Where the files go.

    Returns:
        Path of the weights.

    Raises:
        SuiteError: The data are missing, or a file cannot be written.
    """
    data, labels = _load_test_data(recipe, data_dir)
    target, device = trained.target.model, next(trained.network.parameters()).device
    x, y = data.read(0, data.n).to(device), labels.to(device)
    outcome = evaluate_attack(recipe, trained.network, target, x, y)
    mean_l2 = norms.distance(outcome.x_adv, x, "l2")[outcome.eligible].mean()

    weights = folder / f"{recipe.attack.name}-{recipe.weights}.safetensors"
    state = {key: value.cpu().contiguous() for key, value in trained.network.state_dict().items()}
    metadata = find_learner(recipe).metadata(data.shape, recipe.attack.threat)
    content = save(state, metadata=dict(metadata))
    card = {
        "schema": 1,
        "recipe": dataclasses.asdict(recipe),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "target_fingerprint": trained.target.fingerprint,
        "test_fooled": int(outcome.fooled.sum()),
        "test_eligible": int(outcome.eligible.sum()),
        "test_n": data.n,
        "test_fingerprint": data.fingerprint,
        "test_mean_l2": float(mean_l2),
        "seed": recipe.seed,
        "best_epoch": trained.best.epoch,
        "epochs": len(trained.history),
        "train_n": trained.train_n,
        "validation_fooled": trained.best.validation_fooled,
        "validation_n": trained.best.validation_n,
        "median_seconds_per_epoch": median(epoch.seconds for epoch in trained.history),
        "environment": environment.describe_environment(device),
    }
    classes = data.classes or tuple(map(str, range(trained.target.classes)))
    on_cpu = AttackOutcome(*(field.cpu() for field in outcome))
    drawn = {
        "curves": figures.plot_attack_curves(trained.history, trained.best),
        "examples": figures.plot_attack_examples(
            x.cpu(), y.cpu(), on_cpu, classes, recipe.attack.eps
        ),
    }
    _write_files(weights, content, card, _attack_history(trained).to_csv(index=False), drawn)
    text = page.render_attack_page(recipe, card, weights.stem)
    write_atomic(weights.with_suffix(".md"), text.encode())
    return weights


def _load_test_data(recipe: Recipe | AttackRecipe, data_dir: Path) -> tuple[Data, Tensor]:
    data: Data = registry.find("datasets", recipe.data.name).load(
        split="test", limit=None, data_dir=data_dir, **recipe.data.params
    )
    assert data.labels is not None
    return data, data.labels


def _write_files(
    weights: Path,
    content: bytes,
    card: Mapping[str, Any],
    history: str,
    drawn: Mapping[str, Figure],
) -> None:
    """Write the weights, the card, the history and the figures."""
    write_atomic(weights, content)
    _write_card(weights, card)
    write_atomic(weights.with_suffix(".csv"), history.encode())
    for name, figure in drawn.items():
        save_figure(figure, weights.with_name(f"{weights.stem}-{name}"))


def _write_card(weights: Path, card: Mapping[str, Any]) -> None:
    write_atomic(weights.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())


def _attack_history(trained: TrainedAttack) -> pd.DataFrame:
    """Return one row per epoch, with one column per term of each network's loss."""
    rows = []
    for epoch in trained.history:
        losses = {
            f"{network}_{term}": loss
            for network, terms in epoch.losses.items()
            for term, loss in terms.items()
        }
        fields = epoch._asdict()
        del fields["losses"]
        rows.append({"epoch": fields.pop("epoch"), **losses, **fields})
    return pd.DataFrame(rows)


def _test_model(recipe: Recipe, run: SeedRun, images: Tensor, labels: Tensor) -> ModelOutcome:
    model, store = run.trained.model, getattr(torch, recipe.store)
    state = {
        key: value.detach().to("cpu", store if value.is_floating_point() else None).contiguous()
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)  # the parameters stay float32
    device = next(model.parameters()).device
    images, labels = images.to(device), labels.to(device)
    pred = predict_classes(model, images).cpu()
    if recipe.certified is not None:
        bounded = certify_images(recipe.certified, model, images, labels)
        return ModelOutcome(state, pred, None, None, bounded.cpu())
    if recipe.adversarial is None:
        return ModelOutcome(state, pred, None, None)
    craft, answers = AdversarialBatches(recipe.adversarial, run.seed), []
    for at in torch.arange(len(labels), device=device).split(VALIDATION_ROWS):
        x_adv = craft.validate(model, images[at], labels[at], at)
        with torch.no_grad():
            answers.append(model(x_adv).cpu())
    attacked = predict_class(torch.cat(answers))
    confidence = probabilities(torch.cat(answers)).gather(1, attacked[:, None])[:, 0]
    return ModelOutcome(state, pred, attacked, confidence)


def _attacked_counts(outcome: ModelOutcome, labels: Tensor) -> Mapping[str, Any]:
    """Return the card's entries on test images under the training attack at its full eps."""
    if outcome.attacked is None or outcome.confidence is None:
        return {}
    wrong = outcome.attacked != labels
    return {
        "test_adversarial_correct": int((~wrong).sum()),
        "test_adversarial_mean_confidence_wrong": (
            float(outcome.confidence[wrong].mean()) if wrong.any() else None
        ),
    }


def _certified_counts(outcome: ModelOutcome) -> Mapping[str, int]:
    """Return the card's entries on test images under certified training."""
    if outcome.certified is None:
        return {}
    return {"test_certified_correct": int(outcome.certified.sum())}


def _validation_counts(trained: TrainedModel) -> Mapping[str, int]:
    counts = {"validation_correct": trained.best.validation_correct}
    if trained.best.validation_adversarial_correct is not None:
        counts["validation_adversarial_correct"] = trained.best.validation_adversarial_correct
    if trained.best.validation_certified_correct is not None:
        counts["validation_certified_correct"] = trained.best.validation_certified_correct
    return counts


def _seed_entry(run: SeedRun, outcome: ModelOutcome, labels: Tensor) -> Mapping[str, Any]:
    """Return one seed's entry of the card."""
    return {
        "seed": run.seed,
        "best_epoch": run.trained.best.epoch,
        "epochs": len(run.trained.history),
        **_validation_counts(run.trained),
        "test_correct": int((outcome.pred == labels).sum()),
        **_attacked_counts(outcome, labels),
        **_certified_counts(outcome),
        "origin": _describe_origin(
            environment.describe_environment(next(run.trained.model.parameters()).device)
        ),
    }


def _describe_origin(about: Mapping[str, Any]) -> dict[str, Any]:
    """Shorten the environment of a training to what may change its weights."""
    return {
        "device": about["device"],
        "processor": about["device_name"] or about["processor"],
        "threads": about["threads"],
        "torch": about["packages"]["torch"],
        "git": about["git"],
    }


def _list_others(earlier: PublishedTraining) -> list[dict[str, Any]]:
    """List the entries that remain.

    Those without an origin are of an older card, whose seeds were trained by one call.
    """
    origin = _describe_origin(earlier.card["environment"])
    return [{**entry, "origin": entry.get("origin", origin)} for entry in earlier.others]


def _check_test_images(earlier: PublishedTraining, data: Data, weights: Path) -> None:
    """Check that the seeds of the card were tested on the same images."""
    there = earlier.card["test_fingerprint"]
    if there != data.fingerprint:
        raise SuiteError(
            f"{weights.with_suffix('.json')}: expected a card of the test images of {data.name} "
            f"with fingerprint {data.fingerprint[:16]}, got {there[:16]}; train into another folder"
        )
