"""Load MNIST from torchvision's layout (DIR/MNIST/raw); torchvision downloads absent files.

The files are read without torchvision, whose import takes longer than an attack on a small model.
Source: LeCun et al. 1998, http://yann.lecun.com/exdb/mnist, which also specifies the format
"""

import math
import os
import struct
from pathlib import Path

import torch
from torch import Tensor

from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import MissingDataError, SuiteError, first_line
from bench.datasets.in_memory import make_data

SIZES = {"train": 60_000, "test": 10_000}
STEMS = {"train": "train", "test": "t10k"}


def load(
    split: str = "test", limit: int | None = None, *, data_dir: Path, first: int = 0, **_: object
) -> Data:
    """Load consecutive images of a split.

    Args:
        split: "train" or "test".
        limit: Most images; None for all.
        data_dir: Folder that contains MNIST/raw.
        first: Index of the first image in the split.
        **_: Ignored.

    Returns:
        Images (n, 1, 28, 28) with labels.

    Raises:
        SuiteError: The split is unknown, it has no image of that index, or a file is damaged.
        MissingDataError: A file is missing and cannot be downloaded.
    """
    if split not in SIZES:
        raise SuiteError(f"data mnist: split '{split}' is unknown; expected 'train' or 'test'")
    if not isinstance(first, int) or not 0 <= first < SIZES[split]:
        raise SuiteError(
            f"data mnist: first: expected the index of an image of the {split} split, 0 to "
            f"{SIZES[split] - 1}, got {first!r}"
        )
    raw = data_dir / "MNIST" / "raw"
    files = _files(split, data_dir)
    missing = [path.name for path in files if not path.exists()]
    try:
        if missing:
            _download(data_dir)
        images, labels = _read(files[0], 28, 28), _read(files[1])
    except Exception as error:  # torchvision's download may raise anything
        if missing:
            problem = f"{', '.join(missing)} not found and not downloaded"
        else:
            problem = f"a file of the {split} split is damaged ({first_line(error)})"
        kind = MissingDataError if missing else SuiteError
        raise kind(
            f"data mnist: {problem}; put the unpacked MNIST files into {raw}, "
            "or name the folder above MNIST with --data-dir or BENCH_DATA_DIR"
        ) from error
    if not len(images) == len(labels) == SIZES[split]:
        raise SuiteError(
            f"data mnist: expected {SIZES[split]} images and labels in {raw}, got "
            f"{len(images)} and {len(labels)}; fetch the files again"
        )
    rows = slice(first, None if limit is None else first + limit)
    return make_data("mnist", images[rows].unsqueeze(1), labels[rows], tuple("0123456789"))


def _files(split: str, data_dir: Path) -> list[Path]:
    """Return the files of images and labels of a split."""
    stem, raw = STEMS.get(split, split), data_dir / "MNIST" / "raw"
    return [raw / f"{stem}-{part}" for part in ("images-idx3-ubyte", "labels-idx1-ubyte")]


def _download(data_dir: Path) -> None:
    """Fetch the files of both splits, unless BENCH_OFFLINE forbids it."""
    if os.environ.get("BENCH_OFFLINE"):
        return
    from torchvision.datasets import MNIST

    MNIST(str(data_dir), download=True)


def _read(path: Path, *sides: int) -> Tensor:
    """Read an IDX file of uint8 arrays of shape `sides`.

    Raises:
        ValueError: The header or the length of the file is another.
    """
    content = path.read_bytes()
    n = int.from_bytes(content[4:8])
    header = struct.pack(f">{2 + len(sides)}I", 0x801 + len(sides), n, *sides)
    if not content.startswith(header) or len(content) != len(header) + n * math.prod(sides):
        raise ValueError(f"{path.name} is not as long, or not of the kind, that it should be")
    levels = torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=len(header))
    return levels.view(n, *sides)


DATASET = Dataset(
    summary="MNIST, 60,000 training and 10,000 test images, 28x28 grey",
    source="LeCun et al. 1998",
    load=load,
    reads=_files,
)
