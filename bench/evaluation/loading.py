"""From a suite's entries to live objects: the device, the data, the models with their weights."""

import dataclasses
import hashlib
import inspect
import shlex
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core import checkpoint, files, registry, rng
from bench.core.contracts.dataset import Data, Dataset
from bench.core.contracts.model import Model
from bench.core.contracts.types import Access
from bench.core.errors import SuiteError, describe, location, nearest
from bench.datasets import inputs
from bench.datasets.in_memory import make_data
from bench.models.fingerprint import describe_value
from bench.models.preflight.checks import LoadedModel, preflight
from bench.models.query_only import QueryOnlyModel
from bench.suite.schema import DataEntry, ModelEntry

WEIGHTS = Path(__file__).parents[1] / "models" / "weights"
RECIPES = Path(__file__).parents[1] / "workflows" / "training" / "recipes"


def select_device(name: str) -> torch.device:
    """The device meant by "auto", "cpu" or "cuda[:N]".

    Raises: SuiteError if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise SuiteError(f"device '{name}': expected auto, cpu or cuda[:N]") from error
    if chosen.type not in ("cpu", "cuda"):
        raise SuiteError(f"device '{name}': expected auto, cpu or cuda[:N]")
    there = torch.cuda.device_count()
    if chosen.type == "cuda" and (chosen.index or 0) >= there:
        raise SuiteError(
            f"device '{name}' is not there: torch sees {there} CUDA devices; use --device cpu"
        )
    return chosen


# -------------------------------------------------------------------------------------------- data


def data_folder(given: str | Path | None) -> Path:
    """Where data sets lie: as given, else BENCH_DATA_DIR, else the platform's user cache."""
    return files.data_folder(given)


def load_data(entry: DataEntry, base: Path, data_dir: Path, limit: int | None) -> Data:
    """The suite's data set, at most its own limit and `limit` examples of it.

    Raises: SuiteError if data are missing, damaged, or not images in [0, 1] with class labels.
    """
    limits = [value for value in (entry.limit, limit) if value is not None]
    most = min(limits) if limits else None
    if most is not None and most < 1:
        raise SuiteError(f"data {entry.name}: limit: expected at least 1, got {most}")
    found = registry.find("datasets", entry.name, base)
    load = found.load if isinstance(found, Dataset) else found
    offered = {"split": entry.split, "limit": most, "data_dir": data_dir}
    arguments = {**_accepted_arguments(load, offered), **entry.params}
    where = f"data {entry.name}"
    loaded = made = _call_factory(where, lambda: load(**arguments))
    if isinstance(loaded, tuple) and len(loaded) == 2:
        check_tensors(entry.name, *loaded)
        loaded = make_data(entry.name, loaded[0][:most], loaded[1][:most], ())
    if not isinstance(loaded, Data):
        raise SuiteError(
            f"{where}: expected the factory to return (images, labels) or a Data, "
            f"got {type(loaded).__name__}"
        )
    kept = inputs.limit_data(loaded, most)
    checked: Data = _call_factory(where, lambda: inputs.check_data(entry.name, kept))
    if "split" in inspect.signature(load).parameters:
        told = {"split": entry.split, **checked.mapping}
        checked = dataclasses.replace(checked, mapping=told)
    if registry.built_in("datasets", entry.name) or not isinstance(made, Data):
        return checked  # whose fingerprint is a hash of all of its content
    whole = _fingerprint_user_data(checked, load, entry.params, base)
    return dataclasses.replace(checked, fingerprint=whole)


def _fingerprint_user_data(data: Data, load: Any, params: Mapping[str, Any], base: Path) -> str:
    """The fingerprint of data that may state any: with it the code that reads them, its params, the
    labels and the first images."""
    first = data.read(0, min(data.n, 16))
    about = (
        data.fingerprint, data.n, data.shape, data.classes, describe_value(load),
        describe_params(params, base), describe_value(first), describe_value(data.labels),
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()


def describe_params(params: Mapping[str, Any], base: Path) -> str:
    """Params as text, with a hash of every file that one of them names."""

    def held(value: Any) -> Any:
        if isinstance(value, Mapping):
            return [(key, held(value[key])) for key in sorted(value)]
        if isinstance(value, list):
            return [held(each) for each in value]
        try:
            path = base / value if isinstance(value, str) and value else None
            content = path.read_bytes() if path and path.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            content = None
        return value if content is None else hashlib.sha256(content).hexdigest()

    return repr(held(params))


def _call_factory(where: str, make: Callable[[], Any]) -> Any:
    """What a factory makes; what a stranger's code raises is told in one sentence."""
    try:
        return make()
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise SuiteError(f"{where}: {describe(error)} ({location(error)})") from error


def _accepted_arguments(load: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the `offered` arguments that a factory of the user's own asks for."""
    parameters = inspect.signature(load).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    names = {p.name for p in parameters}
    return {key: value for key, value in offered.items() if key in names}


def check_tensors(name: str, x: Any, y: Any) -> None:
    """Check that two tensors are images (n, c, h, w) and integer labels (n,).

    Raises:
        SuiteError: They are not.
    """
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise SuiteError(f"data {name}: expected two tensors, got {type(x)} and {type(y)}")
    inputs.check_shapes(f"data {name}", x, y)


# ------------------------------------------------------------------------------------------ models


def load_model(
    entry: ModelEntry,
    base: Path,
    seed: int,
    data: Data,
    device: torch.device,
    data_dir: Path | None = None,
) -> LoadedModel:
    """The model of `entry` with its weights on `device`, after preflight on the first images.

    Weights that are named but not shipped are looked for in `data_dir`/weights.
    Raises: SuiteError in one sentence for weights that are missing, damaged or another
    architecture's, and for a model whose outputs are not logits over enough classes.
    """
    own = data_folder(data_dir) / "weights"
    made = _build(entry, base, seed, own)
    seen = 0 if data.labels is None else int(data.labels.max()) + 1
    model = (
        restrict_access(entry.name, made, entry.access, len(data.classes) or seen).to(device).eval()
    )
    about = [describe_params(entry.params, base), entry.access, _describe_factory(entry, base)]
    return preflight(entry.label, model, data, device, entry.predictions, entry.allow, about)


def _describe_factory(entry: ModelEntry, base: Path) -> str:
    """What the model's factory is: a version of bench's own, or code of the user's."""
    found = registry.find("models", entry.name, base)
    version = found.version if isinstance(found, Model) else 1
    if registry.built_in("models", entry.name):
        return f"{entry.name}, version {version}"
    build = found.build if isinstance(found, Model) else found
    return f"version {version}, {describe_value(build)}"


def restrict_access(name: str, made: Any, access: Access, classes: int) -> nn.Module:
    """A module or callable, as far as the attacker is to see of it.

    Raises: SuiteError if it is no module and is to show its gradient.
    """
    if access != "gradient":
        return QueryOnlyModel(name, made, access, classes)
    if not isinstance(made, nn.Module):
        queries = callable(made)
        hint = '; if it only answers queries, say access = "scores" or "labels"'
        raise SuiteError(
            f"model '{name}': expected a torch.nn.Module, got {type(made).__name__}"
            + (hint if queries else "")
        )
    return made


def _build(entry: ModelEntry, base: Path, seed: int, own: Path) -> Any:
    """A module, or a callable that only answers queries, where the entry says so."""
    found = registry.find("models", entry.name, base)
    build = found.build if isinstance(found, Model) else found
    with rng.seed_global(seed, "weights", entry.name):
        model = _call_factory(f"model '{entry.label}'", lambda: build(**entry.params))
    if not isinstance(model, nn.Module) and callable(model) and entry.weights is None:
        if entry.access != "gradient":
            return model
        raise SuiteError(
            f"model '{entry.label}': expected the factory to return a torch.nn.Module, got "
            f'{type(model).__name__}; if it only answers queries, say access = "scores" or '
            '"labels" in its entry'
        )
    if not isinstance(model, nn.Module):
        raise SuiteError(
            f"model '{entry.label}': expected the factory to return a torch.nn.Module, "
            f"got {type(model).__name__}"
        )
    if entry.weights is None and isinstance(found, Model):
        raise SuiteError(
            f"model '{entry.label}': expected weights; known: "
            f"{', '.join(_known_weights(entry, found, own))}, 'random', or a .safetensors or .pt file"
        )
    if entry.weights not in (None, "random"):
        state = _read_state(entry, found, base, own)
        checkpoint.load_tensors(f"model '{entry.label}': weights '{entry.weights}'", model, state)
    return model


def find_default_weights(name: str) -> str | None:
    """The first name under which weights of a model are published; None for the user's own."""
    found = registry.find("models", name, Path())
    if not isinstance(found, Model):
        return None
    names = _known_weights(ModelEntry(name=name), found, data_folder(None) / "weights")
    return names[0] if names else "random"


def _known_weights(entry: ModelEntry, found: Any, own: Path) -> list[str]:
    """The names under which weights of the model are there: the shipped ones and a library's,
    then those in `own`: too large to ship, and trained on this machine."""
    shipped = sorted([*list_weights(WEIGHTS, entry.name), *getattr(found, "published_names", ())])
    made = list_weights(own, entry.name) if isinstance(found, Model) else []
    return [*shipped, *(name for name in sorted(made) if name not in shipped)]


def list_weights(folder: Path, model: str) -> list[str]:
    stems = [path.stem for path in folder.glob("*.safetensors")]
    return [stem.removeprefix(f"{model}-") for stem in stems if stem.startswith(f"{model}-")]


def _read_state(entry: ModelEntry, found: Any, base: Path, own: Path) -> Mapping[str, Tensor]:
    """The state named by the entry's weights: published with the package, elsewhere, or a file."""
    name, where = str(entry.weights), f"model '{entry.label}'"
    known = _known_weights(entry, found, own)
    file = f"{entry.name}-{name}.safetensors"
    if name in known and (WEIGHTS / file).is_file():
        return load_file(WEIGHTS / file)
    if isinstance(found, Model) and found.published and name in found.published_names:
        published = found.published
        return _call_factory(where, lambda: published(name))  # type: ignore[no-any-return]
    if name in known:
        return checkpoint.read_tensors(where, own / file)
    if Path(name).suffix in checkpoint.SUFFIXES:
        return checkpoint.read_tensors(where, base / name)
    recipe = _find_recipe(entry.name, name)
    if recipe is not None:
        raise SuiteError(
            f"{where}: weights '{name}' are not shipped; `bench train {recipe} --out "
            f"{shlex.quote(str(own))}` makes them"
        )
    raise SuiteError(
        f"{where}: weights '{name}' are unknown; {nearest(name, [*known, 'random'])}; "
        "or a path ending in .safetensors, .pt or .pth"
    )


def _find_recipe(model: str, weights: str) -> str | None:
    """The shipped recipe that makes these weights. Training imports this module, so its files are
    read here as the plain TOML they are."""
    for path in sorted(RECIPES.glob("*.toml")):
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        made = raw.get("model")
        if isinstance(made, dict) and (made.get("name"), raw.get("weights")) == (model, weights):
            return path.stem
    return None
