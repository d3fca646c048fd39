"""What the tests of several attacks start from."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor, nn

from bench.datasets import digits
from bench.models import lenet


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained LeNet, frozen as the harness freezes it, and 24 digits that it gets right."""
    model = lenet.build()
    model.load_state_dict(
        load_file(Path(lenet.__file__).parent / "weights" / "lenet-digits.safetensors")
    )
    data = digits.load(limit=40)
    assert data.labels is not None
    x, y = data.read(0, 40), data.labels
    right = model.eval().requires_grad_(False)(x).argmax(1) == y
    return model, x[right][:24], y[right][:24]
