"""A model's card: what whoever contributes a model to a leaderboard says of it, in TOML.

[model] is the entry of a suite, so that whoever keeps the board can run the model; file names in
it start from the card's folder.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from bench.core.validation import Validator, parse_toml, read_text
from bench.models import serialized
from bench.suite.schema import ModelEntry

_Said = Annotated[str, StringConstraints(pattern=r"\S", max_length=500)]
"""Something has to be said, and it fits a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    schema: Literal[1]
    name: _Said
    """Of the model on the board."""
    source: _Said
    """The paper or page that describes it."""
    training: _Said
    """How it was trained, and against what."""
    data: _Said
    """What it was trained on; more than the training set makes another contest."""
    licence: _Said
    contact: _Said
    """Who answers for it."""
    model: Any
    """A ModelEntry; its label is the model's name in the run, the card's name if not given."""
    url: str = ""


def read(path: Path) -> Card:
    """The card in a file.

    Raises: SuiteError with one sentence for each mistake in it.
    """
    check = Validator(str(path))
    raw = parse_toml(read_text(path, "a model's card"), str(path))
    card: Card | None = check.fill(Card, raw, "")
    entry: ModelEntry | None = None
    if "model" in raw:
        entry = check.fill(ModelEntry, raw["model"], "model")
    check.stop_if_wrong()
    assert card is not None
    assert entry is not None
    entry = _absolute(entry, path.resolve().parent)
    labelled = dataclasses.replace(entry, label=entry.label or card.name)
    return dataclasses.replace(card, model=labelled)


def _absolute(entry: ModelEntry, folder: Path) -> ModelEntry:
    """The entry with the files that it names under their full path: the suite that it is run in
    lies elsewhere."""
    where, colon, name = entry.name.rpartition(":")
    if where.endswith(".py"):
        entry = dataclasses.replace(entry, name=f"{folder / where}{colon}{name}")
    if serialized.is_program_file(entry.name):
        entry = dataclasses.replace(entry, name=str(folder / entry.name))
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have is a library's
        if entry.weights and (folder / entry.weights).is_file():
            return dataclasses.replace(entry, weights=str(folder / entry.weights))
    return entry
