"""Folders of photographs: which file has which label, and what its pixels are."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import bench
from bench.analysis import results
from bench.cli import cli
from bench.core.contracts.dataset import Data
from bench.core.errors import MissingDataError, SuiteError
from bench.datasets import image_files, image_folder

SIDE = 8


def photo(path: Path, level: int = 0, **saved: Any) -> Path:
    """A grey square of one level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (level,) * 3).save(path, **saved)
    return path


def classes(folder: Path, *names: str) -> Path:
    """`folder` with a class folder of one image for each name; those that end in / are empty."""
    for at, name in enumerate(names):
        if name.endswith("/"):
            (folder / name).mkdir(parents=True)
        else:
            photo(folder / name / "x.png", at)
    return folder


def load(folder: Path, **keys: Any) -> Data:
    return image_folder.load(data_dir=folder, resize=SIDE, crop=SIDE, **keys)


def labelled(folder: Path, **keys: Any) -> dict[int, int]:
    """Level of an image -> its label."""
    data = load(folder, **keys)
    assert data.labels is not None
    levels = data.read(0, data.n)[:, 0, 0, 0].mul(255).round().int().tolist()
    return dict(zip(levels, data.labels.tolist(), strict=True))


def refused(folder: Path, **keys: Any) -> str:
    with pytest.raises(SuiteError) as caught:
        load(folder, **keys)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([str(k) for k in range(12)], list(range(12))),
        ([f"{k:02}" for k in range(12)], list(range(12))),
        ([str(k) for k in range(1, 12)], list(range(11))),
        (["b", "a", "B"], [2, 1, 0]),
        (["class10", "class2"], [0, 1]),
        (["0", "1/", "2"], [0, None, 2]),
        (["1", "cat", "2"], [0, 2, 1]),
        (["n02395406", "n01440764"], [341, 0]),
        (["n02395406", "n01440764", "weights/"], [341, 0, None]),
    ],
)
def test_labels_follow_from_the_names_of_all_folders(
    tmp_path: Path, names: list[str], expected: list[int | None]
) -> None:
    result = labelled(classes(tmp_path, *names))
    assert result == {at: label for at, label in enumerate(expected) if label is not None}


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["a", "b/", "c"], "folder 'b' holds no image, and would shift the labels"),
        (["1", "01", "0"], "folders '01' and '1' are the same number"),
        (["0", "2"], "numbered from 0 or 1 on without a gap, but 1 is missing; add an empty"),
        (["-1", "0", "1"], "but the first is -1"),
        (["2", "10", "cat"], "numbers of different lengths stand beside others ('10', 'cat')"),
        (["n02395406", "zebra"], "folder 'n02395406' is named by an ImageNet id and 'zebra' is"),
        (["a", "b", "b/nested"], "nested holds images inside of a class folder"),
    ],
)
def test_labels_that_would_be_a_guess_are_refused(
    tmp_path: Path, names: list[str], part: str
) -> None:
    assert part in refused(classes(tmp_path, *names))


def test_a_suite_may_name_the_folders_in_the_order_of_their_labels(tmp_path: Path) -> None:
    folder = classes(tmp_path, "a", "b/", "c", "2", "10")
    assert labelled(folder, classes=["c", "absent", "a", "10", "b"]) == {2: 0, 0: 2, 4: 3}
    assert load(folder, classes=["c", "a"]).classes == ("c", "a")
    assert "'a' stands there twice" in refused(folder, classes=["a", "a"])
    assert "none of 0 = x is among the folders 10, 2, a, b" in refused(folder, classes=["x"])
    assert "expected a list of names" in refused(folder, classes="ab")
    assert "expected images in a folder" in refused(folder, classes=["b"])


def test_the_labels_do_not_depend_on_a_limit(tmp_path: Path) -> None:
    folder = classes(tmp_path, "a", "b", "c")
    assert labelled(folder, limit=2) == {0: 0, 1: 1}
    assert load(folder, limit=2).classes == ("a", "b", "c")


def test_what_is_hidden_left_by_tools_or_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    folder = classes(tmp_path / "set", "a", "b", ".ipynb_checkpoints", "__MACOSX")
    plain = load(classes(tmp_path / "plain" / "set", "a", "b"))
    photo(folder / "a" / ".x.png")
    (folder / "a" / "._x.png").write_bytes(b"a resource fork")
    (folder / "b" / "notes.txt").write_text("", encoding="utf-8")
    (folder / "README").write_text("", encoding="utf-8")
    loaded = load(folder)
    assert (loaded.fingerprint, loaded.classes) == (plain.fingerprint, plain.classes)
    reported = "1 .txt, 1 README, 1 folder .ipynb_checkpoints, 1 folder __MACOSX, 2 hidden"
    assert loaded.mapping["left out"] == reported
    assert "left out" not in plain.mapping


def test_suffixes_in_capitals_and_links_are_taken_and_dead_links_are_reported(
    tmp_path: Path,
) -> None:
    folder = classes(tmp_path / "set", "a")
    photo(folder / "b" / "y.PNG", 1)
    (folder / "c").symlink_to(classes(tmp_path / "other", "c") / "c", target_is_directory=True)
    (folder / "a" / "z.png").symlink_to(photo(tmp_path / "four.png", 4))
    assert labelled(folder) == {0: 2, 1: 1, 4: 0}
    (tmp_path / "four.png").unlink()
    assert "z.png could not be read: No such file or directory" in refused(folder)


def test_a_folder_without_images_is_missing_data(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(MissingDataError, match="found none; name the folder with --data-dir"):
            load(folder)


# ----------------------------------------------------------------------------------------- pixels


def levels(path: Path, channels: int = 3) -> list[float]:
    """The levels of the first row's first and last pixel, out of 255."""
    x = image_files.decode_image(path, SIDE, SIDE, channels)
    return [round(float(value) * 255, 3) for value in (x[0, 0, 0], x[0, 0, -1])]


def test_16_bits_are_scaled_by_their_own_range(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    ramp = np.linspace(0, 65535, SIDE).round().astype(np.uint16)
    Image.fromarray(np.tile(ramp, (SIDE, 1))).save(path)
    for channels in (1, 3):
        x = image_files.decode_image(path, SIDE, SIDE, channels)
        assert (x[:, 0] * 65535 - torch.tensor(ramp.astype(np.float32))).abs().max() < 129
    assert levels(path) == [0, 255]
    assert image_files.describe_treatment(path, path.read_bytes()) == "16 bits"


def test_what_pillow_converts_is_taken_and_what_is_ambiguous_refused(tmp_path: Path) -> None:
    plain = Image.new("RGB", (SIDE, SIDE), (200, 200, 200))
    for mode in ("L", "P", "CMYK", "YCbCr", "RGBA", "LA"):
        path = tmp_path / f"{mode}.{'jpg' if mode in ('CMYK', 'YCbCr') else 'png'}"
        plain.convert(mode).save(path)
        assert abs(levels(path)[0] - 200) <= 4, mode  # a palette of 216 colours
        assert image_files.describe_treatment(path, path.read_bytes()) == ""
    glass = plain.convert("RGBA")
    glass.putpixel((0, 0), (0, 0, 0, 254))
    floats = Image.fromarray(np.full((SIDE, SIDE), 0.5, dtype=np.float32))
    two = {"save_all": True, "append_images": [Image.new("L", (SIDE, SIDE))]}
    saved: dict[str, tuple[Image.Image, dict[str, Any], str]] = {
        "glass.png": (glass, {}, "it has transparent pixels"),
        "key.png": (Image.new("L", (SIDE, SIDE), 3), {"transparency": 3}, "transparent pixels"),
        "float.tiff": (floats, {}, "mode F, whose range is not known"),
        "film.gif": (Image.new("L", (SIDE, SIDE), 9), two, "it holds 2 pictures"),
        "film.png": (Image.new("L", (SIDE, SIDE), 9), two, "it holds 2 pictures"),
    }
    for name, (image, options, part) in saved.items():
        image.save(tmp_path / name, **options)
        with pytest.raises(SuiteError, match=part):
            image_files.decode_image(tmp_path / name, SIDE, SIDE)


def test_photographs_are_turned_upright_and_records_of_others_stay_valid(tmp_path: Path) -> None:
    stored = np.zeros((SIDE, SIDE), dtype=np.uint8)
    stored[:, -1] = 255  # bright on the right as stored
    upright = {1: [0, 255], 2: [255, 0], 3: [255, 0], 6: [0, 0], 8: [255, 255], 9: [0, 255]}
    prints = []
    for orientation, expected in upright.items():
        exif = Image.Exif()
        exif[image_files.ORIENTATION] = orientation
        path = tmp_path / str(orientation) / "a" / "x.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(stored).save(path, exif=exif)
        assert levels(path) == expected, orientation
        turned = "turned upright by EXIF" if expected != [0, 255] else ""
        assert image_files.describe_treatment(path, path.read_bytes()) == turned
        prints.append(load(tmp_path / str(orientation)))
    assert (
        prints[1].mapping["files"] == "1, short side to 8, middle 8 x 8; 1 turned upright by EXIF"
    )
    jpeg = photo(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0damaged")
    assert image_files.describe_treatment(jpeg, jpeg.read_bytes()) == ""
    assert levels(jpeg) == [0, 0]


def test_the_fingerprint_of_plain_images_is_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    header = f"P6 {SIDE} {SIDE} 255\n".encode()  # read by its content, whatever its name says
    (tmp_path / "a" / "x.png").write_bytes(header + bytes(range(192)))
    assert load(tmp_path).fingerprint == FINGERPRINT


FINGERPRINT = "007d9fab10a07403c765d0d66042a4f16cb4a9935b92efd4926ca2b71d1a5763"


# ------------------------------------------------------------------------------------ what is shown


def planned(suite: object, folder: Path, *options: str, code: int = 0) -> list[str]:
    """The lines that `bench plan` ends with: how the data are read; what is wrong with them."""
    done = CliRunner().invoke(cli, ["plan", str(suite), "--data-dir", str(folder), *options])
    assert done.exit_code == code, done.output
    lines = done.output.splitlines()
    return lines[next((k for k, line in enumerate(lines) if line.startswith("data: ")), 0) :]


def test_a_plan_shows_how_files_become_labels_each_time(tmp_path: Path) -> None:
    suite = tmp_path / "s.toml"
    text = (
        'schema = 1\nname = "s"\n[data]\nname = "image_folder"\nparams = {resize = 8, crop = 8}\n'
        '[[models]]\nname = "lenet"\nweights = "digits"\n'
        '[[attacks]]\nname = "fgsm"\nnorm = "linf"\neps = [0.1]\n'
    )
    suite.write_text(text, encoding="utf-8")
    folder = classes(tmp_path / "numbers", *(str(k) for k in range(12)))
    first, *result = planned(suite, folder, "--limit", "5")
    assert first.startswith("data: numbers, 5 images of 3 x 8 x 8, fingerprint ")
    assert result == [
        "  pixels: 8 bits a channel, divided by 255",
        "  files: 5, short side to 8, middle 8 x 8",
        "  labels: folders in the order of their numbers in numbers",
        "  classes: 0 = 0, 1 = 1, 2 = 2, ... 11 = 11 (12 classes)",
    ]
    classes(folder, "cat/")
    (refused,) = planned(suite, folder, code=2)
    assert "their order is a guess" in refused
    hostile = planned(suite, classes(tmp_path / "named", "a\x1b[8m"))
    assert hostile[-1] == r"  classes: 0 = a\x1b[8m"
    absent = planned(suite, tmp_path / "absent")
    assert absent[0].startswith("data: not looked at: data image_folder: expected images in ")


def test_a_plan_says_which_file_is_absent_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    assert planned("mnist", tmp_path) == [
        f"data: mnist, not looked at: {raw / 't10k-images-idx3-ubyte'} is not there"
    ]
    raw.mkdir(parents=True)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"\0" * 8)
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"\0" * 8)
    (refused,) = planned("mnist", tmp_path, code=2)
    assert "a file of the test split is damaged" in refused


# ---------------------------------------------------------------- folders that change between runs

MINE = """
import torch


def make():
    layer = torch.nn.Linear(192, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 576).view(3, 192))
        layer.bias.zero_()
    return torch.nn.Sequential(torch.nn.Flatten(), layer)
"""
SUITE = """
schema = 1
name = "s"
[data]
name = "image_folder"
params = { resize = 8, crop = 8 }
[[models]]
name = "mine.py:make"
allow = ["ties", "flat", "near-chance", "labels-off-by-one"]
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.1]
"""


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[[], results.RunResults]:
    """Run one suite on the images in tmp_path/images, always into the same folder."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    (tmp_path / "s.toml").write_text(SUITE, encoding="utf-8")

    def run() -> results.RunResults:
        out = tmp_path / "out"
        bench.run(tmp_path / "s.toml", out=out, data_dir=tmp_path / "images", device="cpu")
        return results.read_results(out)

    return run


def sizes(found: results.RunResults) -> dict[str, int]:
    """Images of each class, by its name, in the records that the results are made of."""
    rows = found.classes[found.classes["attack"] == "fgsm"]
    return dict(zip(rows["class_name"], rows["n"], strict=True))


def test_a_run_on_other_class_folders_is_made_anew_and_never_mixed(
    run_folder: Callable[[], results.RunResults], tmp_path: Path
) -> None:
    folder = classes(tmp_path / "images", "cat", "dog")
    first = run_folder()
    photo(folder / "ant" / "1.png", 7)
    photo(folder / "ant" / "2.png", 9)
    second = run_folder()
    assert sizes(first) == {"cat": 1, "dog": 1}
    assert sizes(second) == {"ant": 2, "cat": 1, "dog": 1}
    assert set(first.table["cell"]).isdisjoint(second.table["cell"])
    assert sorted(second.stored.frame["label"]) == [0, 0, 1, 2]
    shutil.rmtree(folder / "ant")
    again = run_folder()
    assert again.table["cell"].tolist() == first.table["cell"].tolist()
    assert sizes(again) == sizes(first)


def test_a_renamed_class_keeps_its_records_only_if_it_keeps_its_label(
    run_folder: Callable[[], results.RunResults], tmp_path: Path
) -> None:
    folder = classes(tmp_path / "images", "cat", "dog")
    first = run_folder()
    (folder / "dog").rename(folder / "elk")
    same = run_folder()
    assert same.table["cell"].tolist() == first.table["cell"].tolist()
    assert sizes(same) == {"cat": 1, "elk": 1}
    (folder / "elk").rename(folder / "bee")
    other = run_folder()
    assert set(first.table["cell"]).isdisjoint(other.table["cell"])
    assert sizes(other) == {"bee": 1, "cat": 1}
