"""The published outcome of a training run: safetensors weights and, beside them, their card."""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save

from bench import plots, provenance, registry
from bench.contracts import Data
from bench.files import write_whole
from bench.training import figures
from bench.training.recipe import Recipe
from bench.training.standard import Trained, predict


def publish(recipe: Recipe, trained: Trained, data_dir: Path, folder: Path) -> Path:
    """Write MODEL-WEIGHTS.safetensors, .json (the card), .csv (the history) and figures.

    The weights are rounded to the recipe's `store` precision first, and the test accuracy on the
    card is that of the rounded weights. Returns the path of the weights.
    """
    store = getattr(torch, recipe.store)
    state = {
        key: value.detach().cpu().to(store).contiguous()
        for key, value in trained.model.state_dict().items()
    }
    trained.model.load_state_dict({key: value.float() for key, value in state.items()})
    data: Data = registry.find("datasets", recipe.data.name).load(
        split="test", limit=None, data_dir=data_dir, **recipe.data.params
    )
    assert data.labels is not None
    images, names = data.read(0, data.n), data.classes
    device = next(trained.model.parameters()).device
    pred = predict(trained.model, images.to(device)).cpu()
    right = pred == data.labels
    of = data.labels.bincount(minlength=len(names)).tolist()
    correct = data.labels[right].bincount(minlength=len(names)).tolist()

    weights = folder / f"{recipe.model.name}-{recipe.weights}.safetensors"
    content = save(state)
    write_whole(weights, content)
    card = {
        "schema": 1,
        "recipe": dataclasses.asdict(recipe),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
        "test_correct": int(right.sum()),
        "test_n": data.n,
        "test_fingerprint": data.fingerprint,
        "test_per_class": {name: [k, n] for name, k, n in zip(names, correct, of, strict=True)},
        "best_epoch": trained.best.epoch,
        "validation_correct": trained.best.validation_correct,
        "validation_n": trained.best.validation_n,
        "epochs": len(trained.history),
        "seconds_per_epoch": sum(e.seconds for e in trained.history) / len(trained.history),
        "environment": provenance.environment(device),
    }
    write_whole(weights.with_suffix(".json"), (json.dumps(card, indent=1) + "\n").encode())
    lines = [",".join(map(str, row)) for row in (trained.best._fields, *trained.history)]
    write_whole(weights.with_suffix(".csv"), ("\n".join(lines) + "\n").encode())
    drawn = {
        "curves": figures.curves(trained.history, trained.best),
        "per-class": figures.per_class(correct, of, names),
        "predictions": figures.predictions(images, data.labels, pred, names),
    }
    for name, figure in drawn.items():
        plots.save(figure, weights.with_name(f"{weights.stem}-{name}"))
    return weights
