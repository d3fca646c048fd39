"""All adversarial images of a run, kept where that is asked for: what was judged, no more bytes
than the quota, made again where they are damaged."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save

from bench.analysis import results
from bench.cli import cli
from bench.core import files
from bench.datasets import digits
from bench.evaluation import chunk_sizes
from bench.execution import runner
from bench.execution.options import RunOptions
from bench.storage import adversarial_images
from bench.storage import images as stored_images
from bench.storage.reader import read_records
from bench.suite import reader

SUITE = """
schema = 1
name = "kept"
[data]
name = "digits"
limit = 20
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.05, 0.1]
[[attacks]]
name = "bim"
norm = "linf"
eps = [0, 0.1, 0.2]
params.steps = 2
"""
CELLS = 5
IMAGE = 4 * 28 * 28


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 8)


def run(folder: Path, keep: int) -> list[str]:
    notes: list[str] = []
    options = RunOptions(device="cpu", image_quota=keep)
    runner.run_suite(
        reader.parse_suite(SUITE, "k.toml", Path()), folder, options,
        lambda event: notes.append(event.text) if event.what == "note" else None,
    )  # fmt: skip
    return notes


def records_of(folder: Path) -> pd.DataFrame:
    return read_records(folder).frame


def test_every_image_is_kept_and_is_the_one_that_was_judged(tmp_path: Path) -> None:
    assert run(tmp_path, 2**30) == []
    found = results.read_results(tmp_path)
    clean = digits.load(limit=20).read(0, 20)
    for cell, rows in found.stored.frame.groupby("cell", observed=True):
        kept = list(adversarial_images.read_adversarial_images(tmp_path, str(cell)))
        assert [example for ids, _ in kept for example in ids] == list(range(20))
        change = torch.cat([images for _, images in kept]) - clean
        linf = torch.tensor(rows["linf"].to_numpy())
        assert torch.allclose(change.abs().amax((1, 2, 3)), linf, atol=1e-6)


def test_nothing_is_kept_that_was_not_asked_for(tmp_path: Path) -> None:
    run(tmp_path, 0)
    assert list((tmp_path / "records").glob("*.adversarial")) == []
    cell = results.read_results(tmp_path).plan[0].identity
    assert list(adversarial_images.read_adversarial_images(tmp_path, cell)) == []


def test_the_quota_is_not_exceeded_and_what_had_no_room_is_counted(tmp_path: Path) -> None:
    quota = 50 * IMAGE
    (note,) = run(tmp_path, quota)
    kept = list((tmp_path / "records").glob("*.adversarial"))
    assert kept
    assert sum(path.stat().st_size for path in kept) <= quota + 1000 * len(kept)
    images = sum(
        len(images)
        for cell in results.read_results(tmp_path).plan
        for _, images in adversarial_images.read_adversarial_images(tmp_path, cell.identity)
    )
    assert f"{20 * CELLS - images} adversarial images had no room in 153.1KiB" in note


def test_damaged_images_are_set_aside_and_made_again(tmp_path: Path) -> None:
    run(tmp_path, 2**30)
    whole = sorted((tmp_path / "records").glob("*.adversarial"))
    content = whole[0].read_bytes()
    whole[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (note,) = run(tmp_path, 2**30)
    assert whole[0].name in note
    assert sorted((tmp_path / "records").glob("*.adversarial")) == whole
    assert whole[0].read_bytes() == content


def test_images_of_an_attempt_that_left_no_records_are_not_taken_for_those_of_the_next(
    tmp_path: Path,
) -> None:
    """A run that was killed between its images and its records, on a device of other bits."""
    run(tmp_path, 2**30)
    cells = [cell.identity for cell in results.read_results(tmp_path).plan]
    wanted = {
        cell: [images for _, images in adversarial_images.read_adversarial_images(tmp_path, cell)]
        for cell in cells
    }
    shard = sorted((tmp_path / "records").glob("*-fgsm-*-0000000-*.parquet"))[0]
    shard.unlink()
    for kind in (stored_images.IMAGES_SUFFIX, stored_images.ADVERSARIAL_SUFFIX):
        (written,) = (tmp_path / "records").glob(f"{files.strip_hash(shard)}-*{kind}")
        others = {
            cell: torch.zeros_like(each)
            for cell, each in stored_images.read_tensors(written).items()
        }
        written.unlink()
        content = save(others)
        stale = written.with_name(f"{files.strip_hash(shard)}-{files.short_hash(content)}{kind}")
        stale.write_bytes(content)
    assert run(tmp_path, 2**30) == []
    for cell, images in wanted.items():
        found = [each for _, each in adversarial_images.read_adversarial_images(tmp_path, cell)]
        assert all(torch.equal(a, b) for a, b in zip(found, images, strict=True))
    kept = stored_images.read_images(tmp_path)
    assert all(torch.equal(kept[cell], images[0]) for cell, images in wanted.items())


def test_as_many_eps_at_once_as_memory_allows_and_the_records_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "whole", 0)
    monkeypatch.setattr(chunk_sizes, "UNIT_BYTES", 8 * IMAGE)
    run(tmp_path / "cut", 0)
    one, other = records_of(tmp_path / "whole"), records_of(tmp_path / "cut")
    pd.testing.assert_frame_equal(one, other)
    count = {
        name: len(list((tmp_path / name / "records").glob("*-bim-*.parquet")))
        for name in ("whole", "cut")
    }
    assert count == {"whole": 3, "cut": 8}  # of the last shard, of four examples, two eps fit


def test_a_size_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "k.toml"
    path.write_text(SUITE, encoding="utf-8")
    done = CliRunner().invoke(
        cli, ["run", str(path), "--out", str(tmp_path / "o"), "--keep-adversarial", "much"]
    )
    assert done.exit_code == 2
    assert "--keep-adversarial 'much': expected a number and a unit" in done.output
