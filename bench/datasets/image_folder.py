"""A folder of photographs: DIR/<class>/*.jpg, or DIR/*.jpg without labels; DIR is --data-dir.

Class folders and labels, of which `bench plan` shows the mapping:

- where every folder is named by an ImageNet id (n02395406), the label is ImageNet's index of it and
  the names are ImageNet's;
- where every folder is named by a number, they are sorted as numbers, which must follow each other
  from 0 or 1, so that an index does not depend on which folders are there;
- other names are classes in the order of their text, capitals first, as torchvision sorts them;
- `params = { classes = ["cat", "dog"] }` names the folders in the order of their labels, and takes
  no other.

A folder without images is refused where it would shift the labels of those after it. In a flat
folder the model's own clean prediction is the label, and the data set's name in tables says so.

Files are taken by their suffix (SUFFIXES, in capitals, too). Hidden files and folders, those that
tools leave behind (LEFT_BY_TOOLS) and files of other kinds are left out and counted in the mapping;
links are followed; folders in class folders are refused if they hold images.

The images come class by class in turn, so that a limit takes some of each. They are decoded when
they are needed, as `images.decode` says.
Source of the ids: ILSVRC 2012, Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575
"""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import MissingDataError, SuiteError
from bench.datasets import inputs
from bench.datasets.image_files import decode_image, describe_treatment
from bench.datasets.imagenet_classes import load_imagenet_names

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
LEFT_BY_TOOLS = ("__MACOSX", "__pycache__", "@eaDir")
_NUMBER = re.compile(r"[+-]?\d+", re.ASCII)
WHERE = "data image_folder"


class _Classes(NamedTuple):
    """Class folders in the order of their labels."""

    folders: dict[str, int]
    """Name of a folder -> label."""
    names: tuple[str, ...]
    """Names of the classes in index order."""
    order: str
    """How labels follow from names, for people."""


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

    Raises:
        SuiteError: There is no image, a file is none, or labels would be a guess.
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
        told = {"labels": "the model's clean predictions", "classes": "ImageNet's"}
    else:
        given = _classes([folder.name for folder in folders], filled, classes)
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
        names, told = given.names, _mapping(given, data_dir)
    name = data_dir.resolve().name
    hashed, treated = _look(paths)

    def read(first: int, last: int) -> Tensor:
        return torch.stack([decode_image(path, resize, crop) for path in paths[first:last]])

    return Data(
        name=name if labels is not None else f"{name} (labels: the model's clean predictions)",
        read=read,
        labels=labels,
        n=len(paths),
        shape=(3, crop, crop),
        classes=names,
        fingerprint=_fingerprint(hashed, treated, labels, resize, crop),
        mapping={
            "pixels": "8 bits a channel, divided by 255",
            "files": _files(paths, treated, resize, crop),
            **told,
            **_left_out(data_dir, folders),
        },
    )


# --------------------------------------------------------------------------------- which files


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, but for what is hidden or left by tools."""
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
    """Raises: SuiteError if a class folder holds folders of images, which nothing would read."""
    for below in _folders(folder):
        if _images(below):
            raise SuiteError(
                f"{WHERE}: {below} holds images inside of a class folder; expected "
                "DIR/<class>/*.jpg, without folders below"
            )


def _left_out(data_dir: Path, folders: Sequence[Path]) -> dict[str, str]:
    """Files and folders that are not taken, in the mapping's words; empty if there are none."""
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
    told = [f"{count} {kind}" for kind, count in sorted(kinds.items()) if count]
    return {"left out": ", ".join(told)} if told else {}


def _look(paths: Sequence[Path]) -> tuple[list[bytes], list[str]]:
    """sha256 of each file, and what is done to it beyond resizing and cutting."""
    hashed, treated = [], []
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise SuiteError(
                f"{WHERE}: {path} could not be read: {error.strerror}; mend or remove it"
            ) from error
        hashed.append(hashlib.sha256(content).digest())
        treated.append(describe_treatment(path, content))
    return hashed, treated


# -------------------------------------------------------------------------------- which labels


def _classes(
    names: Sequence[str], filled: dict[str, list[Path]], given: Sequence[str] | None
) -> _Classes:
    """Labels of class folders by their names, or as `given` in the suite.

    Raises:
        SuiteError: Labels would depend on what happens to be there.
    """
    if given is not None:
        return _listed(names, given)
    wnids = Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split()
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
        return _numbered(numbers)
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


_LISTING = "the folders in the order of their labels by params = { classes = [...] }"


def _listed(names: Sequence[str], given: Sequence[str]) -> _Classes:
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


def _numbered(numbers: Sequence[str]) -> _Classes:
    """Labels of folders that are all named by numbers."""
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
    told = "folders in the order of their numbers" + (", less 1" if first else "")
    return _Classes(label, tuple(ordered), told)


# ------------------------------------------------------------------------------- what is said


def _mapping(given: _Classes, data_dir: Path) -> dict[str, str]:
    return {
        "labels": f"{given.order} in {data_dir.resolve().name}",
        "classes": inputs.list_names(given.names),
    }


def _files(paths: Sequence[Path], treated: Sequence[str], resize: int, crop: int) -> str:
    counts = Counter(each for each in treated if each)
    told = "".join(f"; {count} {what}" for what, count in sorted(counts.items()))
    return f"{len(paths)}, short side to {resize}, middle {crop} x {crop}{told}"


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
