"""Load SVHN: 73,257 training, 26,032 test and 531,131 extra images, 32x32 in colour.

The files count the digit 0 as 10; torchvision turns it into the label 0.
Source: Netzer et al. 2011, http://ufldl.stanford.edu/housenumbers
"""

from bench.core.contracts.dataset import Dataset
from bench.datasets.vision import VisionSet

_SET = VisionSet(
    name="svhn",
    kind="SVHN",
    files={split: (f"{split}_32x32.mat",) for split in ("train", "test", "extra")},
    classes=tuple("0123456789"),
    archive="the .mat files of http://ufldl.stanford.edu/housenumbers (not packed)",
    by_split=True,
)

DATASET = Dataset(
    summary="SVHN, 73,257 training and 26,032 test images of house numbers, 32x32 in colour",
    source="Netzer et al. 2011",
    load=_SET.load,
    reads=_SET.list_files,
)
