"""Load a folder of photographs: DIR/<class>/*.jpg, or DIR/*.jpg without labels (DIR: --data-dir).

Labels of class folders (`bench plan` shows the mapping):

- If all folders are named by ImageNet ids (n02395406), labels and names are ImageNet's.
- If all folders are named by numbers, they are sorted as numbers, which must be consecutive from 0
  or 1, so that a label does not depend on which folders exist.
- Other folders are sorted as text, capitals first, as torchvision does.
- `params = { classes = ["cat", "dog"] }` names the folders in the order of their labels; other
  folders are ignored.

A folder without images is rejected where it would shift the labels of those after it. In a flat
folder the model's clean prediction is the label, and the data set's name in tables says so.

Files are selected by suffix (SUFFIXES, also in capitals). Hidden files and folders, those created
by tools (LEFT_BY_TOOLS) and other files are skipped and counted in the mapping. Links are followed.
Folders in class folders are rejected if they contain images.

Images alternate between the classes, so that a limit includes each. They are decoded on demand by
`image_files.decode_image`.
Source of the ids: ILSVRC 2012, Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import MissingDataError, SuiteError, suggest_params
from bench.datasets import inputs
from bench.datasets.image_files import decode_image, describe_treatment
from bench.datasets.imagenet_classes import load_imagenet_names, load_imagenet_wnids

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LEFT_BY_TOOLS = ("__MACOSX", "__pycache__", "@eaDir")
_NUMBER = re.compile(r"[+-]?\d+", re.ASCII)
WHERE = "data image_folder"


class _Classes(NamedTuple):
    """Class folders with their labels."""

    folders: dict[str, int]
    """Name of a folder -> label."""
    names: tuple[str, ...]
    """Names of the classes in index order."""
    order: str
    """Description of the order, for the mapping."""


def load(
    limit: int | None = None,
    *,
    data_dir: Path,
    resize: int = 256,
    crop: int = 224,
    classes: Sequence[str] | None = None,
    **_: object,
) -> Data:
    """Load the first `limit` images of the folder, (n, 3, crop, crop).

    Args:
        limit: Most images; all if None.
        data_dir: The folder.
        resize: Length of the short side before the middle square is cut.
        crop: Length of the sides of the square.
        classes: Names of the class folders in the order of their labels.
        **_: Ignored.

    Returns:
        Images, with labels unless the folder is flat.

    Raises:
        SuiteError: A file is no image, or labels would be a guess.
        MissingDataError: There is no image.
    """
    if not 1 <= crop <= resize:
        raise SuiteError(f"{WHERE}: expected 1 <= crop <= resize, got {crop}, {resize}")
    flat, folders = _images(data_dir), _folders(data_dir)
    filled = {folder.name: found for folder in folders if (found := _images(folder))}
    if flat and filled:
        raise SuiteError(
            f"{WHERE}: {data_dir} holds images and folders of images; expected either "
            "one folder for each class, or images alone"
        )
    if not flat and not filled:
        raise MissingDataError(
            f"{WHERE}: expected images in {data_dir} or in folders of it, found none; "
            "name the folder with --data-dir"
        )
    if flat:
        paths, labels, names = flat[:limit], None, load_imagenet_names()
        described = {"labels": "the model's clean predictions", "classes": "ImageNet's"}
    else:
        given = _label_folders([folder.name for folder in folders], filled, classes)
        for folder in folders:
            if folder.name in given.folders:
                _check_flat(folder)
        ranked = [
            (rank, path)
            for name, found in filled.items()
            if name in given.folders
            for rank, path in enumerate(found)
        ]
        paths = [path for _, path in sorted(ranked, key=lambda pair: (pair[0], pair[1]))][:limit]
        if not paths:
            raise SuiteError(
                f"{WHERE}: expected images in a folder of {data_dir} that `classes` names"
            )
        labels = torch.tensor([given.folders[path.parent.name] for path in paths])
        names, described = given.names, _describe_labels(given, data_dir)
    name = data_dir.resolve().name
    return make_data(
        WHERE,
        name if labels is not None else f"{name} (labels: the model's clean predictions)",
        paths,
        labels,
        names,
        (resize, crop),
        {**described, **_describe_skipped(data_dir, folders)},
    )


def make_data(
    where: str,
    name: str,
    paths: Sequence[Path],
    labels: Tensor | None,
    classes: tuple[str, ...],
    sizes: tuple[int, int],
    described: Mapping[str, str],
) -> Data:
    """Make a data set of image files, which are decoded when they are read.

    Args:
        where: Start of error messages.
        name: Name in tables.
        paths: The files in the order of the examples.
        labels: (n,), int64; None for the model's clean predictions.
        classes: Names of the classes in index order.
        sizes: Length of the short side after resizing, and side of the middle square, in pixels.
        described: What the mapping says besides pixels and files.

    Returns:
        The data set, whose fingerprint covers the content of the files.

    Raises:
        SuiteError: A file cannot be read, or is no image.
    """
    resize, crop = sizes
    hashed, treated = _hash_files(where, paths)

    def read(first: int, last: int) -> Tensor:
        return torch.stack([decode_image(path, resize, crop) for path in paths[first:last]])

    return Data(
        name=name,
        read=read,
        labels=labels,
        n=len(paths),
        shape=(3, crop, crop),
        classes=classes,
        fingerprint=_fingerprint(hashed, treated, labels, resize, crop),
        mapping={
            "pixels": "8 bits a channel, divided by 255",
            "files": _describe_files(paths, treated, resize, crop),
            **described,
        },
    )


# --------------------------------------------------------------------------------- which files


def _visible(folder: Path) -> list[Path]:
    """Return the entries of a folder that are neither hidden nor created by tools."""
    if not folder.is_dir():
        return []
    try:
        return sorted(
            path
            for path in folder.iterdir()
            if not path.name.startswith(".") and path.name not in LEFT_BY_TOOLS
        )
    except OSError as error:
        raise SuiteError(f"{WHERE}: {folder} could not be read: {error.strerror}") from error


def _images(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in SUFFIXES and not p.is_dir()]


def _folders(folder: Path) -> list[Path]:
    return [path for path in _visible(folder) if path.is_dir()]


def _check_flat(folder: Path) -> None:
    """Raise SuiteError if a class folder contains folders of images, which would be ignored."""
    for below in _folders(folder):
        if _images(below):
            raise SuiteError(
                f"{WHERE}: {below} holds images inside of a class folder; expected "
                "DIR/<class>/*.jpg, without folders below"
            )


def _describe_skipped(data_dir: Path, folders: Sequence[Path]) -> dict[str, str]:
    """Count the skipped files and folders for the mapping; empty if there are none."""
    kinds: Counter[str] = Counter()
    for folder in [data_dir, *folders]:
        try:
            for path in folder.iterdir():
                hidden = path.name.startswith(".") or path.name in LEFT_BY_TOOLS
                if path.is_dir():
                    kinds[f"folder {path.name}"] += hidden
                elif hidden or path.suffix.lower() not in SUFFIXES:
                    kinds["hidden" if hidden else path.suffix or path.name] += 1
        except OSError:
            continue
    counts = [f"{count} {kind}" for kind, count in sorted(kinds.items()) if count]
    return {"left out": ", ".join(counts)} if counts else {}


def _hash_files(where: str, paths: Sequence[Path]) -> tuple[list[bytes], list[str]]:
    """Return the SHA-256 of each file, and its treatment beyond resizing and cropping."""
    hashed, treated = [], []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SuiteError(
                f"{where}: {path} could not be read: {error.strerror}; mend or remove it"
            ) from error
        hashed.append(hashlib.sha256(content).digest())
        treated.append(describe_treatment(path, content))
    return hashed, treated


# -------------------------------------------------------------------------------- which labels


def _label_folders(
    names: Sequence[str], filled: dict[str, list[Path]], given: Sequence[str] | None
) -> _Classes:
    """Label class folders by their names, or by the `given` order.

    Raises:
        SuiteError: Labels would depend on which folders exist.
    """
    if given is not None:
        return _label_by_list(names, given)
    wnids = load_imagenet_wnids()
    known, numbers = set(filled) & set(wnids), [n for n in names if _NUMBER.fullmatch(n)]
    if known == set(filled):
        order = {name: index for index, name in enumerate(wnids)}
        return _Classes(order, load_imagenet_names(), "ImageNet's index of each folder's id")
    if known:
        other = next(name for name in filled if name not in known)
        raise SuiteError(
            f"{WHERE}: folder '{next(iter(sorted(known)))}' is named by an ImageNet id and "
            f"'{other}' is not; expected ids alone, or {_LISTING}"
        )
    if len(numbers) == len(names):
        return _label_by_number(numbers)
    values = [int(number) for number in numbers]  # in the order of their text
    if values != sorted(values):
        other = next(name for name in names if name not in numbers)
        raise SuiteError(
            f"{WHERE}: folders named by numbers of different lengths stand beside others "
            f"('{numbers[0]}', '{other}'), so that their order is a guess; expected {_LISTING}"
        )
    empty = [name for name in names if name not in filled]
    if empty:
        raise SuiteError(
            f"{WHERE}: folder '{empty[0]}' holds no image, and would shift the labels of those "
            f"after it if it is a class; remove it, or say {_LISTING}"
        )
    label = {name: index for index, name in enumerate(names)}
    return _Classes(label, tuple(names), "folders in the order of their text")


_LISTING = f"the folders in the order of their labels by {suggest_params('classes = [...]')}"


def _label_by_list(names: Sequence[str], given: Sequence[str]) -> _Classes:
    """Label folders in the order of the list `given` in the suite."""
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise SuiteError(f"{WHERE}: classes: expected a list of names of folders, got {given!r}")
    twice = [name for name, count in Counter(given).items() if count > 1]
    if twice:
        raise SuiteError(
            f"{WHERE}: classes: '{twice[0]}' stands there twice; a class has one label"
        )
    if not set(names) & set(given):
        raise SuiteError(
            f"{WHERE}: classes: none of {inputs.list_names(list(given))} is among the folders "
            f"{', '.join(names[:4])}"
        )
    label = {name: index for index, name in enumerate(given)}
    return _Classes(label, tuple(given), "folders in the order of `classes`")


def _label_by_number(numbers: Sequence[str]) -> _Classes:
    """Label folders that are all named by numbers."""
    ordered = sorted(numbers, key=lambda name: (int(name), name))
    values = [int(name) for name in ordered]
    for one, other in itertools.pairwise(ordered):
        if int(one) == int(other):
            raise SuiteError(f"{WHERE}: folders '{one}' and '{other}' are the same number")
    first = values[0]
    if first not in (0, 1) or values != list(range(first, first + len(values))):
        missing = next((k for k in range(first, values[-1]) if k not in values), None)
        what = f"{missing} is missing" if first in (0, 1) else f"the first is {first}"
        raise SuiteError(
            f"{WHERE}: expected folders numbered from 0 or 1 on without a gap, but {what}; add an "
            f"empty folder for each missing number, or name {_LISTING}"
        )
    label = {name: index for index, name in enumerate(ordered)}
    order = "folders in the order of their numbers" + (", less 1" if first else "")
    return _Classes(label, tuple(ordered), order)


# ------------------------------------------------------------------------------- descriptions


def _describe_labels(given: _Classes, data_dir: Path) -> dict[str, str]:
    return {
        "labels": f"{given.order} in {data_dir.resolve().name}",
        "classes": inputs.list_names(given.names),
    }


def _describe_files(paths: Sequence[Path], treated: Sequence[str], resize: int, crop: int) -> str:
    counts = Counter(each for each in treated if each)
    treatments = "".join(f"; {count} {what}" for what, count in sorted(counts.items()))
    return f"{len(paths)}, short side to {resize}, middle {crop} x {crop}{treatments}"


def _fingerprint(
    hashed: Sequence[bytes], treated: Sequence[str], labels: Tensor | None, resize: int, crop: int
) -> str:
    digest = hashlib.sha256(
        f"{resize} {crop} {None if labels is None else labels.tolist()}".encode()
    )
    for content, what in zip(hashed, treated, strict=True):
        digest.update(content)
        digest.update(what.encode())  # nothing for most images, so that their records stay valid
    return digest.hexdigest()


DATASET = Dataset(
    summary="a folder of photographs, one folder a class (ImageNet ids or any names), or flat",
    source="the user's own; ids of ILSVRC 2012",
    load=load,
)
