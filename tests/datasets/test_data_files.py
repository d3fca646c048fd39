"""Files of data by their path: arrays are found or named, and nothing in them is executed."""

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from bench.cli import cli
from bench.core.contracts.dataset import Data
from bench.core.errors import SuiteError
from bench.datasets import streamed
from bench.datasets.as_data import as_data
from bench.evaluation import loading
from bench.suite.schema import DataEntry

N = 12
LEVELS = (torch.arange(N * 3 * 8 * 8) * 7 % 256).to(torch.uint8).view(N, 3, 8, 8)
Y = torch.arange(N) % 4
LAST = LEVELS.permute(0, 2, 3, 1).contiguous()


def load(name: str, folder: Path, split: str = "test", **params: Any) -> Data:
    return loading.load_data(DataEntry(name=name, split=split, params=params), folder, folder, None)


def refusal(name: str, folder: Path, split: str = "test", **params: Any) -> str:
    with pytest.raises(SuiteError) as caught:
        load(name, folder, split, **params)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pair(folder: Path) -> None:
    np.save(folder / "images.npy", LAST.numpy())
    np.save(folder / "labels.npy", Y.numpy())


FILES: dict[str, Callable[[Path], Any]] = {
    "keras.npz": lambda path: np.savez(
        path, x_test=LAST, y_test=Y[:, None], x_train=LAST[:3], y_train=Y[:3]
    ),
    "packed.npz": lambda path: np.savez_compressed(path, images=LEVELS, labels=Y),
    "positional.npz": lambda path: np.savez(path, LAST, Y),
    "medmnist.npz": lambda path: np.savez(path, test_images=LAST, test_labels=Y[:, None]),
    "images.npy": lambda path: pair(path.parent),
    "floats.pt": lambda path: torch.save({"data": LEVELS / 255, "targets": Y}, path),
    "pair.pth": lambda path: torch.save((LEVELS, Y), path),
    "old.pt": lambda path: torch.save(
        {"x": LEVELS, "y": Y}, path, _use_new_zipfile_serialization=False
    ),
    "tensors.safetensors": lambda path: save_file({"image": LEVELS, "label": Y}, path),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("resident", [2**30, 100], ids=["in memory", "from the disk"])
def test_a_file_has_the_fingerprint_of_its_tensors(
    name: str, resident: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FILES[name](tmp_path / name)
    monkeypatch.setattr(streamed, "RESIDENT", resident)
    monkeypatch.setattr(streamed, "BLOCK", 5)
    found = load(name, tmp_path)
    assert found.fingerprint == as_data(LEVELS, Y).fingerprint
    assert torch.equal(found.read(4, 9), LEVELS[4:9] / 255)
    assert found.mapping["arrays"]
    again = load(str(tmp_path / name), tmp_path / "elsewhere")
    assert again.fingerprint == found.fingerprint


def test_the_split_chooses_among_arrays_and_params_name_others(tmp_path: Path) -> None:
    FILES["keras.npz"](tmp_path / "a.npz")
    assert load("a.npz", tmp_path, "train").n == 3
    np.savez(tmp_path / "b.npz", images=LAST, labels=Y, x=LAST[:5], y=Y[:5], other=Y % 2)
    told = refusal("b.npz", tmp_path)
    assert "several pairs of arrays may be images and labels" in told
    assert load("b.npz", tmp_path, images="x").n == 5
    found = load("b.npz", tmp_path, images="images", labels="other")
    assert found.fingerprint == as_data(LEVELS, Y % 2).fingerprint


class Evil:
    """A pickle that makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def spoil(path: Path, old: bytes, new: bytes) -> None:
    """Replace some bytes of a file."""
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def damage_packed(path: Path) -> None:
    """Write a compressed file whose first array cannot be unpacked."""
    np.savez_compressed(path, x=LAST, y=Y)
    content = bytearray(path.read_bytes())
    content[60:160] = b"\xff" * 100
    path.write_bytes(content)


def damage_header(path: Path) -> None:
    """Write a pair of .npy files; a bracket in the header of the images is never closed."""
    np.save(path, LAST)
    spoil(path, b")", b"(")
    np.save(path.with_name("header-y.npy"), Y)


def damage_legacy(path: Path) -> None:
    """Write a file of torch.save, of the format before zip, that ends within its pickle."""
    torch.save((LEVELS, Y), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:133])


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other.npz": (lambda path: np.savez(path, a=LAST, b=Y), "no pair of arrays may be images"),
    "lonely.npy": (lambda path: np.save(path, LAST), "expected the file of labels; name it by"),
    "cut.npz": (
        lambda path: path.write_bytes(b"PK"),
        "File is not a zip file; save plain arrays of numbers, or fetch the file again",
    ),
    "cut-x.npy": (
        lambda path: (path.write_bytes(b"x"), np.save(path.with_name("cut-y.npy"), Y)),
        "cut-x.npy cannot be read: ",
    ),
    "cut.safetensors": (lambda path: path.write_bytes(b"x"), "cut.safetensors cannot be read: "),
    "cut.pt": (lambda path: path.write_bytes(b"x"), "cut.pt is damaged or holds more than tensors"),
    "damaged.npz": (damage_packed, "damaged.npz cannot be read: "),
    "header-x.npy": (damage_header, "header-x.npy cannot be read: "),
    "legacy.pt": (damage_legacy, "legacy.pt cannot be read: "),
    "evil.pt": (lambda path: torch.save({"x": Evil()}, path), "a pickle can run code; save a"),
    "number.pt": (lambda path: torch.save(3, path), "a mapping or a pair of tensors, got int"),
    "objects.npz": (
        lambda path: np.savez(path, x=np.array([Evil()] * 3), y=Y[:3]),
        "Object arrays cannot be loaded",
    ),
    "levels.npz": (
        lambda path: np.savez(path, x=LAST.float(), y=Y),
        "expected pixels in [0, 1], got [0, 255]; scale the images: divide them by 255",
    ),
    "strip.npz": (
        lambda path: np.savez(path, x=np.zeros((N, 9, 12, 1), np.uint8), y=Y),
        "say layout = 'nchw' or 'nhwc'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_used_is_refused_and_not_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, part = WRONG[name]
    write(tmp_path / name)
    assert part in refusal(name, tmp_path)
    assert not Path("ran").exists()


# ------------------------------------------------------------------------------------------ shards


def png(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, format="PNG")
    return file.getvalue()


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    for shard in range(3):
        rows = range(4 * shard, 4 * shard + 4)
        members = [
            (f"{row:04}.{kind}", content)
            for row in rows
            for kind, content in (("cls", str(int(Y[row])).encode()), ("png", png(LEVELS[row])))
        ]
        write_shard(tmp_path / f"part-{shard:03}.tar", members)
    return tmp_path


def test_shards_are_read_in_order_and_at_any_place(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = as_data(LEVELS, Y)
    monkeypatch.setattr(streamed, "RESIDENT", 100)
    found = load("part-{000..002}.tar", shards)
    assert found.fingerprint == plain.fingerprint
    assert torch.equal(found.read(7, 10), LEVELS[7:10] / 255)
    assert found.mapping["samples"] == "12 of 3 shards, .png and .cls"
    assert load("part-{000,002}.tar", shards).n == 8
    assert load("part-001.tar", shards).n == 4


def test_shards_that_cannot_be_used_are_told(shards: Path) -> None:
    assert "part-003.tar not found; 2 are missing" in refusal("part-{002..004}.tar", shards)
    told = refusal("part-001.tar", shards, image="jpg")
    assert "has no image; its members end in cls, png; name one by" in told
    (shards / "text.tar").write_bytes(b"text" * 200)
    assert "is no tar file without compression" in refusal("text.tar", shards)
    write_shard(shards / "bad.tar", [("0.png", b"no"), ("0.cls", b"1")])
    assert "bad.tar is no readable image" in refusal("bad.tar", shards)
    write_shard(shards / "cat.tar", [("0.png", png(LEVELS[0])), ("0.cls", b"cat")])
    assert "expected a whole number as label" in refusal("cat.tar", shards)


# -------------------------------------------------------------------------------- from the command


SUITE = """
schema = 1
name = "own"
data = { name = "NAME" }
models = [{ name = "mine.py:net" }]
attacks = [{ name = "fgsm", norm = "linf", eps = [0.1] }]
"""
NET = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
"""


def plan(folder: Path, name: str) -> tuple[int, str]:
    (folder / "own.toml").write_text(SUITE.replace("NAME", name))
    (folder / "mine.py").write_text(NET)
    done = CliRunner().invoke(cli, ["plan", str(folder / "own.toml")])
    return done.exit_code, done.output + done.stderr


def test_a_plan_shows_how_a_file_was_read_and_a_missing_one_is_a_mistake(tmp_path: Path) -> None:
    FILES["keras.npz"](tmp_path / "mine.npz")
    code, shown = plan(tmp_path, "mine.npz")
    assert code == 0
    assert "layout: (n, h, w, c), the channels last" in shown
    assert "arrays: x_test and y_test, a column of mine.npz" in shown
    code, shown = plan(tmp_path, "other.npz")
    assert code == 2
    assert "other.npz: expected a data file there, found none" in shown
