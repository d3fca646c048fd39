"""Data sets by name: torchvision's, ImageNet's layouts, the hub's; their files are made here."""

import hashlib
import io
import pickle
import struct
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import Tensor
from torchvision import datasets as published

from bench.core import optional
from bench.core.contracts.dataset import Data
from bench.core.errors import MissingDataError, SuiteError
from bench.datasets.as_data import as_data
from bench.datasets.imagenet_classes import load_imagenet_wnids
from bench.evaluation import loading
from bench.suite.schema import DataEntry

N = 12
LEVELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 3, 32, 32), dtype=np.uint8))
GREY = LEVELS[:, :1, :28, :28].contiguous()
Y = torch.arange(N) % 10


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_OFFLINE", "1")


def load(
    name: str, folder: Path, split: str = "test", limit: int | None = None, **params: Any
) -> Data:
    entry = DataEntry(name=name, split=split, params=params)
    return loading.load_data(entry, folder, folder, limit)


def refusal(name: str, folder: Path, split: str = "test", **params: Any) -> str:
    with pytest.raises(SuiteError) as caught:
        load(name, folder, split, **params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -------------------------------------------------------------------- files in torchvision's layout


def write_cifar10(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = LEVELS.reshape(N, 3072).numpy()
    names = {"label_names": [f"class {k}" for k in range(10)]}
    batch = {"data": rows, "labels": Y.tolist()}
    contents = {"batches.meta": names, "test_batch": batch}
    contents |= {f"data_batch_{k}": batch for k in range(1, 6)}
    write_pickles(folder, published.CIFAR10, contents, monkeypatch)


def write_cifar100(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {"data": LEVELS.reshape(N, 3072).numpy(), "fine_labels": Y.tolist()}
    names = {"fine_label_names": [f"class {k}" for k in range(100)]}
    contents = {"meta": names, "train": batch, "test": batch}
    write_pickles(folder, published.CIFAR100, contents, monkeypatch)


def write_pickles(
    folder: Path, kind: Any, contents: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of pickles; torchvision reads only those with the checksums of the published ones."""
    sums = {}
    (folder / kind.base_folder).mkdir()
    for name, content in contents.items():
        packed = pickle.dumps(content)
        (folder / kind.base_folder / name).write_bytes(packed)
        sums[name] = hashlib.md5(packed).hexdigest()
    for listed in ("train_list", "test_list"):
        changed = [[name, sums[name]] for name, _ in getattr(kind, listed)]
        monkeypatch.setattr(kind, listed, changed)
    meta = kind.meta["filename"]
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[meta]})


def write_svhn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = torch.where(Y == 0, 10, Y).numpy()[:, None]
    content = {"X": LEVELS.permute(2, 3, 1, 0).numpy(), "y": labels}
    savemat(folder / "test_32x32.mat", content)
    md5 = hashlib.md5((folder / "test_32x32.mat").read_bytes()).hexdigest()
    kind = published.SVHN
    listed = {**kind.split_list, "test": [*kind.split_list["test"][:2], md5]}
    monkeypatch.setattr(kind, "split_list", listed)


def write_fashion_mnist(folder: Path, _: pytest.MonkeyPatch) -> None:
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        head = struct.pack(">4I", 0x803, N, 28, 28)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(head + GREY.numpy().tobytes())
        head = struct.pack(">2I", 0x801, N)
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(head + Y.to(torch.uint8).numpy().tobytes())


Writer = Callable[[Path, pytest.MonkeyPatch], None]
SETS: dict[str, tuple[Writer, str, Tensor, int]] = {
    "cifar10": (write_cifar10, "CIFAR10", LEVELS, 10),
    "cifar100": (write_cifar100, "CIFAR100", LEVELS, 100),
    "svhn": (write_svhn, "SVHN", LEVELS, 10),
    "fashion_mnist": (write_fashion_mnist, "FashionMNIST", GREY, 10),
}


@pytest.mark.parametrize("name", SETS)
def test_a_named_set_is_read_in_torchvisions_order_with_its_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, kind, images, n_classes = SETS[name]
    write(tmp_path, monkeypatch)
    found = load(name, tmp_path)
    assert found.fingerprint == as_data(images, Y).fingerprint
    assert torch.equal(found.read(3, 7), images[3:7] / 255)
    assert len(found.classes) == n_classes
    assert load(name, tmp_path, limit=5).fingerprint == as_data(images[:5], Y[:5]).fingerprint
    assert load(f"torchvision:{kind}", tmp_path).fingerprint == found.fingerprint


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("params", [{}, {"download": True}], ids=["plain", "download"])
def test_a_missing_set_names_file_folder_and_remedy(
    name: str, params: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(MissingDataError) as caught:
        load(name, tmp_path, **params)
    said = str(caught.value)
    assert said.startswith(f"data {name}: ")
    assert f"not found in {tmp_path}" in said
    assert "https://" in said or "http://" in said
    assert "--data-dir or BENCH_DATA_DIR" in said
    assert ("downloads are off, BENCH_OFFLINE is set" in said) == bool(params)
    fetch = "by params = { download = true } in a suite or --param data.download=true"
    assert said.endswith(fetch) == (not params)


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A test split of 10,000 black images, of which the k-th has the label k modulo 10."""
    folder = tmp_path_factory.mktemp("mnist")
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    head = struct.pack(">4I", 0x803, 10_000, 28, 28)
    (raw / "t10k-images-idx3-ubyte").write_bytes(head + bytes(10_000 * 784))
    head = struct.pack(">2I", 0x801, 10_000)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(head + bytes(range(10)) * 1000)
    return folder


def test_mnist_is_read_from_any_image_on(mnist: Path) -> None:
    assert load("mnist", mnist, limit=4).labels.tolist() == [0, 1, 2, 3]
    found = load("mnist", mnist, limit=4, first=5003)
    assert (found.n, found.labels.tolist()) == (4, [3, 4, 5, 6])
    assert load("mnist", mnist, first=9_998).labels.tolist() == [8, 9]


@pytest.mark.parametrize("first", [-1, 10_000, "5"])
def test_an_image_that_mnist_does_not_have_is_refused(first: object, mnist: Path) -> None:
    said = refusal("mnist", mnist, first=first)
    assert f"expected the index of an image of the test split, 0 to 9999, got {first!r}" in said


def test_a_damaged_file_is_told_from_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar10(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"cut")
    assert "is damaged or another than the published one" in refusal("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py" / "test_batch").unlink()
    assert "cifar-10-batches-py/test_batch not found" in refusal("cifar10", tmp_path)


def test_no_set_is_downloaded_unless_the_entry_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BENCH_OFFLINE")
    asked = []
    monkeypatch.setattr(published.SVHN, "download", lambda self: asked.append("svhn"))
    refusal("svhn", tmp_path)
    refusal("torchvision:SVHN", tmp_path)
    assert asked == []
    refusal("svhn", tmp_path, download=True)
    refusal("torchvision:SVHN", tmp_path, download=True)
    assert asked == ["svhn", "svhn"]


# ------------------------------------------------------------------------- torchvision by its class

FAKE = {"size": 20, "image_size": [3, 16, 16], "num_classes": 4}


def test_params_of_a_class_are_passed_on() -> None:
    found = load("torchvision:FakeData", Path(), **FAKE)
    theirs = published.FakeData(20, (3, 16, 16), 4)
    assert found.labels is not None
    assert (found.n, found.shape) == (20, (3, 16, 16))
    assert found.labels.tolist() == [int(label) for _, label in theirs]
    assert found.fingerprint == as_data(theirs).fingerprint


def test_images_of_unequal_size_need_a_size(tmp_path: Path) -> None:
    for k, size in enumerate([(40, 30), (20, 50)]):
        (tmp_path / f"class {k}").mkdir()
        Image.new("RGB", size, (k, 2, 3)).save(tmp_path / f"class {k}" / "a.png")
    told = refusal("torchvision:ImageFolder", tmp_path)
    assert "(3, 30, 40) and then (3, 50, 20); say size = 224" in told
    found = load("torchvision:ImageFolder", tmp_path, size=16, resize=18)
    assert (found.n, found.shape, found.classes) == (2, (3, 16, 16), ("class 0", "class 1"))
    assert "short side to 18, middle 16 x 16" in found.mapping["source"]
    grey = load("torchvision:ImageFolder", tmp_path, size=16, channels=3)
    assert grey.shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("name", "keys", "part"),
    [
        ("FakeDat", {}, "is unknown; did you mean 'FakeData'?"),
        ("FakeData", {"nclasses": 3}, "params: 'nclasses' is unknown; did you mean 'num_classes'?"),
        ("FakeData", {"transform": 3}, "params: 'transform' is unknown"),
        ("FakeData", {"split": "train"}, "it has no splits, got split 'train'"),
        ("MNIST", {"split": "val"}, "split 'val' is unknown; expected 'train' or 'test'"),
        ("STL10", {"split": "val"}, "Unknown value 'val' for argument split"),
        (
            "STL10",
            {},
            "say params = { download = true } in a suite or --param data.download=true, or put",
        ),
        ("ImageFolder", {"size": 8, "resize": 4}, "expected a `size` of at most 4, got 8"),
        ("ImageFolder", {"channels": 2}, "channels: expected 1 or 3, got 2"),
    ],
)
def test_a_mistake_in_an_entry_is_one_sentence(
    name: str, keys: dict[str, Any], part: str, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "a.png")
    assert part in refusal(f"torchvision:{name}", tmp_path, **keys)


# ---------------------------------------------------------------------------------------- ImageNet

WNIDS = load_imagenet_wnids()
TRUTH = [3, 999, 0, 3]
"""Class indices of the four flat images."""


def photograph(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade, 0, 0)).save(path, format="PNG")


def flat(folder: Path) -> Path:
    for k in range(4):
        photograph(folder / "val" / f"ILSVRC2012_val_{k + 1:08}.JPEG", 60 * k)
    return folder


def devkit() -> dict[str, bytes]:
    """The devkit's two files, whose ids are in another order than those of the classes."""
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O")]
    rows = np.array([(1000 - k, wnid) for k, wnid in enumerate(WNIDS)], dtype=kinds)
    packed = io.BytesIO()
    savemat(packed, {"synsets": rows[:, None]})
    truth = "\n".join(str(1000 - label) for label in TRUTH)
    name = "ILSVRC2012_validation_ground_truth.txt"
    return {"meta.mat": packed.getvalue(), name: truth.encode()}


def write_devkit(folder: Path) -> None:
    (folder / "ILSVRC2012_devkit_t12" / "data").mkdir(parents=True)
    for name, content in devkit().items():
        (folder / "ILSVRC2012_devkit_t12" / "data" / name).write_bytes(content)


def write_archive(folder: Path) -> None:
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        for name, content in devkit().items():
            info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/data/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_meta(folder: Path) -> None:
    torch.save(({}, [WNIDS[label] for label in TRUTH]), folder / "meta.bin")


def write_csv(folder: Path) -> None:
    rows = [f"ILSVRC2012_val_{k + 1:08},{WNIDS[TRUTH[k]]} 1 2 3 4" for k in (2, 0, 3, 1)]
    text = "\n".join(["ImageId,PredictionString", *rows])
    (folder / "LOC_val_solution.csv").write_text(text)


@pytest.mark.parametrize("write", [write_devkit, write_archive, write_meta, write_csv])
def test_flat_imagenet_has_the_labels_of_its_devkit_by_sorted_class_ids(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(flat(tmp_path / "imagenet"))
    found = load("imagenet", tmp_path, resize=12, crop=12)
    assert found.labels is not None
    assert found.labels.tolist() == TRUTH
    assert (found.n, found.shape, len(found.classes)) == (4, (3, 12, 12), 1000)
    shades = (found.read(0, 4)[:, 0, 0, 0] * 255).round().int()
    assert shades.tolist() == [0, 60, 120, 180]
    assert found.mapping["split"] == "val"


def test_imagenet_in_class_folders_needs_no_devkit(tmp_path: Path) -> None:
    for label in (7, 2):
        photograph(tmp_path / "val" / WNIDS[label] / "a.JPEG", label)
    found = load("imagenet", tmp_path, resize=12, crop=12)
    assert found.labels is not None
    assert (found.name, found.labels.tolist()) == ("imagenet", [2, 7])


def test_what_imagenet_lacks_is_named(tmp_path: Path) -> None:
    assert "the folder val not found" in refusal("imagenet", tmp_path)
    flat(tmp_path)
    told = refusal("imagenet", tmp_path)
    assert "put one of meta.bin, ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_" in told
    (tmp_path / "meta.bin").write_bytes(b"no")
    assert "meta.bin cannot be read" in refusal("imagenet", tmp_path)
    assert "split 'train' is unknown; expected 'val'" in refusal("imagenet", tmp_path, "train")
    photograph(tmp_path / "imagenet" / "val" / "cat" / "a.png", 1)
    (tmp_path / "val").rename(tmp_path / "moved")
    assert "expected folders named by class ids" in refusal("imagenet", tmp_path)


# ---------------------------------------------------------------------------------- Hugging Face


def test_a_missing_library_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install "robustness-bench[datasets]"' in refusal("huggingface:a/b", tmp_path)


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a folder of parquet, as the hub has it."""
    if reason := optional.missing_reason("datasets", "datasets"):
        pytest.skip(reason)
    library = optional.import_library("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    packed = []
    for image in LEVELS:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")
        packed.append({"bytes": file.getvalue(), "path": None})
    kinds = {
        "img": library.Image(),
        "fine": library.ClassLabel(names=[f"class {k}" for k in range(10)]),
        "coarse": library.Value("int64"),
    }
    columns = {"img": packed, "fine": Y.tolist(), "coarse": (Y % 2).tolist()}
    (tmp_path / "pets").mkdir()
    library.disable_progress_bars()
    made = library.Dataset.from_dict(columns, features=library.Features(kinds))
    made.to_parquet(tmp_path / "pets" / "test-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_a_folder_of_parquet_is_read_with_columns_found_or_named(parquet: Path) -> None:
    found = load("huggingface:pets", parquet)
    assert found.fingerprint == as_data(LEVELS, Y).fingerprint
    assert found.classes[3] == "class 3"
    coarse = load("huggingface:pets", parquet, label="coarse")
    assert coarse.fingerprint == as_data(LEVELS, Y % 2).fingerprint
    assert "there is no column 'cors'; did you mean 'coarse'" in refusal(
        "huggingface:pets", parquet, label="cors"
    )
    assert 'Unknown split "train"' in refusal("huggingface:pets", parquet, "train")
    assert "put its files into the hub's cache (HF_HOME)" in refusal("huggingface:a/b", parquet)
