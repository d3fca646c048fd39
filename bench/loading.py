"""From a suite's entries to live objects: the device, the data, the models with their weights.

Checkpoints are data: .safetensors, or .pt read with weights_only. A model is asked a few questions
before anything runs (preflight); an answer that would make every number wrong stops the run with
one sentence, one that only makes them doubtful is passed on to the report.
"""

import inspect
import os
import pickle
import traceback
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench import provenance, registry, rng
from bench.contracts import Data, Dataset, Model
from bench.datasets import in_memory
from bench.errors import SuiteError, nearest
from bench.guard import evaluating
from bench.suite import DataEntry, ModelEntry

WEIGHTS = Path(__file__).parent / "models" / "weights"


class Subject(NamedTuple):
    """A model ready to be attacked: on its device, in evaluation mode, asked and found fit."""

    label: str
    model: nn.Module
    classes: int
    fingerprint: str
    findings: tuple[str, ...]
    """Sentences about the model that a reader of its numbers must know."""


def device(name: str) -> torch.device:
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
    if given is None:
        given = os.environ.get("BENCH_DATA_DIR") or platformdirs.user_cache_path("bench")
    return Path(given)


def data(entry: DataEntry, base: Path, data_dir: Path, limit: int | None) -> Data:
    """The suite's data set, at most its own limit and `limit` examples of it.

    Raises: SuiteError if data are missing, damaged, or not images in [0, 1] with class labels.
    """
    limits = [value for value in (entry.limit, limit) if value is not None]
    most = min(limits) if limits else None
    found = registry.find("datasets", entry.name, base)
    load = found.load if isinstance(found, Dataset) else found
    offered = {"split": entry.split, "limit": most, "data_dir": data_dir}
    arguments = {**_accepted(load, offered), **entry.params}
    loaded = _made(f"data {entry.name}", lambda: load(**arguments))
    if isinstance(loaded, tuple) and len(loaded) == 2:
        check_tensors(entry.name, *loaded)
        loaded = in_memory(entry.name, loaded[0][:most], loaded[1][:most], ())
    if not isinstance(loaded, Data):
        raise SuiteError(
            f"data {entry.name}: expected the factory to return (images, labels) or a Data, "
            f"got {type(loaded).__name__}"
        )
    check_images(entry.name, loaded)
    return loaded


def _made(where: str, make: Callable[[], Any]) -> Any:
    """What a factory makes; what a stranger's code raises is told in one sentence."""
    try:
        return make()
    except SuiteError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        first = (str(error).splitlines() or [""])[0]
        raise SuiteError(
            f"{where}: {type(error).__name__}: {first} ({Path(place.filename).name}:{place.lineno})"
        ) from error


def _accepted(load: Callable[..., Any], offered: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the `offered` arguments that a factory of the user's own asks for."""
    parameters = inspect.signature(load).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(offered)
    names = {p.name for p in parameters}
    return {key: value for key, value in offered.items() if key in names}


def check_tensors(name: str, x: Any, y: Any) -> None:
    """Raises: SuiteError unless x is images (n, c, h, w) and y integer labels (n,)."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise SuiteError(f"data {name}: expected two tensors, got {type(x)} and {type(y)}")
    if x.dim() != 4 or y.shape != x.shape[:1] or y.is_floating_point():
        raise SuiteError(
            f"data {name}: expected images (n, c, h, w) and integer labels (n,), "
            f"got {tuple(x.shape)} and {tuple(y.shape)} {y.dtype}"
        )
    if x.is_floating_point() and x.numel():
        _check_pixels(name, x)


def check_images(name: str, data: Data) -> None:
    """Raises: SuiteError unless there are examples, pixels in [0, 1], and labels from 0."""
    if data.n < 1:
        raise SuiteError(f"data {name}: expected at least one example, got none")
    _check_pixels(name, data.read(0, min(data.n, 32)))
    if data.labels is not None and int(data.labels.min()) < 0:
        raise SuiteError(f"data {name}: expected labels from 0, got {int(data.labels.min())}")


def _check_pixels(name: str, images: Tensor) -> None:
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # false for NaN, too
        raise SuiteError(
            f"data {name}: expected pixels in [0, 1], got [{low:.4g}, {high:.4g}]; "
            "scale the images, and normalise inside the model"
        )


# ------------------------------------------------------------------------------------------ models


def subject(entry: ModelEntry, base: Path, seed: int, data: Data, device: torch.device) -> Subject:
    """The model of `entry` with its weights on `device`, after preflight on the first images.

    Raises: SuiteError in one sentence for weights that are missing, damaged or another
    architecture's, and for a model whose outputs are not logits over enough classes.
    """
    return fit(entry.label, _build(entry, base, seed).to(device).eval(), data, device)


def fit(label: str, model: nn.Module, data: Data, device: torch.device) -> Subject:
    """A model that is built already, asked whether it is fit to be attacked.

    Raises: SuiteError as `preflight` does.
    """
    with evaluating(model):
        classes, findings = preflight(label, model, data, device)
    return Subject(label, model, classes, provenance.fingerprint(model), tuple(findings))


def _build(entry: ModelEntry, base: Path, seed: int) -> nn.Module:
    found = registry.find("models", entry.name, base)
    build = found.build if isinstance(found, Model) else found
    with rng.seeded(seed, "weights", entry.name):
        model = _made(f"model '{entry.label}'", lambda: build(**entry.params))
    if not isinstance(model, nn.Module):
        raise SuiteError(
            f"model '{entry.label}': expected the factory to return a torch.nn.Module, "
            f"got {type(model).__name__}"
        )
    if entry.weights is None and isinstance(found, Model):
        raise SuiteError(
            f"model '{entry.label}': expected weights; known: "
            f"{', '.join(_published(entry, found))}, 'random', or a .safetensors or .pt file"
        )
    if entry.weights not in (None, "random"):
        _load(entry, model, _state(entry, found, base))
    return model


def _published(entry: ModelEntry, found: Any) -> list[str]:
    """The names under which weights of the model are published."""
    files = WEIGHTS.glob(f"{entry.name}-*.safetensors")
    names = [path.stem.removeprefix(f"{entry.name}-") for path in files]
    return sorted([*names, *getattr(found, "published_names", ())])


def _state(entry: ModelEntry, found: Any, base: Path) -> Mapping[str, Tensor]:
    """The state named by the entry's weights: published with the package, elsewhere, or a file."""
    name = str(entry.weights)
    file = WEIGHTS / f"{entry.name}-{name}.safetensors"
    if name in _published(entry, found) and file.is_file():
        return load_file(file)
    if isinstance(found, Model) and found.published and name in found.published_names:
        published = found.published
        return _made(f"model '{entry.label}'", lambda: published(name))  # type: ignore[no-any-return]
    if Path(name).suffix not in (".safetensors", ".pt", ".pth"):
        raise SuiteError(
            f"model '{entry.label}': weights '{name}' are unknown; "
            f"{nearest(name, [*_published(entry, found), 'random'])}; "
            "or a path ending in .safetensors, .pt or .pth"
        )
    return _read(f"model '{entry.label}'", base / name)


def _read(where: str, path: Path) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint; nothing in the file is executed."""
    if not path.is_file():
        raise SuiteError(f"{where}: expected weights at {path}, found no file")
    try:
        if path.suffix == ".safetensors":
            tensors: Mapping[str, Tensor] = load_file(path)
            return tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles that are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a reader trips over in damaged bytes can be anything
        if isinstance(error, pickle.UnpicklingError) and _whole(path):
            raise SuiteError(
                f"{where}: {path} holds more than tensors, and a pickle can run code; "
                "save model.state_dict() and use that file"
            ) from error
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SuiteError(f"{where}: {path} is damaged or no checkpoint ({first})") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SuiteError(f"{where}: {path}: expected a state_dict, got {type(state).__name__}")
    return dict(state)


def _whole(path: Path) -> bool:
    """Whether a file looks like one of torch's: a zip archive or, older, a pickle of protocol 2."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0), file.read(2))[1] == b"\x80\x02"


def _load(entry: ModelEntry, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into the model; a common prefix such as "module." may be missing or too many."""
    wanted = model.state_dict()
    for prefix in ("", "module.", "model.", "net."):
        longer = {f"{prefix}{key}": value for key, value in state.items()}
        shorter = {key.removeprefix(prefix): value for key, value in state.items()}
        for keyed in (longer, shorter):
            if keyed.keys() == wanted.keys():
                state = keyed
    missing = sorted(wanted.keys() - state.keys())
    unexpected = sorted(state.keys() - wanted.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted.keys() & state.keys()
        if state[key].shape != wanted[key].shape
    ]
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:2])})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("misshapen", shapes))
        if keys
    ]
    if problems:
        raise SuiteError(
            f"model '{entry.label}': weights '{entry.weights}' belong to another architecture: "
            f"{'; '.join(problems)}"
        )
    model.load_state_dict(state)


# --------------------------------------------------------------------------------------- preflight


def preflight(
    label: str, model: nn.Module, data: Data, device: torch.device
) -> tuple[int, list[str]]:
    """The number of classes, and findings, from the model's answers to the first images.

    Raises: SuiteError if the answers are no logits: wrong shape, not finite, probabilities, or
    fewer classes than the labels need.
    """
    where = f"model '{label}'"
    x = data.read(0, min(data.n, 16)).to(device)
    if any(p.dtype != torch.float32 for p in model.parameters() if p.is_floating_point()):
        raise SuiteError(f"{where}: expected float32 parameters; convert it with model.float()")
    try:
        with torch.no_grad():
            logits = model(x)
    except Exception as error:  # a stranger's forward may raise anything
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SuiteError(
            f"{where} does not take images {tuple(x.shape[1:])} of data {data.name}: {first}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise SuiteError(f"{where}: expected logits (n, classes) with n = {len(x)}, got {got}")
    if not logits.isfinite().all():
        raise SuiteError(f"{where}: expected finite logits, got NaN or infinity on clean images")
    classes = logits.shape[1]
    if classes < 2:
        raise SuiteError(f"{where}: expected at least 2 classes, got {classes}")
    if data.labels is not None and int(data.labels.max()) >= classes:
        raise SuiteError(
            f"{where} has {classes} classes, but data {data.name} has the label "
            f"{int(data.labels.max())}"
        )
    total = logits.sum(1)
    if (logits >= 0).all() and torch.allclose(total, torch.ones_like(total), atol=1e-4):
        raise SuiteError(
            f"{where}: expected logits, got probabilities (each row is positive and sums to 1), "
            "which flatten the gradient; return the values before the softmax"
        )
    return classes, list(_findings(where, model, x, logits))


def _findings(where: str, model: nn.Module, x: Tensor, logits: Tensor) -> list[str]:
    found = []
    with torch.no_grad():
        again = model(x)
        alone = torch.cat([model(row[None]) for row in x])
    scale = float(logits.abs().max()) + 1e-6
    if float((again - logits).abs().max()) > 1e-3 * scale:
        found.append(
            f"{where} answers the same images differently each time: its defence is random, "
            "and one prediction is not enough to judge an attack."
        )
    elif float((alone - logits).abs().max()) > 1e-2 * scale:
        found.append(
            f"{where} answers an image differently beside other images: its outputs depend on "
            "the batch, so results depend on the batch size."
        )
    if torch.allclose(logits.logsumexp(1), torch.zeros(len(x), device=x.device), atol=1e-4):
        found.append(
            f"{where} returns log-probabilities instead of logits: cross-entropy is the same, but "
            "losses on logits (DLR, CW) are not."
        )
    probe = x.clone().requires_grad_()
    with torch.enable_grad():
        output = model(probe)
        if output.requires_grad:
            loss = nn.functional.cross_entropy(output, output.argmin(1), reduction="sum")
            (gradient,) = torch.autograd.grad(
                loss, probe, allow_unused=True, materialize_grads=True
            )
        else:
            gradient = torch.zeros_like(probe)
    zero = int((gradient.flatten(1).abs().amax(1) == 0).sum())
    if zero:
        found.append(
            f"{where} has a gradient of zeros on {zero} of {len(x)} clean images: gradient "
            "attacks cannot move there, and their robust accuracy means nothing."
        )
    return found
