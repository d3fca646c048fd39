"""The published outcome of a training run: safetensors weights and, beside them, their card."""

import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from bench import provenance, registry
from bench.contracts import Data
from bench.training.recipe import Recipe
from bench.training.standard import Trained, assess


def publish(recipe: Recipe, trained: Trained, data_dir: Path, folder: Path) -> Path:
    """Write MODEL-WEIGHTS.safetensors, .json (the card) and .csv (the history) into `folder`.

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
    device = next(trained.model.parameters()).device
    _, correct = assess(trained.model, data.read(0, data.n).to(device), data.labels.to(device))

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{recipe.model.name}-{recipe.weights}.safetensors"
    save_file(state, weights)
    card = {
        "schema": 1,
        "recipe": dataclasses.asdict(recipe),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "test_correct": correct,
        "test_n": data.n,
        "test_fingerprint": data.fingerprint,
        "best_epoch": trained.best.epoch,
        "validation_correct": trained.best.validation_correct,
        "validation_n": trained.best.validation_n,
        "epochs": len(trained.history),
        "seconds_per_epoch": sum(e.seconds for e in trained.history) / len(trained.history),
        "environment": provenance.environment(device),
    }
    weights.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    header = ",".join(field for field in trained.best._fields)
    lines = [",".join(str(value) for value in epoch) for epoch in trained.history]
    weights.with_suffix(".csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return weights
