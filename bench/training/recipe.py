"""A recipe is data: model, data, optimiser and schedule of one training run, read from TOML.

The recipes lie beside this file, one TOML each; the file name is the name for `bench train`.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, ValidationError

from bench.errors import SuiteError, nearest

FOLDER = Path(__file__).parent
_STRICT = ConfigDict(extra="forbid", frozen=True, strict=True)


class Part(BaseModel):
    """A thing by name, with its parameters."""

    model_config = _STRICT
    name: str
    params: dict[str, Any] = {}


class Recipe(BaseModel):
    """One training run; `name` is the file's name."""

    model_config = _STRICT
    schema_: Literal[1]
    name: str
    title: str
    source: str
    weights: str
    """Name under which the weights are published: models/weights/MODEL-WEIGHTS.safetensors."""
    seed: int
    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    validation: Annotated[int, Ge(1)]
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
    if not path.is_file():
        raise SuiteError(f"recipe '{name}' is unknown; {nearest(name, names())}")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        raw["schema_"] = raw.pop("schema", None)
        if "name" in raw:
            raise SuiteError(f"{path}: name: a recipe is called by its file's name; leave it out")
        return Recipe(name=path.stem, **raw)
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: could not be read as a recipe: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        raise SuiteError(
            *(
                f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}"
                for e in error.errors()
            )
        ) from error
