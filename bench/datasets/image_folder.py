"""A folder of photographs: DIR/<class>/*.jpg, or DIR/*.jpg without labels; DIR is --data-dir.

Where every class folder is named by an ImageNet id (n02395406), the label is ImageNet's index of
it and the names are ImageNet's; other folder names are classes in alphabetical order. In a flat
folder the model's own clean prediction is the label, and the data set's name in tables says so.
The images come class by class in turn, so that a limit takes some of each. They are decoded when
they are needed: resized by their short side, cut to the middle square, as torchvision's own
ImageNet transforms do.
Source of the ids: ILSVRC 2012, Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from bench.contracts import Data, Dataset
from bench.errors import SuiteError
from bench.images import decode, imagenet_names

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def load(
    limit: int | None = None, *, data_dir: Path, resize: int = 256, crop: int = 224, **_: object
) -> Data:
    """The first `limit` images of the folder, (n, 3, crop, crop); `resize` is the short side.

    Raises: SuiteError if there is no image, or a file is none.
    """
    if not 1 <= crop <= resize:
        raise SuiteError(f"data image_folder: expected 1 <= crop <= resize, got {crop}, {resize}")
    flat = _images(data_dir)
    folders = sorted({path.parent for path in data_dir.glob("*/*") if _is_image(path)})
    if flat and folders:
        raise SuiteError(
            f"data image_folder: {data_dir} holds images and folders of images; expected either "
            "one folder for each class, or images alone"
        )
    if not flat and not folders:
        raise SuiteError(
            f"data image_folder: expected images in {data_dir} or in folders of it, found none; "
            "name the folder with --data-dir"
        )
    ranked = [(rank, path) for folder in folders for rank, path in enumerate(_images(folder))]
    paths = flat or [path for _, path in sorted(ranked, key=lambda pair: (pair[0], pair[1]))]
    paths = paths[:limit]
    labels, classes = _labels(paths, folders) if folders else (None, imagenet_names())
    name = data_dir.resolve().name

    def read(first: int, last: int) -> Tensor:
        return torch.stack([decode(path, resize, crop) for path in paths[first:last]])

    return Data(
        name=name if folders else f"{name} (labels: the model's clean predictions)",
        read=read,
        labels=labels,
        n=len(paths),
        shape=(3, crop, crop),
        classes=classes,
        fingerprint=_fingerprint(paths, labels, resize, crop),
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if _is_image(path))


def _labels(paths: list[Path], folders: list[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """Labels by ImageNet's ids where all folders are named so, else by alphabetical order."""
    wnids = Path(__file__).with_name("imagenet_wnids.txt").read_text(encoding="ascii").split()
    names = [folder.name for folder in folders]
    known = set(names) <= set(wnids)
    order = {name: index for index, name in enumerate(wnids if known else names)}
    labels = torch.tensor([order[path.parent.name] for path in paths])
    return labels, imagenet_names() if known else tuple(names)


def _fingerprint(paths: list[Path], labels: Tensor | None, resize: int, crop: int) -> str:
    digest = hashlib.sha256(
        f"{resize} {crop} {None if labels is None else labels.tolist()}".encode()
    )
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


DATASET = Dataset(
    summary="a folder of photographs, one folder a class (ImageNet ids or any names), or flat",
    source="the user's own; ids of ILSVRC 2012",
    load=load,
)
