"""The published outcome of a recipe: the best seed's weights and, beside them, card and page."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from bench.core import registry
from bench.core.contracts.dataset import Data
from bench.core.files import write_atomic
from bench.engine.functional.logits import predict_class, probabilities
from bench.reporting.plots import figures as drawing
from bench.storage import environment
from bench.workflows.training import figures, page
from bench.workflows.training.adversarial import AdversarialBatches
from bench.workflows.training.certified import certify_images
from bench.workflows.training.recipe import Recipe
from bench.workflows.training.trainer import (
    VALIDATION_ROWS,
    TrainedModel,
    predict_classes,
    rank_epoch,
)


class SeedRun(NamedTuple):
    """A recipe followed from one seed."""

    seed: int
    trained: TrainedModel


class ModelOutcome(NamedTuple):
    """A run's model on the test images, with its weights as they are stored; all on the CPU."""

    state: dict[str, Tensor]
    pred: Tensor
    """(n,)"""
    attacked: Tensor | None
    """Predictions on the attacked images, (n,); None unless trained against attacks."""
    confidence: Tensor | None
    """The softmax's value at each of those predictions, (n,)."""
    certified: Tensor | None = None
    """Whether each is certified at the radius that the recipe judges by, (n,); None unless trained
    for it."""


def select_best_run(runs: Sequence[SeedRun]) -> SeedRun:
    """The run to publish: the best on the validation images; of equals, the first."""
    return max(runs, key=lambda run: rank_epoch(run.trained.best))


def publish_model(recipe: Recipe, runs: Sequence[SeedRun], data_dir: Path, folder: Path) -> Path:
    """Write MODEL-WEIGHTS.safetensors, .json (the card), .csv (the history), .md (the page) and
    figures of the `best` run; the test images are looked at after it is chosen.

    The weights are rounded to the recipe's `store` precision first, and every test figure is that
    of the rounded weights. Returns the path of the weights.
    """
    kept = select_best_run(runs)
    data: Data = registry.find("datasets", recipe.data.name).load(
        split="test", limit=None, data_dir=data_dir, **recipe.data.params
    )
    assert data.labels is not None
    images, labels = data.read(0, data.n), data.labels
    names = data.classes or tuple(map(str, range(int(labels.max()) + 1)))
    judged = {run.seed: _test_model(recipe, run, images, labels) for run in runs}
    chosen = judged[kept.seed]
    right = chosen.pred == labels
    of = labels.bincount(minlength=len(names)).tolist()
    correct = labels[right].bincount(minlength=len(names)).tolist()

    weights = folder / f"{recipe.model.name}-{recipe.weights}.safetensors"
    content = save(chosen.state)
    write_atomic(weights, content)
    last = kept.trained
    card = {
        "schema": 1,
        "recipe": dataclasses.asdict(recipe),
        "seed": kept.seed,
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "test_correct": int(right.sum()),
        "test_n": data.n,
        "test_fingerprint": data.fingerprint,
        "test_per_class": {name: [k, n] for name, k, n in zip(names, correct, of, strict=True)},
        **_attacked_counts(chosen, labels),
        **_certified_counts(chosen),
        "best_epoch": last.best.epoch,
        "epochs": len(last.history),
        "train_correct": last.best.train_correct,
        "train_n": last.best.train_n,
        **_validation_counts(last),
        "validation_n": last.best.validation_n,
        "seeds": [_seed_entry(run, judged[run.seed], labels) for run in runs],
        "median_seconds_per_epoch": median(epoch.seconds for epoch in last.history),
        "environment": environment.describe_environment(next(last.model.parameters()).device),
    }
    write_atomic(weights.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    lines = [
        ",".join("" if cell is None else str(cell) for cell in row)
        for row in (last.best._fields, *last.history)
    ]
    write_atomic(weights.with_suffix(".csv"), ("\n".join(lines) + "\n").encode())
    drawn = {
        "curves": figures.plot_learning_curves(last.history, last.best),
        "per-class": figures.plot_class_accuracy(correct, of, names),
        "predictions": figures.plot_predictions(images, labels, chosen.pred, names),
    }
    for name in page.FIGURES:
        drawing.save_figure(drawn[name], weights.with_name(f"{weights.stem}-{name}"))
    page.write_page(recipe, weights)
    return weights


def _test_model(recipe: Recipe, run: SeedRun, images: Tensor, labels: Tensor) -> ModelOutcome:
    model, store = run.trained.model, getattr(torch, recipe.store)
    state = {
        key: value.detach().to("cpu", store if value.is_floating_point() else None).contiguous()
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)  # into float32 parameters
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


def _attacked_counts(judged: ModelOutcome, labels: Tensor) -> Mapping[str, Any]:
    """What the card tells of the test images under the training attack at its full eps."""
    if judged.attacked is None or judged.confidence is None:
        return {}
    wrong = judged.attacked != labels
    return {
        "test_adversarial_correct": int((~wrong).sum()),
        "test_adversarial_mean_confidence_wrong": (
            float(judged.confidence[wrong].mean()) if wrong.any() else None
        ),
    }


def _certified_counts(judged: ModelOutcome) -> Mapping[str, int]:
    """What the card tells of the test images under certified training."""
    if judged.certified is None:
        return {}
    return {"test_certified_correct": int(judged.certified.sum())}


def _validation_counts(trained: TrainedModel) -> Mapping[str, int]:
    found = {"validation_correct": trained.best.validation_correct}
    if trained.best.validation_adversarial_correct is not None:
        found["validation_adversarial_correct"] = trained.best.validation_adversarial_correct
    if trained.best.validation_certified_correct is not None:
        found["validation_certified_correct"] = trained.best.validation_certified_correct
    return found


def _seed_entry(run: SeedRun, judged: ModelOutcome, labels: Tensor) -> Mapping[str, Any]:
    """One seed's entry on the card."""
    return {
        "seed": run.seed,
        "best_epoch": run.trained.best.epoch,
        "epochs": len(run.trained.history),
        **_validation_counts(run.trained),
        "test_correct": int((judged.pred == labels).sum()),
        **_attacked_counts(judged, labels),
        **_certified_counts(judged),
    }
