"""Write the card of a model from its run and from what the user says about it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.core import registry
from bench.core.errors import RecordError, SuiteError, nearest
from bench.core.files import write_atomic
from bench.core.validation import parse_toml, read_text
from bench.storage import manifest
from bench.suite.composer import FILE, OBJECTS_HEADER, format_toml
from bench.workflows.leaderboard.entries import CARD

HEADER = "# Written by bench leaderboard; what is empty must be filled in."
FIELDS = {
    "source": "the paper or page that describes it",
    "training": "how it was trained, and against what",
    "data": "training data; models with additional data do not compare",
    "licence": "licence of the weights",
    "contact": "who is responsible for the entry",
}
"""Key of a card that no run knows -> what it says."""
OPTIONS = {
    "source": "--source",
    "training": "--training",
    "data": "--trained-on",
    "licence": "--licence",
    "contact": "--contact",
}
"""Key of a card -> the option that says it."""


def write_card(run: Path, label: str | None, given: Mapping[str, str]) -> Path:
    """Write the card of a model into the folder of its run.

    What an earlier call or the user wrote there is kept where nothing else is given.

    Args:
        run: Folder of the run.
        label: The model's label in the run; None if the run has one model.
        given: Key of the card -> text, of `name`, `url` and FIELDS.

    Returns:
        Path of the card.

    Raises:
        SuiteError: Something is still empty, which the sentence names, or there is no run.
        RecordError: The run's manifest is damaged.
    """
    path = run / CARD
    earlier: dict[str, Any] = {}
    if path.exists():
        earlier = parse_toml(read_text(path, "a model's card"), str(path))
    table = earlier.get("model")
    if label is not None or not isinstance(table, dict):
        table = _find_model(run, label)
    known = {"name": table.get("label") or table.get("name", ""), **earlier, **given}
    texts = {key: str(known.get(key, "")) for key in ("name", *FIELDS, "url")}
    write_atomic(path, _format_card(texts, table).encode())
    empty = [key for key in FIELDS if not texts[key].strip()]
    if empty:
        options = ", ".join(OPTIONS[key] for key in empty)
        raise SuiteError(
            f"{path}: expected a text for {', '.join(empty)}, got none; fill it in there or give "
            f"{options}, and repeat the command"
        )
    return path


def _format_card(texts: Mapping[str, str], table: Mapping[str, Any]) -> str:
    lines = [HEADER, "schema = 1"]
    for key, text in texts.items():
        if text or key in FIELDS:
            about = f"  # {FIELDS[key]}" if not text.strip() else ""
            lines.append(f"{key} = {format_toml(text)}{about}")
    lines += ["", "[model]", *(f"{key} = {format_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _find_model(run: Path, label: str | None) -> dict[str, Any]:
    """Return the table of a run's model, with file names that start from the run's folder."""
    about, _ = manifest.read_manifest(run)
    text = str(about["suite"]["text"])
    if text.startswith(OBJECTS_HEADER):
        raise SuiteError(
            f"{run}: expected models that can be built again, got Python objects; run "
            "bench run SUITE --model file.py:NAME"
        )
    try:
        tables = {
            str(table.get("label") or table["name"]): table
            for table in tomllib.loads(text)["models"]
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{run}: its suite is damaged; run it again") from error
    if label is None and len(tables) > 1:
        raise SuiteError(
            f"{run}: expected the run of one model, got {len(tables)} ({', '.join(tables)}); name "
            "the one to be added by --model"
        )
    chosen = next(iter(tables)) if label is None else label
    if chosen not in tables:
        raise SuiteError(f"{run}: no model '{chosen}' in this run; {nearest(chosen, tables)}")
    table = {**tables[chosen], "label": chosen}
    stored = run / FILE
    if stored.is_file() and stored.read_bytes() == text.encode():
        return table  # its file names start from there already
    base = Path(about["suite"].get("base") or ".")
    table["name"] = _relocate(str(table["name"]), base, run)
    if table.get("weights"):
        table["weights"] = _relocate(str(table["weights"]), base, run)
    return table


def _relocate(name: str, base: Path, folder: Path) -> str:
    """Rewrite a name that starts from `base`, if it is that of a file, to start from `folder`."""
    file, attribute = registry.split_file("models", name)
    if file:
        return registry.relocate_path(str(base / file), folder) + attribute
    return registry.relocate_path(str(base / name), folder) if (base / name).is_file() else name
