"""Every data set of an installed package: images in [0, 1], labels, slices, a fingerprint."""

from pathlib import Path

import pytest
import torch

from bench.core import files, registry
from bench.core.contracts.dataset import Data
from bench.core.errors import MissingDataError
from bench.evaluation import loading
from bench.suite.schema import DataEntry

NAMES = list(registry.discover("datasets").usable)
N = 8
"""Images that are loaded."""
if not NAMES:
    pytest.skip("no installed package offers a data set", allow_module_level=True)


def load_first(name: str, n: int) -> Data:
    """Load the first images of a data set, checked as in a run.

    Args:
        name: Registered name.
        n: Most images.

    Returns:
        The images and labels.
    """
    try:
        return loading.load_data(DataEntry(name=name), Path(), files.data_folder(None), n)
    except MissingDataError as error:
        pytest.skip(str(error))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a data set."""
    return str(request.param)


def test_a_data_set_says_what_it_is(name: str) -> None:
    assert registry.find("datasets", name).summary
    assert registry.find("datasets", name).source


def test_images_are_in_the_box_and_labels_are_classes(name: str) -> None:
    data = load_first(name, N)
    images = data.read(0, data.n)
    assert 0 < data.n <= N
    assert images.shape == (data.n, *data.shape)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    if data.labels is not None:
        assert data.labels.shape == (data.n,)
        assert not data.classes or int(data.labels.max()) < len(data.classes)


def test_a_slice_is_the_same_however_it_is_read(name: str) -> None:
    data = load_first(name, N)
    one_by_one = torch.cat([data.read(at, at + 1) for at in range(data.n)])
    assert torch.equal(one_by_one, data.read(0, data.n))


def test_a_limit_takes_the_first_images(name: str) -> None:
    data, fewer = load_first(name, N), load_first(name, 2)
    assert torch.equal(fewer.read(0, fewer.n), data.read(0, fewer.n))


def test_the_fingerprint_is_that_of_the_content(name: str) -> None:
    data, again, fewer = load_first(name, N), load_first(name, N), load_first(name, 1)
    assert data.fingerprint == again.fingerprint
    assert fewer.n == data.n or fewer.fingerprint != data.fingerprint
