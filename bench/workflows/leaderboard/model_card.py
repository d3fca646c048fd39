"""Read the card of a contributed model, in TOML.

`[model]` is the entry of a suite, so that the leaderboard can run the model; file names in it are
relative to the card's folder.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from bench.core.validation import Validator, parse_toml, read_text
from bench.models import serialized
from bench.suite.schema import ModelEntry

_Text = Annotated[str, StringConstraints(pattern=r"\S", max_length=500)]
"""Not blank, and short enough for a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Description of a contributed model."""

    schema: Literal[1]
    name: _Text
    """Name of the model on the leaderboard."""
    source: _Text
    """The paper or page that describes it."""
    training: _Text
    """How it was trained, and against what."""
    data: _Text
    """Training data; models with additional data do not compare."""
    licence: _Text
    contact: _Text
    """Who is responsible for the entry."""
    model: Any
    """A ModelEntry; its label is the model's name in the run, by default the card's name."""
    url: str = ""


def read_card(path: Path) -> ModelCard:
    """Read a card.

    Args:
        path: TOML file.

    Returns:
        The card, with absolute paths.

    Raises:
        SuiteError: The card is invalid; one sentence for each mistake.
    """
    check = Validator(str(path))
    raw = parse_toml(read_text(path, "a model's card"), str(path))
    card: ModelCard | None = check.fill(ModelCard, raw, "")
    entry: ModelEntry | None = None
    if isinstance(raw.get("model"), dict) and "detector" in raw["model"]:
        check.say(
            "model.detector",
            "expected none, since a leaderboard ranks models that classify every image; take the "
            "key out",
        )
    elif "model" in raw:
        entry = check.fill(ModelEntry, raw["model"], "model")
    check.stop_if_wrong()
    assert card is not None
    assert entry is not None
    entry = _absolute(entry, path.resolve().parent)
    labelled = dataclasses.replace(entry, label=entry.label or card.name)
    return dataclasses.replace(card, model=labelled)


def _absolute(entry: ModelEntry, folder: Path) -> ModelEntry:
    """Make the entry's file names absolute, as its suite is in another folder."""
    where, colon, name = entry.name.rpartition(":")
    if where.endswith(".py"):
        entry = dataclasses.replace(entry, name=f"{folder / where}{colon}{name}")
    if serialized.is_program_file(entry.name):
        entry = dataclasses.replace(entry, name=str(folder / entry.name))
    with contextlib.suppress(OSError, ValueError):  # a name that no file can have is a library's
        if entry.weights and (folder / entry.weights).is_file():
            return dataclasses.replace(entry, weights=str(folder / entry.weights))
    return entry
