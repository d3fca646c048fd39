"""MNIST in torchvision's layout (DIR/MNIST/raw), downloaded through torchvision where absent.

Source: LeCun et al. 1998, http://yann.lecun.com/exdb/mnist
"""

import os
from pathlib import Path

from bench.contracts import Data, Dataset
from bench.datasets import in_memory
from bench.errors import SuiteError

SIZES = {"train": 60_000, "test": 10_000}
FILES = tuple(
    f"{split}-{part}"
    for split in ("train", "t10k")
    for part in ("images-idx3-ubyte", "labels-idx1-ubyte")
)


def load(split: str = "test", limit: int | None = None, *, data_dir: Path, **_: object) -> Data:
    """The first `limit` images of `split` ("train" or "test"), (n, 1, 28, 28).

    Raises: SuiteError naming the missing or damaged file and where it belongs.
    """
    from torchvision.datasets import MNIST

    if split not in SIZES:
        raise SuiteError(f"data mnist: split '{split}' is unknown; expected 'train' or 'test'")
    raw = data_dir / "MNIST" / "raw"
    # torchvision wants all four files, whichever split is read.
    missing = [name for name in FILES if not (raw / name).exists()]
    try:
        allowed = bool(missing) and not os.environ.get("BENCH_OFFLINE")
        images = MNIST(str(data_dir), train=split == "train", download=allowed)
    except Exception as error:  # torchvision raises whatever its reader trips over
        if missing:
            problem = f"{', '.join(missing)} not found and not downloaded"
        else:
            problem = f"a file of the {split} split is damaged ({error})"
        raise SuiteError(
            f"data mnist: {problem}; put the unpacked MNIST files into {raw}, "
            "or name the folder above MNIST with --data-dir or BENCH_DATA_DIR"
        ) from error
    if not len(images.data) == len(images.targets) == SIZES[split]:
        raise SuiteError(
            f"data mnist: expected {SIZES[split]} images and labels in {raw}, got "
            f"{len(images.data)} and {len(images.targets)}; fetch the files again"
        )
    rows = slice(limit)
    return in_memory(
        "mnist", images.data[rows].unsqueeze(1), images.targets[rows], tuple("0123456789")
    )


DATASET = Dataset(
    summary="MNIST, 60,000 training and 10,000 test images, 28x28 grey",
    source="LeCun et al. 1998",
    load=load,
)
