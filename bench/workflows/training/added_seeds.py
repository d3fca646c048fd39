"""Add seeds to a training that is published already: what may be added, and to what.

The weights of the seeds that were not kept are not stored, so only the kept one competes with an
added one; that is enough, since it ranks at least as high as every other seed of its card.
"""

import csv
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.errors import SuiteError
from bench.workflows.training.recipe import Recipe
from bench.workflows.training.trainer import Epoch


class PublishedTraining(NamedTuple):
    """A training whose card, weights and history lie in a folder."""

    card: dict[str, Any]
    best: Epoch
    """The epoch of the kept seed whose weights are published."""
    others: list[dict[str, Any]]
    """Entries of the card's seeds that are not trained again."""


def find_training(
    recipe: Recipe, folder: Path, seeds: Sequence[int], fresh: bool
) -> PublishedTraining | None:
    """Find the published training to which seeds are added.

    Args:
        recipe: What is trained.
        folder: Folder of the card.
        seeds: Seeds that are trained.
        fresh: Whether a seed of the card, or the card of another recipe, may be replaced.

    Returns:
        The training; None if there is no card, or if nothing of it remains.

    Raises:
        SuiteError: The card is of another recipe or has one of the seeds, and `fresh` is false; the
            kept seed would be replaced and another one remain; or a file is damaged.
    """
    path = folder / f"{recipe.model.name}-{recipe.weights}.json"
    if not path.exists():
        return None
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        difference = _compare_recipes(recipe, card["recipe"])
        others = [entry for entry in card["seeds"] if entry["seed"] not in seeds]
        taken = [entry["seed"] for entry in card["seeds"] if entry["seed"] in seeds]
        kept, _, _ = card["seed"], card["test_fingerprint"], card["environment"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SuiteError(
            f"{path}: expected the card of a training, got a file that cannot be read as one; "
            "delete it or train into another folder"
        ) from error
    if difference and not fresh:
        raise SuiteError(
            f"{path}: is the card of another recipe ({difference}); train into another folder, or "
            "replace it with --fresh"
        )
    if taken and not fresh:
        raise SuiteError(
            f"{path}: has seed {taken[0]} already; train another seed, or this one again with "
            "--fresh"
        )
    if difference or not others:
        return None
    if kept in taken:
        raise SuiteError(
            f"{path}: seed {kept} is the published one, and the weights of seed "
            f"{others[0]['seed']}, which might take its place, are not stored; train all seeds of "
            "the card again, or train into another folder"
        )
    _check_weights(path.with_suffix(".safetensors"), card)
    return PublishedTraining(card, _read_best_epoch(path.with_suffix(".csv"), card), others)


def _compare_recipes(recipe: Recipe, published: Mapping[str, Any]) -> str:
    """Name the first field that affects the weights and differs; "" if there is none.

    A card that is older than a field has the field's default. The name comes last: it is that of
    the recipe's file and says less than a value.
    """
    wanted = json.loads(json.dumps(dataclasses.asdict(recipe)))
    for field in sorted(dataclasses.fields(Recipe), key=lambda field: field.name == "name"):
        if field.name == "seed" or not (field.repr or field.name == "store"):
            continue
        there, here = published.get(field.name, field.default), wanted[field.name]
        if there != here:
            return f"{field.name} is {there} there and {here} in the recipe"
    return ""


def _check_weights(path: Path, card: Mapping[str, Any]) -> None:
    """Check that the published weights are those of the card."""
    if not path.exists() or (
        hashlib.sha256(path.read_bytes()).hexdigest() != card.get("weights_sha256")
    ):
        raise SuiteError(
            f"{path}: expected the weights of the card beside it (weights_sha256), got "
            f"{'others' if path.exists() else 'no file'}; copy them there or train into another "
            "folder"
        )


def _read_best_epoch(path: Path, card: Mapping[str, Any]) -> Epoch:
    """Read the epoch that the card names from the history beside it."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["epoch"]) == card["best_epoch"]]
        best = Epoch(**{name: _read_cell(name, rows[0].get(name)) for name in Epoch._fields})
        if best.validation_correct == card["validation_correct"]:
            return best
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        pass
    raise SuiteError(
        f"{path}: expected the history with the kept epoch of the card beside it, got another file "
        "or none; copy it there or train into another folder"
    )


def _read_cell(name: str, text: str | None) -> Any:
    """Parse a cell of the history; a column that the file is older than is None."""
    if not text:
        return None
    return int(text) if name == "epoch" or name.endswith(("_correct", "_n")) else float(text)
