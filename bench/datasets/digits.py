"""Load scikit-learn's handwritten digits, upscaled from 8x8 to 28x28: no download is needed.

1,797 images (UCI optical recognition of handwritten digits, test part; Alpaydin and Kaynak 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0), split by a hash of each image's index into 500 for
testing and 1,297 for training. Upscaled bilinearly and rounded to 8 bits. The strokes are smoother
than MNIST's, so results at the same eps are not comparable.
"""

import torch

from bench.core.contracts.dataset import Data, Dataset
from bench.core.errors import SuiteError
from bench.core.rng import fold
from bench.datasets.in_memory import make_data

TEST = 500
"""Images of the test split."""


def load(split: str = "test", limit: int | None = None, **_: object) -> Data:
    """Load the first images of a split.

    Args:
        split: "train" or "test".
        limit: Most images; None for all.
        **_: Ignored.

    Returns:
        Images (n, 1, 28, 28) with labels.

    Raises:
        SuiteError: The split is unknown.
    """
    from sklearn.datasets import load_digits  # slow to import

    order = sorted(range(1797), key=lambda index: fold("digits", index))
    chosen = {"test": order[:TEST], "train": order[TEST:]}.get(split)
    if chosen is None:
        raise SuiteError(f"data digits: split '{split}' is unknown; expected 'train' or 'test'")
    chosen = chosen[:limit]
    raw = load_digits()
    small = torch.from_numpy(raw.images[chosen]).float().unsqueeze(1) / 16  # (n, 1, 8, 8)
    large = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear")
    levels = large.mul(255).round().to(torch.uint8)
    labels = torch.from_numpy(raw.target[chosen])
    return make_data("digits", levels, labels, tuple("0123456789"))


DATASET = Dataset(
    summary="scikit-learn's 1,797 handwritten digits at 28x28, 500 of them for testing",
    source="UCI, Alpaydin and Kaynak 1998",
    load=load,
    reads=lambda split, data_dir: (),
)
