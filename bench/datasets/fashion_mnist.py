"""Load Fashion-MNIST: 60,000 training and 10,000 test images, 28x28 grey, from `FashionMNIST/raw`.

Source: Xiao et al. 2017, https://arxiv.org/abs/1708.07747
"""

from bench.core.contracts.dataset import Dataset
from bench.datasets.vision import VisionSet

_FILES = tuple(
    f"FashionMNIST/raw/{stem}-{part}-ubyte"
    for stem in ("train", "t10k")
    for part in ("images-idx3", "labels-idx1")
)  # torchvision asks for the files of both splits
_SET = VisionSet(
    name="fashion_mnist",
    kind="FashionMNIST",
    files={"train": _FILES, "test": _FILES},
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    ),
    archive="the .gz files of https://github.com/zalandoresearch/fashion-mnist",
)  # fmt: skip

DATASET = Dataset(
    summary="Fashion-MNIST, 60,000 training and 10,000 test images, 28x28 grey",
    source="Xiao et al. 2017",
    load=_SET.load,
    reads=_SET.list_files,
)
