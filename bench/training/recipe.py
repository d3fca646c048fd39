"""A recipe is data: model, data, optimiser and schedule of one training run, read from TOML.

The recipes lie beside this file, one TOML each; the file name is the name for `bench train`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from bench.checking import Checker, text_of, toml
from bench.contracts import Count
from bench.errors import SuiteError, nearest

FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Part:
    """A thing by name, with its parameters."""

    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run."""

    schema: Literal[1]
    name: str = ""
    """The file's name; it stands in no file."""
    title: str
    source: str
    weights: str
    """Name under which the weights are published: models/weights/MODEL-WEIGHTS.safetensors."""
    seed: int
    epochs: Count
    batch_size: Count
    validation: Count
    """Training images held out; the test set is never looked at before the end."""
    store: Literal["float32", "float16"] = "float32"
    """Precision of the published weights; accuracy is measured with the weights as stored."""
    model: Part
    data: Part
    optimiser: Part
    """A class of torch.optim."""
    schedule: Part | None = None
    """A class of torch.optim.lr_scheduler, stepped once per epoch."""


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read(name: str) -> Recipe:
    """The recipe `name`: a bare name, or the path of a TOML file.

    Raises: SuiteError with every mistake of the file.
    """
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    if not path.exists():
        raise SuiteError(f"recipe '{name}' is unknown; {nearest(name, names())}")
    check = Checker(str(path))
    raw = toml(text_of(path, "a recipe"), str(path))
    for key in ("model", "data", "optimiser", "schedule"):
        if isinstance(raw.get(key), dict):
            raw[key] = check.fill(Part, raw[key], key)
    if "name" in raw:
        check.say("name", "a recipe is called by its file's name; leave it out")
    recipe: Recipe | None = check.fill(Recipe, raw, "")
    check.stop_if_wrong()
    assert recipe is not None
    return replace(recipe, name=path.stem)
