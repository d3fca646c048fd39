"""Turn a suite's entries into live objects: the device, the data, the models with their weights."""

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

from bench.core import checkpoint, checkpoint_states, files, registry, rng
from bench.core.contracts.dataset import Data
from bench.core.contracts.model import Model
from bench.core.contracts.types import GPUS, Access
from bench.core.errors import SuiteError, describe, nearest
from bench.core.foreign import call_factory, own_location
from bench.datasets.as_data import as_data, call_loader, find_loader
from bench.engine import determinism
from bench.engine.device import find_missing_arithmetic
from bench.models import maite_models
from bench.models.fingerprint import describe_value
from bench.models.outputs import Output, QueriedOutput, find_output, take_output
from bench.models.preflight.checks import LoadedModel
from bench.models.preflight.findings import Finding
from bench.models.preflight.prepare import prepare_model
from bench.models.published_weights import WEIGHTS, list_weights
from bench.models.query_only import QueryOnlyModel
from bench.models.wrapping import unwrap_model
from bench.suite.catalog import RECIPES
from bench.suite.schema import DataEntry, ModelEntry


def select_device(name: str) -> torch.device:
    """Select the device that a name means.

    Args:
        name: "auto", "cpu", "cuda[:N]", "xpu[:N]" or "mps".

    Returns:
        The device; for "auto" a GPU of CUDA or XPU if there is one.

    Raises:
        SuiteError: The name is invalid, or the device does not exist or cannot verify images.
    """
    if name == "auto":
        return next(filter(_is_usable, map(torch.device, GPUS)), torch.device("cpu"))
    expected = f"device '{name}': expected auto, cpu, cuda[:N], xpu[:N] or mps"
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise SuiteError(expected) from error
    if chosen.type not in ("cpu", "mps", *GPUS):
        raise SuiteError(expected)
    if chosen.type == "cpu":
        return chosen
    available = torch.get_device_module(chosen).device_count()
    if (chosen.index or 0) >= available:
        raise SuiteError(
            f"device '{name}' is not there: torch sees {available} {chosen.type.upper()} devices; "
            "use --device cpu"
        )
    if reason := find_missing_arithmetic(chosen):
        raise SuiteError(f"device '{name}': {reason}; use --device cpu")
    return chosen


def _is_usable(device: torch.device) -> bool:
    """Return whether torch sees a GPU of this type that computes in float64."""
    return torch.get_device_module(device).is_available() and not find_missing_arithmetic(device)


# -------------------------------------------------------------------------------------------- data


def load_data(entry: DataEntry, base: Path, data_dir: Path, limit: int | None) -> Data:
    """Load the data set of a suite.

    Args:
        entry: Its name, split, limit and params.
        base: Folder that file names start from.
        data_dir: Folder of data sets.
        limit: Most examples, besides the entry's own limit.

    Returns:
        Checked images in [0, 1] with labels; the fingerprint of data from the user's code covers
        that code, its params, the labels and the first images.

    Raises:
        SuiteError: Data are missing, damaged, or no images in [0, 1] with class labels.
    """
    limits = [value for value in (entry.limit, limit) if value is not None]
    most = min(limits) if limits else None
    if most is not None and most < 1:
        raise SuiteError(f"data {entry.name}: limit: expected at least 1, got {most}")
    load = find_loader(entry.name, base)
    offered = {"split": entry.split, "limit": most, "data_dir": data_dir}
    with registry.search_user_code("datasets", entry.name, base):
        returned = call_loader(entry.name, load, offered, entry.params)
        name = registry.portable_name("datasets", entry.name)
        checked = as_data(returned, name=name, limit=most)
    if "split" in inspect.signature(load).parameters:
        mapping = {"split": entry.split, **checked.mapping}
        checked = dataclasses.replace(checked, mapping=mapping)
    if registry.built_in("datasets", entry.name) or not isinstance(returned, Data):
        return checked  # whose fingerprint is a hash of all of its content
    fingerprint = _fingerprint_user_data(checked, load, entry.params, base)
    if origin := registry.origin("datasets", entry.name):
        fingerprint = hashlib.sha256(f"{origin} {fingerprint}".encode()).hexdigest()
    return dataclasses.replace(checked, fingerprint=fingerprint)


def _fingerprint_user_data(data: Data, load: Any, params: Mapping[str, Any], base: Path) -> str:
    """Fingerprint data of the user's: with its code, params, labels and first images."""
    first = data.read(0, min(data.n, 16))
    about = (
        data.fingerprint, data.n, data.shape, data.classes, describe_value(load),
        describe_params(params, base), describe_value(first), describe_value(data.labels),
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()


def describe_params(params: Mapping[str, Any], base: Path) -> str:
    """Describe params as text, with a hash of every file that one of them names.

    Args:
        params: Plain values, lists and mappings.
        base: Folder that file names start from.

    Returns:
        The same text for equal params and equal contents of files.
    """

    def describe_value(value: Any) -> Any:
        if isinstance(value, Mapping):
            return [(key, describe_value(value[key])) for key in sorted(value)]
        if isinstance(value, list):
            return [describe_value(each) for each in value]
        try:
            path = base / value if isinstance(value, str) and value else None
            content = path.read_bytes() if path and path.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            content = None
        return value if content is None else hashlib.sha256(content).hexdigest()

    return repr(describe_value(params))


# ------------------------------------------------------------------------------------------ models


def load_model(
    entry: ModelEntry,
    base: Path,
    seed: int,
    data: Data,
    device: torch.device,
    data_dir: Path | None = None,
) -> LoadedModel:
    """Build a model, load its weights and run preflight on the first images.

    Args:
        entry: The model's name, weights, params and access.
        base: Folder that file names start from.
        seed: Seeds weights that are drawn at random.
        data: The data that it is evaluated on.
        device: Where it is placed.
        data_dir: Folder of data sets; its `weights` holds named weights that are not shipped.

    Returns:
        The model in evaluation mode, with its fingerprint and findings.

    Raises:
        SuiteError: Weights are missing, damaged or another architecture's, the user's factory
            fails, or the model fails preflight.
    """
    own_weights = files.data_folder(data_dir) / "weights"
    built, loaded_from = _build(entry, base, seed, own_weights)
    name = registry.portable_name("models", entry.name)
    model = restrict_access(name, built, entry.access, count_classes(data), entry.output)
    about = [describe_params(entry.params, base), entry.access, _describe_factory(entry, base)]
    loaded = prepare_model(
        entry.label, model.to(device).eval(), data, device, output=entry.output,
        batch_size=entry.batch_size, predictions=entry.predictions, allow=entry.allow, about=about,
        detector=entry.detector,
    )  # fmt: skip
    if not loaded_from:
        return loaded
    note = Finding("checkpoint", f"model '{entry.label}' is {loaded_from}.").format_note(False)
    return loaded._replace(findings=(note, *loaded.findings))


def count_classes(data: Data) -> int:
    """Count the classes of a data set.

    Args:
        data: Checked images and labels.

    Returns:
        Its named classes, or as many as its labels need; 0 without either.
    """
    if data.classes or data.labels is None:
        return len(data.classes)
    return int(data.labels.max()) + 1


def describe_failure(error: BaseException) -> str:
    """Describe in one line what foreign code raised and where.

    Args:
        error: The exception, with its traceback.

    Returns:
        Its type and message, or how to avoid it where torch must be deterministic, and the last
        place in the code that it passed.
    """
    explained = determinism.explain_nondeterminism(error)
    what = f"{type(error).__name__}: {explained}" if explained else describe(error)
    return f"{what} ({own_location(error)})"


def _describe_factory(entry: ModelEntry, base: Path) -> str:
    """Describe a model's factory: a version of bench's own, or the text of the user's code."""
    registered = registry.find("models", entry.name, base)
    version = registered.version if isinstance(registered, Model) else 1
    if registry.built_in("models", entry.name):
        return f"{entry.name}, version {version}"
    build = registered.build if isinstance(registered, Model) else registered
    installed = f"{origin}, " if (origin := registry.origin("models", entry.name)) else ""
    return f"{installed}version {version}, {describe_value(build)}"


def restrict_access(
    name: str, model: Any, access: Access, classes: int, output: Output | None = None
) -> nn.Module:
    """Wrap a model so that an attacker sees no more than its access.

    Args:
        name: Of the model, for sentences.
        model: A module, or for query access any callable.
        access: "gradient", "scores" or "labels".
        classes: Number of classes; a model that shows labels alone does not say.
        output: Which part of the answers to queries is the scores; the answer itself by default.

    Returns:
        The module itself for gradient access, else a query-only model.

    Raises:
        SuiteError: It is no module and access is "gradient".
    """
    if maite_models.is_maite_model(model):
        shown: Access = "scores" if access == "gradient" else access
        return QueryOnlyModel(name, maite_models.make_query(model), shown, classes)
    model = unwrap_model(model)
    if access != "gradient":
        ask = model if output is None else _select_answers(name, model, output)
        return QueryOnlyModel(name, ask, access, classes)
    if not isinstance(model, nn.Module):
        hint = '; if it only answers queries, say access = "scores" or "labels"'
        raise SuiteError(
            f"model '{name}': expected a torch.nn.Module, got {type(model).__name__}"
            + (hint if callable(model) else "")
        )
    return model


def _select_answers(name: str, model: Any, output: Output) -> Callable[[Tensor], Any]:
    """Return a callable that answers queries with the scores alone; of a module, a module."""
    if isinstance(model, nn.Module):
        return QueriedOutput(name, model, output)

    def ask(x: Tensor) -> Any:
        answer = model(x)
        return take_output(answer, find_output(f"model '{name}'", answer, len(x), output))

    return ask


def _build(entry: ModelEntry, base: Path, seed: int, own_weights: Path) -> tuple[Any, str]:
    """Build a module with its weights, or a callable that only answers queries.

    Returns:
        The model, and what was loaded of a checkpoint that holds more than its state.
    """
    registered = registry.find("models", entry.name, base)
    build = registered.build if isinstance(registered, Model) else registered
    user_code = registry.search_user_code("models", entry.name, base)
    drawn = rng.seed_global(seed, "weights", registry.portable_name("models", entry.name))
    with user_code, drawn:
        model = call_factory(f"model '{entry.label}'", lambda: build(**entry.params))
    if not isinstance(model, nn.Module) and callable(model) and entry.weights is None:
        if entry.access != "gradient":
            return model, ""
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
    # A record without named weights builds the model with its own, as a plain factory does.
    known = _known_weights(entry, registered, own_weights)
    if entry.weights is None and known:
        raise SuiteError(
            f"model '{entry.label}': expected weights; known: {', '.join(known)}, 'random', or a "
            ".safetensors or .pt file"
        )
    if entry.weights in (None, "random"):
        return model, ""
    return model, _load_weights(model, entry, registered, base, own_weights)


def find_default_weights(name: str) -> str | None:
    """Find the weights that a model has unless a user names others.

    Args:
        name: The model's name.

    Returns:
        The first published name; None for a model that brings its own, as the user's do.
    """
    known = _list_weights(name)
    return known[0] if known else None


def choose_weights(name: str, data: str) -> str | None:
    """Choose the weights of a model where nobody named any.

    Args:
        name: The model's name.
        data: Name of the data set.

    Returns:
        Those that were trained on the data set, or the only ones that there are; None for the
        user's own model, and where a choice would be a guess.
    """
    known = _list_weights(name)
    if data in known:
        return data
    return known[0] if len(known) == 1 else None


def _list_weights(name: str) -> list[str]:
    """List the weights of a model by its name; none for a model that brings its own."""
    registered = registry.find("models", name, Path())
    if not isinstance(registered, Model):
        return []
    return _known_weights(ModelEntry(name=name), registered, files.data_folder(None) / "weights")


def _known_weights(entry: ModelEntry, registered: Any, own_weights: Path) -> list[str]:
    """List a model's weights: shipped or a library's, then those trained on this machine."""
    shipped = sorted(
        [*list_weights(WEIGHTS, entry.name), *getattr(registered, "published_names", ())]
    )
    own = list_weights(own_weights, entry.name) if isinstance(registered, Model) else []
    return [*shipped, *(name for name in sorted(own) if name not in shipped)]


def _load_weights(
    model: nn.Module, entry: ModelEntry, registered: Any, base: Path, own_weights: Path
) -> str:
    """Load the weights that the entry names: shipped, published elsewhere, or a file.

    Returns:
        What was loaded of a checkpoint that holds more than the model's state.
    """
    name, where = str(entry.weights), f"model '{entry.label}'"
    about = f"{where}: weights '{name}'"
    known = _known_weights(entry, registered, own_weights)
    file = f"{entry.name}-{name}.safetensors"
    if name in known and (WEIGHTS / file).is_file():
        checkpoint_states.load_tensors(about, model, load_file(WEIGHTS / file))
        return ""
    if (
        isinstance(registered, Model)
        and registered.published
        and name in registered.published_names
    ):
        published = registered.published
        state = call_factory(where, lambda: published(name))
        checkpoint_states.load_tensors(about, model, state)
        return ""
    if name in known:
        return checkpoint_states.load_checkpoint(about, model, own_weights / file)
    if checkpoint.is_checkpoint(base, name):
        return checkpoint_states.load_checkpoint(about, model, *checkpoint.split_name(base, name))
    recipe = _find_recipe(entry.name, name)
    if recipe is not None:
        raise SuiteError(
            f"{where}: weights '{name}' are not shipped; `bench train {recipe} --out "
            f"{shlex.quote(str(own_weights))}` makes them"
        )
    raise SuiteError(
        f"{where}: weights '{name}' are unknown; {nearest(name, [*known, 'random'])}; "
        "or the path of a checkpoint"
    )


def _find_recipe(model: str, weights: str) -> str | None:
    """Find the shipped recipe that trains these weights.

    Recipes are read as plain TOML: their own reader belongs to a package above this one.
    """
    for path in sorted(RECIPES.glob("*.toml")):
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        trained = raw.get("model")
        if isinstance(trained, dict) and (trained.get("name"), raw.get("weights")) == (
            model,
            weights,
        ):
            return path.stem
    return None
