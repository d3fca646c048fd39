"""Load ImageNet's validation images (ILSVRC 2012), 3x224x224, from either of its usual layouts.

The data folder, or its folder `imagenet`, holds the folder `val` (or ILSVRC/Data/CLS-LOC/val) with

- one folder per class, `val/n01440764/*.JPEG`, as torchvision arranges them; or
- all images flat, `val/ILSVRC2012_val_00000001.JPEG`, and beside `val` one of the files that have
  their labels: `meta.bin` of torchvision, `ILSVRC2012_devkit_t12.tar.gz` or its unpacked folder,
  or `LOC_val_solution.csv` of Kaggle's copy.

Labels are indices of the sorted class ids (wnids), as in torchvision and its weights; the ids of
the devkit's ground truth are in another order and are converted. Flat images are in the order of
their names; images in class folders alternate between the classes.
Source: Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575
"""

import csv
import dataclasses
import io
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import MissingDataError, SuiteError, first_line
from bench.datasets import image_folder
from bench.datasets.image_folder import SUFFIXES
from bench.datasets.imagenet_classes import load_imagenet_names, load_imagenet_wnids

WHERE = "data imagenet"
PLACES = ("val", "ILSVRC/Data/CLS-LOC/val")
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_NUMBER = re.compile(r"ILSVRC2012_val_(\d{8})", re.ASCII)


def load(
    split: str = "val",
    limit: int | None = None,
    *,
    data_dir: Path,
    resize: int = 256,
    crop: int = 224,
) -> Data:
    """Load the first validation images.

    Args:
        split: "val", or "test", which means the same: the labels of the test images are secret.
        limit: Most images; None for all.
        data_dir: Folder that contains `val` or `imagenet/val`.
        resize: Length of the short side before the middle square is cut.
        crop: Length of the sides of the square.

    Returns:
        Images with labels.

    Raises:
        SuiteError: The split is unknown, or a file is damaged.
        MissingDataError: Images or their labels are missing.
    """
    if split not in ("val", "test"):
        raise SuiteError(f"{WHERE}: split '{split}' is unknown; expected 'val'")
    if not 1 <= crop <= resize:
        raise SuiteError(f"{WHERE}: expected 1 <= crop <= resize, got {crop}, {resize}")
    tops = (data_dir, data_dir / "imagenet")
    found = [(top, top / place) for top in tops for place in PLACES if (top / place).is_dir()]
    if not found:
        raise MissingDataError(
            f"{WHERE}: the folder val not found in {data_dir} or {data_dir / 'imagenet'}; unpack "
            "ILSVRC2012_img_val.tar of https://image-net.org/download (after registration) into "
            f"{data_dir / 'imagenet' / 'val'}, or name another folder by --data-dir or "
            "BENCH_DATA_DIR"
        )
    top, folder = found[0]
    entries = sorted(folder.iterdir())
    numbers = {
        int(match.group(1)): path
        for path in entries
        if (match := _NUMBER.match(path.name)) and path.suffix.lower() in SUFFIXES
    }
    if not numbers:
        data = image_folder.load(limit, data_dir=folder, resize=resize, crop=crop)
        if data.labels is None or len(data.classes) != len(load_imagenet_names()):
            raise SuiteError(
                f"{WHERE}: expected folders named by class ids (n01440764) or files named "
                f"ILSVRC2012_val_00000001.JPEG in {folder}"
            )
        mapping = {"split": "val", **data.mapping}
        return dataclasses.replace(data, name="imagenet", mapping=mapping)
    wnids, file = _read_labels(top)
    index = {wnid: label for label, wnid in enumerate(load_imagenet_wnids())}
    chosen = sorted(numbers)[:limit]
    try:
        labels = torch.tensor([index[wnids[number]] for number in chosen])
    except KeyError as error:
        raise SuiteError(f"{WHERE}: {file} has no label of {error} in {folder}") from error
    return image_folder.make_data(
        WHERE,
        "imagenet",
        [numbers[number] for number in chosen],
        labels,
        load_imagenet_names(),
        (resize, crop),
        {
            "split": "val",
            "labels": f"by {file.name}, as indices of the sorted class ids",
            "classes": "ImageNet's",
        },
    )


# -------------------------------------------------------------------- labels of the flat images


def _read_labels(top: Path) -> tuple[dict[int, str], Path]:
    """Return the class id of each image by its number, and the file that they were read from."""
    readers: dict[Path, Callable[[Path], dict[int, str]]] = {
        top / "meta.bin": _read_meta,
        top / DEVKIT / "data" / TRUTH: _read_devkit,
        top / f"{DEVKIT}.tar.gz": _read_archive,
        top / "LOC_val_solution.csv": _read_csv,
    }
    for path, read in readers.items():
        if path.is_file():
            try:
                return read(path), path
            except (
                OSError, ValueError, KeyError, IndexError, TypeError, EOFError, RuntimeError,
                tarfile.TarError, pickle.UnpicklingError,
            ) as error:  # fmt: skip
                raise SuiteError(
                    f"{WHERE}: {path} cannot be read: {first_line(error)}; fetch it again"
                ) from error
    names = ", ".join(str(path.relative_to(top)) for path in readers)
    raise MissingDataError(
        f"{WHERE}: the images of {top} are not in class folders and their labels were not found; "
        f"put one of {names} into {top}"
    )


def _read_meta(path: Path) -> dict[int, str]:
    """Read what torchvision parsed from the devkit: (names by wnid, wnids of the images)."""
    wnids = torch.load(path, weights_only=True)[1]
    return {number: str(wnid) for number, wnid in enumerate(wnids, 1)}


def _read_devkit(path: Path) -> dict[int, str]:
    """Read the ground truth of the unpacked devkit."""
    return _convert_truth(path.read_text(encoding="ascii"), path.with_name("meta.mat").read_bytes())


def _read_archive(path: Path) -> dict[int, str]:
    """Read the ground truth of the packed devkit."""
    with tarfile.open(path) as archive:

        def read(name: str) -> bytes:
            file = archive.extractfile(f"{DEVKIT}/data/{name}")
            if file is None:
                raise ValueError(f"{name} is no file")
            return file.read()

        return _convert_truth(read(TRUTH).decode("ascii"), read("meta.mat"))


def _convert_truth(truth: str, meta: bytes) -> dict[int, str]:
    """Convert the devkit's ids to class ids."""
    from scipy import io as scipy_io

    read: Callable[..., Any] = scipy_io.loadmat  # its stubs know no file in memory
    synsets = read(io.BytesIO(meta), squeeze_me=True)["synsets"]
    wnid = {int(each["ILSVRC2012_ID"]): str(each["WNID"]) for each in synsets}
    return {number: wnid[int(line)] for number, line in enumerate(truth.split(), 1)}


def _read_csv(path: Path) -> dict[int, str]:
    """Read Kaggle's table: ImageId, and a class id with boxes."""
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            match = _NUMBER.match(row["ImageId"])
            if match:
                found[int(match.group(1))] = row["PredictionString"].split()[0]
    return found


DATASET = Dataset(
    summary="ImageNet's 50,000 validation images, 224x224, from class folders or the flat archive",
    source="Russakovsky et al. 2015",
    load=load,
)
