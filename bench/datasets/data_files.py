"""Read data sets from files that a suite names by their path.

- `.npz`, `.safetensors`, and `.pt` or `.pth` with a mapping of tensors: images and labels are the
  two arrays whose names are among PAIRS, for example x_test and y_test, or that the params `images`
  and `labels` name;
- `.pt` or `.pth` with a pair of tensors;
- `.npy`: images; labels are in another file, named by `labels` or as images are (SIBLINGS);
- `.tar`: shards of WebDataset, several as `shards-{000..009}.tar` (`bench.datasets.shards`).

Nothing in a file is executed. Arrays of NumPy that are stored without compression stay on the disk
if they are larger than `streamed.RESIDENT`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.core.errors import SuiteError, first_line, nearest, suggest_params

if TYPE_CHECKING:  # commands that only look at names must not import torch
    from bench.core.contracts.dataset import Data

SUFFIXES = (".npz", ".npy", ".pt", ".pth", ".safetensors", ".tar")
PAIRS = (
    ("images", "labels"), ("x", "y"), ("X", "y"), ("X", "Y"), ("data", "targets"),
    ("data", "labels"), ("data", "label"), ("image", "label"), ("inputs", "targets"),
    ("images", "targets"), ("inputs", "labels"), ("features", "labels"), ("arr_0", "arr_1"),
)  # fmt: skip
"""Names of arrays of images and labels; also with the split behind or before: x_test, test_x."""
SIBLINGS = {"images": "labels", "x": "y", "X": "y", "data": "targets", "image": "label"}
"""Part of the name of a file of images -> the same part of the file of labels."""


def is_data_file(name: str) -> bool:
    """Return whether the name of a data set is the path of a file of data.

    Args:
        name: Name in a suite.

    Returns:
        True for a path that ends in one of SUFFIXES.
    """
    return ":" not in name and name.endswith(SUFFIXES)


def open_file(path: Path) -> "Callable[..., Data]":
    """Return the function that reads a file of data.

    Args:
        path: The file, or a pattern of shards.

    Returns:
        The factory, to be called with limit, split and params.
    """
    if path.suffix == ".tar":
        from bench.datasets import shards

        return partial(shards.load, path)
    return partial(load, path)


def load(
    path: Path,
    split: str = "test",
    limit: int | None = None,
    *,
    images: str | None = None,
    labels: str | None = None,
    layout: str | None = None,
    classes: Sequence[str] | None = None,
) -> "Data":
    """Load images and labels of a file.

    Args:
        path: The file.
        split: Which arrays are meant if there are several, such as x_train and x_test.
        limit: Most images; None for all.
        images: Name of the array of images; found by its name if None.
        labels: Name of the array of labels; of an .npy file, the file of labels beside it.
        layout: "nchw" or "nhwc"; recognised if None.
        classes: Names of the classes in index order.

    Returns:
        The data set, which says in its mapping which arrays were read.

    Raises:
        SuiteError: The file is damaged, or its images and labels cannot be identified or used.
    """
    import dataclasses

    from bench.datasets import as_data

    where = f"data {path.name}"
    if path.suffix == ".npy":
        other = _find_sibling(where, path, labels)
        found = {path.name: _read(where, path), other.name: _read(where, other)}
        keys = path.name, other.name
    else:
        read = _read(where, path)
        if isinstance(read, tuple | list) and len(read) == 2:
            read = {"0": read[0], "1": read[1]}
            images, labels = images or "0", labels or "1"
        if not isinstance(read, Mapping):
            raise SuiteError(
                f"{where}: expected a mapping or a pair of tensors, got {type(read).__name__}"
            )
        found = dict(read)
        keys = _find_keys(where, found, split, images, labels)
    x, y = (found[key] for key in keys)
    squeezed = getattr(y, "ndim", 0) == 2 and y.shape[1] == 1
    if squeezed:
        y = y[:, 0]
    data = as_data.convert_arrays(
        where, path.stem, x, y, limit, layout, classes  # type: ignore[arg-type]
    )  # fmt: skip
    text = f"{keys[0]} and {keys[1]}" + (", a column" if squeezed else "")
    mapping = {
        **data.mapping,
        "arrays": text + ("" if path.suffix == ".npy" else f" of {path.name}"),
    }
    return dataclasses.replace(data, mapping=mapping)


def _find_sibling(where: str, path: Path, labels: str | None) -> Path:
    """Return the file of labels of an .npy file of images."""
    if labels is not None:
        other = path.parent / labels
        if not other.is_file() or other.suffix != ".npy":
            raise SuiteError(f"{where}: labels: expected an .npy file at {other}, found none")
        return other
    for part, other_part in SIBLINGS.items():
        other = path.with_name(path.name.replace(part, other_part))
        if other != path and other.is_file():
            return other
    raise SuiteError(
        f"{where}: expected the file of labels; name it by "
        + suggest_params('labels = "labels.npy"')
        + f", a path from {path.parent}"
    )


def _find_keys(
    where: str,
    found: Mapping[str, Any],
    split: str,
    images: str | None,
    labels: str | None,
) -> tuple[str, str]:
    """Return the names of the arrays of images and labels."""
    for what, key in (("images", images), ("labels", labels)):
        if key is not None and key not in found:
            raise SuiteError(f"{where}: {what}: there is no '{key}'; {nearest(key, found)}")
    if images is not None and labels is not None:
        return images, labels
    forms: tuple[Callable[[str], str], ...] = (
        lambda key: f"{key}_{split}", lambda key: f"{split}_{key}", lambda key: key,
    )  # fmt: skip
    for form in forms:
        fitting = [
            (images or form(x), labels or form(y))
            for x, y in PAIRS
            if (images or form(x)) in found and (labels or form(y)) in found
        ]
        named = [(x, y) for x, y in PAIRS if images == form(x) or labels == form(y)]
        fitting = [p for p in fitting if p in {(form(x), form(y)) for x, y in named}] or fitting
        pairs = sorted(set(fitting))
        if len(pairs) == 1:
            return pairs[0]
        if len(pairs) > 1:
            break
    which = "several pairs of arrays" if fitting else "no pair of arrays"
    raise SuiteError(
        f"{where}: {which} may be images and labels of the split '{split}'; name them by "
        f"{suggest_params('images = ...', 'labels = ...')}; arrays: {', '.join(map(str, found))}"
    )


# ------------------------------------------------------------------------------------- formats


def _read(where: str, path: Path) -> Any:
    """Read the arrays of a file without executing anything in it."""
    import pickle

    import numpy as np
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            return _read_npz(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the older format of torch.save cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SuiteError(
            f"{where}: {path} is damaged or holds more than tensors, and a pickle can run code; "
            "save a mapping of tensors"
        ) from error
    except Exception as error:  # damaged bytes make readers raise anything
        raise SuiteError(
            f"{where}: {path} cannot be read: {first_line(error)}; save plain arrays of numbers, "
            "or fetch the file again if it is cut short"
        ) from error


def _read_npz(path: Path) -> dict[str, Any]:
    """Read the arrays of an .npz file; map those that are large and not compressed."""
    import zipfile

    import numpy as np

    from bench.datasets import streamed

    found: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for part in archive.infolist():
            name = part.filename.removesuffix(".npy")
            if part.file_size > streamed.RESIDENT and part.compress_type == zipfile.ZIP_STORED:
                found[name] = _map_stored(path, part.header_offset)
                continue
            with archive.open(part) as file:
                found[name] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def _map_stored(path: Path, offset: int) -> Any:
    """Map an array that is stored in a zip archive without compression."""
    import numpy as np

    with path.open("rb") as file:
        file.seek(offset + 26)  # the lengths of name and extra field in the local header
        name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
        file.seek(offset + 30 + name + extra)
        version = np.lib.format.read_magic(file)
        read = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        order = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)  # type: ignore[call-overload]
