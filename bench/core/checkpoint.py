"""Read checkpoints as data: .safetensors, or .pt with `weights_only`; nothing is executed."""

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.core.errors import SuiteError, first_line
from bench.core.web_page import refuse_web_page

SUFFIXES = (".safetensors", ".pt", ".pth")
PREFIXES = ("module.", "model.", "net.")
"""Prefixes that wrappers add to every key of a state."""


def read_tensors(where: str, path: Path) -> Mapping[str, Tensor]:
    """Read the tensors of a checkpoint without executing anything in it.

    Args:
        where: Name of the setting or file, with which error messages begin.
        path: A .safetensors file, or a .pt or .pth file read with `weights_only`.

    Returns:
        Tensors by key; those under "state_dict" if the file has such a key.

    Raises:
        SuiteError: The file is missing, damaged, a web page, holds more than tensors or would
            unpack to more than its size.
    """
    if not path.is_file():
        raise SuiteError(f"{where}: expected weights at {path}, found no file")
    refuse_web_page(where, path)
    _refuse_bomb(where, path)
    try:
        if path.suffix == ".safetensors":
            tensors: Mapping[str, Tensor] = load_file(path)
            return tensors
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles that are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make readers raise anything
        if isinstance(error, pickle.UnpicklingError) and _whole(path):
            raise SuiteError(
                f"{where}: {path} holds more than tensors, and a pickle can run code; "
                "save model.state_dict() and use that file"
            ) from error
        if isinstance(error, pickle.UnpicklingError | KeyError):
            # Torch's own text advises to run what is in it, or is the number of a stray byte.
            first = "not a pickle of tensors"
        else:
            first = first_line(error)
        raise SuiteError(f"{where}: {path} is damaged or no checkpoint ({first})") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SuiteError(f"{where}: {path}: expected a state_dict, got {type(state).__name__}")
    return dict(state)


def _refuse_bomb(where: str, path: Path) -> None:
    """Refuse an archive that unpacks to more than its size: torch.save packs nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(part.file_size for part in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # another format, or damaged: the reader reports it
    if size > path.stat().st_size:
        problem = f"{path} unpacks to {size} bytes, more than it is"
        raise SuiteError(f"{where}: {problem}; torch.save packs nothing, so save it again")


def _whole(path: Path) -> bool:
    """Return whether a file looks like torch's: a zip archive or a pickle of protocol 2."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0), file.read(2))[1] == b"\x80\x02"


def load_tensors(where: str, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load tensors into a model; a common prefix of the keys may be missing or extra.

    Args:
        where: Name of the setting or file, with which error messages begin.
        model: Model whose parameters and buffers are overwritten.
        state: Tensors by key.

    Raises:
        SuiteError: Keys or shapes are those of another architecture.
    """
    wanted = model.state_dict()
    for prefix in PREFIXES:
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
        raise SuiteError(f"{where} belong to another architecture: {'; '.join(problems)}")
    model.load_state_dict(state)
