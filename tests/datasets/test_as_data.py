"""What users have becomes the same data in any form; what cannot be read is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchvision.transforms.functional import to_pil_image

import bench
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets import streamed
from bench.datasets.as_data import as_data
from bench.evaluation import loading
from bench.storage.fingerprint import records_hash
from bench.suite.schema import DataEntry

N = 12
LEVELS = (torch.arange(N * 3 * 9 * 8) * 7 % 256).to(torch.uint8).view(N, 3, 9, 8)
FLOATS = LEVELS.float() / 255
Y = torch.arange(N) % 3
GREY = LEVELS[:, :1, :8]


class Pairs(Dataset[Any]):
    """A map-style data set of images as `make` converts them."""

    def __init__(self, make: Callable[[Tensor], Any], label: Callable[[int], Any] = int) -> None:
        self.make, self.label = make, label

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        if index >= N:
            raise IndexError(index)
        return self.make(LEVELS[index]), self.label(int(Y[index]))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return zip(FLOATS, Y, strict=True)


class Columns(Pairs):
    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return {"id": index, "image": image, "label": label}


def big_endian(x: Tensor) -> Any:
    return x.numpy().astype(">f4")


SAME: dict[str, Callable[[], tuple[Any, ...]]] = {
    "levels": lambda: (LEVELS, Y),
    "floats": lambda: (FLOATS, Y),
    "doubles": lambda: (FLOATS.double(), Y),
    "arrays": lambda: (FLOATS.numpy(), Y.numpy()),
    "a tensor and an array": lambda: (FLOATS, Y.numpy().astype(np.int32)),
    "a pair": lambda: ((FLOATS, Y),),
    "a list of labels": lambda: (FLOATS, Y.tolist()),
    "channels last": lambda: (LEVELS.permute(0, 2, 3, 1).numpy(), Y),
    "channels last, contiguous": lambda: (LEVELS.permute(0, 2, 3, 1).contiguous(), Y),
    "big endian": lambda: (big_endian(FLOATS), Y.numpy().astype(">i8")),
    "reversed twice": lambda: (FLOATS.flip(0).numpy()[::-1], Y),
    "a TensorDataset": lambda: (TensorDataset(FLOATS, Y),),
    "a data set of photographs": lambda: (Pairs(to_pil_image),),
    "a data set of arrays": lambda: (Pairs(lambda x: x.permute(1, 2, 0).numpy(), np.int64),),
    "a data set of columns": lambda: (Columns(to_pil_image),),
    "a list of examples": lambda: ([(x, int(y)) for x, y in zip(FLOATS, Y, strict=True)],),
    "an iterable data set": lambda: (Stream(),),
    "a loader": lambda: (DataLoader(TensorDataset(FLOATS, Y), batch_size=5),),
    "a loader of levels": lambda: (DataLoader(TensorDataset(LEVELS, Y), batch_size=5),),
    "a loader of single examples": lambda: (
        DataLoader(TensorDataset(FLOATS, Y), batch_size=None),
    ),
    "a loader of columns": lambda: (DataLoader(Columns(lambda x: x), batch_size=7),),
    "a Data": lambda: (as_data(LEVELS, Y),),
}  # fmt: skip


@pytest.mark.parametrize("form", SAME)
@pytest.mark.parametrize("limit", [None, 7])
def test_the_same_images_have_one_fingerprint_in_every_form(form: str, limit: int | None) -> None:
    found, n = as_data(*SAME[form](), limit=limit), limit or N
    assert torch.equal(found.read(0, n), FLOATS[:n])
    assert found.labels is not None
    assert torch.equal(found.labels, Y[:n])
    assert found.n == n
    if form != "a Data" or limit is None:
        assert found.fingerprint == as_data(LEVELS[:n], Y[:n]).fingerprint


def test_other_images_labels_or_order_have_another_fingerprint() -> None:
    altered = FLOATS.clone()
    altered[3, 1, 2, 2] += 1e-4
    order = torch.arange(N).flip(0)
    found = {
        as_data(x, y).fingerprint
        for x, y in [
            (FLOATS, Y), (altered, Y), (FLOATS, (Y + 1) % 3), (FLOATS[order], Y[order]),
            (FLOATS[:, :, :8], Y),
        ]
    }  # fmt: skip
    assert len(found) == 5


def test_tensors_a_loader_and_photographs_give_the_same_records() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 8, 3))
    nn.init.trunc_normal_(net[1].weight, generator=torch.Generator().manual_seed(0))
    hashes = set()
    for form in ("levels", "a loader", "a data set of photographs"):
        data = as_data(*SAME[form]())
        assert data.labels is not None
        found = bench.evaluate(
            net, data.read(0, N), data.labels, eps=0.02, params={"steps": 3}, device="cpu",
            allow=["near-chance"],
        )  # fmt: skip
        hashes.add(records_hash(found.records))
    assert len(hashes) == 1


def test_grey_images_may_lack_the_axis_of_channels_or_have_it_last() -> None:
    plain = as_data(GREY, Y)
    for images in (GREY[:, 0], GREY.permute(0, 2, 3, 1)):
        found = as_data(images.numpy(), Y)
        assert found.fingerprint == plain.fingerprint
        assert found.shape == (1, 8, 8)
    assert as_data(GREY[:, 0], Y).mapping["layout"] == "(n, h, w), grey images"
    assert "channels last" in as_data(GREY.permute(0, 2, 3, 1), Y).mapping["layout"]
    assert "layout" not in plain.mapping


def test_an_ambiguous_layout_is_refused_until_it_is_named() -> None:
    images = torch.rand(N, 10, 20, 1, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SuiteError, match="may be \\(n, c, h, w\\) or \\(n, h, w, c\\); say layout"):
        as_data(images, Y)
    assert as_data(images, Y, layout="nhwc").shape == (1, 10, 20)
    assert as_data(images, Y, layout="nchw").shape == (10, 20, 1)
    assert as_data(torch.zeros(N, 6, 1, 1), Y).shape == (6, 1, 1)


def test_a_shuffled_loader_is_read_once_and_in_one_order_in_every_process() -> None:
    def shuffled() -> Data:
        return as_data(DataLoader(TensorDataset(FLOATS, Y), batch_size=5, shuffle=True))

    state = torch.get_rng_state()
    first, again = shuffled(), shuffled()
    assert torch.equal(state, torch.get_rng_state())
    assert first.fingerprint == again.fingerprint != as_data(FLOATS, Y).fingerprint
    assert first.mapping["order"] == "as the loader's sampler chose it, once"
    assert first.labels is not None
    for image, label in zip(first.read(0, N), first.labels, strict=True):
        place = next(index for index in range(N) if torch.equal(FLOATS[index], image))
        assert Y[place] == label


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_of_augmented_images_is_read_once_and_said_to_be_random(shuffle: bool) -> None:
    def load(make: Callable[[Tensor], Any]) -> Data:
        return as_data(DataLoader(Pairs(make), batch_size=5, shuffle=shuffle))

    found, again = (load(lambda x: x.flip(2) if torch.rand(()) < 0.5 else x) for _ in range(2))
    assert found.mapping["images"].startswith("random, such as by augmentation")
    assert ("order" in found.mapping) == shuffle
    assert torch.equal(found.read(0, N), found.read(0, N))
    assert found.fingerprint == again.fingerprint != as_data(FLOATS, Y).fingerprint
    assert "images" not in load(lambda x: x).mapping


def test_a_loader_that_drops_its_last_batch_has_fewer_examples() -> None:
    loader = DataLoader(TensorDataset(FLOATS, Y), batch_size=5, drop_last=True)
    assert as_data(loader).fingerprint == as_data(FLOATS[:10], Y[:10]).fingerprint


def test_what_is_larger_than_memory_allows_is_read_again_and_has_the_same_fingerprint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", LEVELS.permute(0, 2, 3, 1).numpy())
    plain, asked = as_data(LEVELS, Y), []

    def note(x: Tensor) -> Tensor:
        asked.append(1)
        return x

    monkeypatch.setattr(streamed, "RESIDENT", 1000)
    monkeypatch.setattr(streamed, "BLOCK", 5)
    mapped = as_data(np.load(tmp_path / "x.npy", mmap_mode="r"), Y)
    found = as_data(Pairs(note))
    assert found.fingerprint == mapped.fingerprint == plain.fingerprint
    before = len(asked)
    assert torch.equal(found.read(3, 6), FLOATS[3:6])
    assert torch.equal(mapped.read(3, 6), FLOATS[3:6])
    assert len(asked) == before + 3


def test_class_names_of_a_data_set_are_taken_and_checked() -> None:
    pairs = Pairs(to_pil_image)
    pairs.classes = ["ant", "bee", "cat"]  # type: ignore[attr-defined]
    assert as_data(pairs).classes == ("ant", "bee", "cat")
    pairs.classes = ["ant", "bee"]  # type: ignore[attr-defined]
    with pytest.raises(SuiteError, match="from 0 to 1, one for each of 2 classes, got 0 to 2"):
        as_data(pairs)
    with pytest.raises(SuiteError, match="got 1 to 3; they count from 1, so subtract 1"):
        as_data(FLOATS, Y + 1, classes=["ant", "bee", "cat"])
    assert "if they count from 1, subtract 1" in as_data(FLOATS, Y + 1).mapping["labels"]


NOISE = torch.Generator().manual_seed(0)
REFUSED: dict[str, tuple[Callable[[], tuple[Any, ...]], str]] = {
    "images alone": (lambda: (FLOATS,), "got Tensor; give the labels as well"),
    "levels as floats": (lambda: (LEVELS.float(), Y), "divide them by 255, or give these levels"),
    "normalised": (lambda: (FLOATS * 4 - 2, Y), "normalise inside the model"),
    "fewer labels": (lambda: (FLOATS, Y[:5]), "got (12, 3, 9, 8) and (5,)"),
    "float labels": (lambda: (FLOATS, Y.float()), "labels.long() makes them whole"),
    "text": (lambda: (["a"] * N, Y), "expected an array of numbers, got list"),
    "objects": (lambda: (np.array([None] * N), Y), "expected an array of numbers, got ndarray"),
    "a number": (lambda: (3,), "expected (images, labels) as tensors or arrays, a map-style"),
    "an empty data set": (lambda: ([],), "expected at least one example, got none"),
    "triples": (lambda: ([(0, 1, 2)] * 3,), "to be (image, label), got tuple of 3"),
    "other columns": (
        lambda: ([{"photo": FLOATS[0], "label": 0}] * 3,),
        "no column is called as an image usually is; name it by params",
    ),
    "other sizes": (
        lambda: ([(FLOATS[0], 0), (FLOATS[0, :, 1:], 1)],),
        "images of one shape, got (3, 9, 8) and then (3, 8, 8); say size = 224",
    ),
    "augmentation": (
        lambda: (Pairs(lambda x: torch.rand(x.shape, generator=NOISE)),),
        "12 of the first 12 images are others when they are read again",
    ),
    "a random flip": (
        lambda: (Pairs(lambda x: x.flip(2) if torch.rand((), generator=NOISE) < 0.5 else x),),
        "of the first 12 images are others when they are read again; let the data set give the",
    ),
    "a label of two": (lambda: (Pairs(to_pil_image, lambda y: torch.tensor([y, y])),), "label to"),
    "a broken data set": (lambda: (Pairs(lambda x: 1 / 0),), "ZeroDivisionError: division by zero"),
    "no class of data sets": (lambda: ("cifar11",), "dataset 'cifar11' is unknown; "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(case: str) -> None:
    make, part = REFUSED[case]
    with pytest.raises(SuiteError) as caught:
        as_data(*make())
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_is_loaded_as_in_a_suite() -> None:
    found = as_data("digits", limit=5)
    assert (found.n, found.name, len(found.classes)) == (5, "digits", 10)


def test_a_factory_of_a_suite_may_return_any_of_these(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def data(): return TensorDataset(torch.arange(48).view(12, 1, 2, 2) / 255,"
        " torch.arange(12) % 3)\n"
    )
    found = loading.load_data(DataEntry(name="mine.py:data", limit=6), tmp_path, tmp_path, None)
    images = torch.arange(48, dtype=torch.uint8).view(12, 1, 2, 2)[:6]
    assert found.fingerprint == as_data(images, torch.arange(6) % 3).fingerprint
