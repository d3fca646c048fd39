"""Read checkpoints as data: safetensors, or a torch file with `weights_only`; nothing is executed.

What is in a checkpoint, and which part of it fits a model, is decided in `checkpoint_states`.
"""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench.core.errors import SuiteError, first_line, nearest
from bench.core.web_page import refuse_web_page

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".tar", ".t7")
INDEX = ".index.json"
"""End of the file that lists the shards of a folder."""
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names that Hugging Face's libraries use for the only weights file of a folder."""


class Placeholder:
    """Empty object that replaces a plain value of another library, such as a NumPy scalar.

    Nothing of that library runs, and nothing of the value is kept: bench reads tensors alone.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        del args, kwargs

    def __setstate__(self, state: object) -> None:
        del state


REPLACED = (
    "argparse.Namespace",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.dtype", "numpy.ndarray",
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local")
      for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")),
    "datetime.datetime", "datetime.timedelta",
)  # fmt: skip
"""Classes and functions that checkpoints mention beside tensors; read as `Placeholder`."""


def read_checkpoint(where: str, path: Path) -> Mapping[Any, Any]:
    """Read a checkpoint without executing anything in it.

    Args:
        where: Name of the setting or file, with which error messages begin.
        path: A safetensors file, a file of torch.save, or a folder that holds one of these or the
            shards that its index lists.

    Returns:
        The checkpoint's outermost mapping; tensors are on the CPU, plain values of other libraries
        are instances of `Placeholder`.

    Raises:
        SuiteError: The file is missing, damaged, a web page, holds objects that need code, would
            unpack to more than its size, or holds no mapping.
    """
    if path.is_dir():
        path = _find_in_folder(where, path)
    if path.name.endswith(INDEX):
        return _read_shards(where, path)
    if not path.is_file():
        raise SuiteError(f"{where}: expected weights at {path}, found no file")
    refuse_web_page(where, path)
    _refuse_bomb(where, path)
    try:
        if path.suffix == ".safetensors":
            tensors: Mapping[str, Tensor] = load_file(path)
            return tensors
        replaced: list[Any] = [(Placeholder, name) for name in REPLACED]
        with warnings.catch_warnings(), torch.serialization.safe_globals(replaced):
            warnings.simplefilter("ignore")  # torch's advice on pickles that are refused anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make readers raise anything
        if isinstance(error, pickle.UnpicklingError) and _is_torch_file(path):
            raise SuiteError(
                f"{where}: {path} holds more than tensors{_name_object(error)}, and a pickle can "
                "run code; save model.state_dict() and use that file"
            ) from error
        if isinstance(error, pickle.UnpicklingError | KeyError):
            # Torch's own text advises to run what is in it, or is the number of a stray byte.
            first = "not a pickle of tensors"
        else:
            first = first_line(error)
        raise SuiteError(f"{where}: {path} is damaged or no checkpoint ({first})") from error
    if not isinstance(content, Mapping):
        raise SuiteError(f"{where}: {path}: expected a state_dict, got {type(content).__name__}")
    return content


def _find_in_folder(where: str, folder: Path) -> Path:
    """Find the weights file, or the index of the shards, in a folder."""
    for name in SINGLE_FILES:
        for found in (folder / name, folder / f"{name}{INDEX}"):
            if found.is_file():
                return found
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if len(files) == 1:
        return files[0]
    got = ", ".join(path.name for path in files[:5]) or "no checkpoint"
    raise SuiteError(
        f"{where}: expected {SINGLE_FILES[0]}, {SINGLE_FILES[0]}{INDEX} or a single checkpoint in "
        f"the folder {folder}, got {got}; name the file"
    )


def _read_shards(where: str, index: Path) -> Mapping[str, Tensor]:
    """Read the tensors of all shards that an index lists."""
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = {str(key): str(name) for key, name in files.items()}
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError,
    ) as error:  # fmt: skip
        raise SuiteError(
            f"{where}: {index}: expected the index of a sharded checkpoint, which maps keys to "
            f"files under 'weight_map' ({first_line(error)})"
        ) from error
    state: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        if not _is_shard(name):
            raise SuiteError(
                f"{where}: {index}: expected the name of a file beside it, got {name!r}"
            )
        shard = read_checkpoint(where, index.parent / name)
        for key in (key for key, file in listed.items() if file == name):
            if not isinstance(shard.get(key), Tensor):
                close = nearest(key, map(str, shard))
                raise SuiteError(f"{where}: {index} lists {key} in {name}, which lacks it; {close}")
            state[key] = shard[key]
        extra = [str(key) for key in shard if key not in listed]
        if extra:
            raise SuiteError(
                f"{where}: {name} holds {len(extra)} tensors that {index} does not list "
                f"({', '.join(extra[:5])}); download index and shards of one version"
            )
    return state


def _is_shard(name: str) -> bool:
    """Return whether a name is that of a file in the index's own folder, and of no index."""
    is_file_name = Path(name).name == name and name not in ("", "..") and len(name) < 256
    return is_file_name and not name.endswith(INDEX)


def read_tensors(where: str, path: Path) -> Mapping[str, Tensor]:
    """Read a checkpoint that holds a single state and nothing else.

    Args:
        where: Name of the setting or file, with which error messages begin.
        path: As in `read_checkpoint`.

    Returns:
        Tensors by key.

    Raises:
        SuiteError: As `read_checkpoint`, or the mapping holds more than tensors.
    """
    state = read_checkpoint(where, path)
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise SuiteError(f"{where}: {path}: expected a state_dict, got a mapping of more")
    return {str(key): value for key, value in state.items()}


def split_name(base: Path, name: str) -> tuple[Path, str]:
    """Split the name of weights into a file and the part of it to load.

    >>> split_name(Path("runs"), "w.pt#model_ema")
    (PosixPath('runs/w.pt'), 'model_ema')

    Args:
        base: Folder that file names start from.
        name: "FILE" or "FILE#PART".

    Returns:
        Path of the file or folder, and the part; empty if none is named.
    """
    if "#" in name and not (base / name).exists():
        file, _, part = name.rpartition("#")
        return base / file, part
    return base / name, ""


def is_checkpoint(base: Path, name: str) -> bool:
    """Return whether the name of weights is that of a file or folder.

    Args:
        base: Folder that file names start from.
        name: Name in a suite.

    Returns:
        True for a known suffix, and for what exists.
    """
    path, _ = split_name(base, name)
    try:
        return path.suffix in SUFFIXES or path.name.endswith(INDEX) or path.exists()
    except (OSError, ValueError):  # a name that no file can have
        return False


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


def _is_torch_file(path: Path) -> bool:
    """Return whether a file looks like torch's: a zip archive or a pickle of protocol 2."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(file) or (file.seek(0), file.read(2))[1] == b"\x80\x02"


def _name_object(error: BaseException) -> str:
    """Return " (NAME)" of the class or function that torch refused, if its message says it."""
    found = next(_refused_names(str(error)), "")
    return f" ({found})" if found else ""


def _refused_names(message: str) -> Iterator[str]:
    for pattern in (r"GLOBAL ([\w.]{1,200})", r"unsupported GLOBAL ([\w.]{1,200})"):
        yield from re.findall(pattern, message)
