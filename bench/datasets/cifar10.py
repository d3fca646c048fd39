"""Load CIFAR-10: 50,000 training and 10,000 test images, 32x32 in colour.

Files are in `cifar-10-batches-py` of the data folder.
Source: Krizhevsky 2009, https://www.cs.toronto.edu/~kriz/cifar.html
"""

from bench.core.contracts.dataset import Dataset
from bench.datasets.vision import VisionSet

_FOLDER = "cifar-10-batches-py"
_FILES = tuple(
    f"{_FOLDER}/{name}"
    for name in ("batches.meta", *(f"data_batch_{k}" for k in range(1, 6)), "test_batch")
)  # torchvision checks the files of both splits
_SET = VisionSet(
    name="cifar10",
    kind="CIFAR10",
    files={"train": _FILES, "test": _FILES},
    classes=(
        "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
    ),
    archive="cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html",
)  # fmt: skip

DATASET = Dataset(
    summary="CIFAR-10, 50,000 training and 10,000 test images, 32x32 in colour",
    source="Krizhevsky 2009",
    load=_SET.load,
    reads=_SET.list_files,
)
