"""Put other models in place of those of a suite, whose data and attacks stay as they are."""

from pathlib import Path
from typing import Any

from bench.core import registry
from bench.core.validation import parse_toml, read_text
from bench.suite import composer
from bench.suite.composer import SuiteRequest

_LEFT_OUT = ("data", "models", "attacks", "published")
"""Tables that are written in their own way, and published figures, which are of other models."""


def replace_models(request: SuiteRequest, base: Path) -> str:
    """Compose the text of a suite with the models of a request in place of its own.

    Args:
        request: The suite's file, and the models.
        base: Folder that the text is to be stored in; relative paths are written for it.

    Returns:
        TOML, with the name of the suite, since it is its threat model.

    Raises:
        SuiteError: The suite is no valid TOML, or a parameter is none of the models.
    """
    assert request.suite is not None
    raw = parse_toml(read_text(request.suite, "a suite"), str(request.suite))
    if not isinstance(raw.get("data"), dict) or not isinstance(raw.get("attacks"), list):
        return request.suite.read_text(encoding="utf-8")  # whose check names the mistakes
    moved = _relocate({**raw, "models": []}, request.suite.resolve().parent, base)
    models = composer.compose_models(request, composer.assign_params(request), base)
    top = {key: value for key, value in moved.items() if key not in _LEFT_OUT}
    return composer.format_suite(composer.HEADER, top, moved["data"], models, moved["attacks"])


def _relocate(value: Any, folder: Path, base: Path) -> Any:
    """Rewrite every path in a suite's tables that is a file, or a file.py:NAME, of its folder."""
    if isinstance(value, dict):
        return {key: _relocate(each, folder, base) for key, each in value.items()}
    if isinstance(value, list):
        return [_relocate(each, folder, base) for each in value]
    if not isinstance(value, str):
        return value
    file, colon, name = value.rpartition(":")
    path, rest = (file, colon + name) if file.endswith(".py") else (value, "")
    try:
        is_file = "." in path and (folder / path).is_file()
    except (OSError, ValueError):  # a text that no file can have as its name
        is_file = False
    return registry.relocate_path(str(folder / path), base) + rest if is_file else value
