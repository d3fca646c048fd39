"""A folder's chunks have the size that it was created with, and records do not depend on it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu.pretended import Machine

import bench
from bench.core.contracts.types import Shape
from bench.core.errors import RecordError
from bench.evaluation import chunk_sizes, verify
from bench.execution import merge, runner, sharding
from bench.execution.backends import ray
from bench.execution.options import RunOptions
from bench.storage import fingerprint, manifest
from bench.storage.reader import read_pieces, read_records
from bench.suite.reader import parse_suite
from bench.suite.schema import Suite
from bench.workflows import reproduce

NETS = '''
import torch
from torch import nn
from bench.core.rng import seed_global
from bench.datasets import digits

class Rowwise(nn.Module):
    """Compares an image with the mean of each class, without a product of matrices, so that its
    bits are the same beside any other images."""

    def __init__(self):
        super().__init__()
        data = digits.load(limit=200)
        x = data.read(0, 200).flatten(1)
        means = torch.stack([x[data.labels == label].mean(0) for label in range(10)])
        self.w = nn.Parameter((means - means.mean(0))[:, None])

    def forward(self, x):
        return (x.flatten(1) * self.w).sum(2).T

class Noisy(Rowwise):
    def forward(self, x):
        return super().forward(x + 0.3 * torch.randn_like(x))
'''
SUITE = """
schema = 1
name = "sized"
data = { name = "digits", limit = 60 }
models = [{ name = "nets.py:NET", label = "net", weights = "random" }]

[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.02, 0.05]
params = { steps = 3 }

[[attacks]]
name = "square"
norm = "linf"
eps = [0.05]
params = { steps = 6 }

[[attacks]]
name = "ddn"
norm = "l2"
eps = [0.5, 1.0]
params = { steps = 4 }
"""
SHORT = SUITE[: SUITE.index('[[attacks]]\nname = "square"')]
MNIST, IMAGENET = (1, 28, 28), (3, 224, 224)
LARGE = 10_000


def checked(folder: Path, text: str = SHORT, net: str = "Rowwise") -> Suite:
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    return parse_suite(text.replace("NET", net), "sized.toml", folder)


def run(suite: Suite, out: Path, device: str = "cpu", **options: Any) -> Path:
    given = RunOptions(device=device, batch_size=16, copied=False, **options)
    runner.run_suite(suite, out, given)
    return out


def hashed(folder: Path) -> str:
    return fingerprint.records_hash(read_records(folder).frame)


def bounds(folder: Path) -> list[tuple[int, int]]:
    return sorted({piece[1:3] for piece in read_pieces(folder)})


def grid(size: int, n: int = 60) -> list[tuple[int, int]]:
    return chunk_sizes.chunk_bounds(n, size)


def stated(folder: Path) -> Any:
    return manifest.read_manifest(folder)[0]["data"].get("chunk_examples")


def state(folder: Path, size: object) -> None:
    """Write another size, or None for none, into the manifest of a folder."""
    content = manifest.read_raw(folder)
    content["data"]["chunk_examples"] = size
    if size is None:
        del content["data"]["chunk_examples"]
    (folder / manifest.FILE).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    return checked(tmp_path_factory.mktemp("sized"))


@pytest.fixture(scope="module")
def sevens(suite: Suite) -> Path:
    """The folder of a run whose chunks hold seven examples."""
    return run(suite, suite.base / "sevens", chunk_examples=7)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wherever the device is asked, chunks hold 20 examples."""
    monkeypatch.setattr(chunk_sizes, "choose_size", lambda device, shape, radii: 20)
    return


# --------------------------------------------------------------------------------------- outcomes


def test_records_do_not_depend_on_the_size_of_a_chunk_nor_on_the_device(tmp_path: Path) -> None:
    suite = checked(tmp_path, SUITE)
    found = {}
    for size in (7, 50, 1000):
        out = run(suite, tmp_path / f"{size}", chunk_examples=size)
        assert bounds(out) == grid(size)
        found[f"{size}"] = hashed(out)
    with Machine().run():
        out = run(suite, tmp_path / "gpu", "cuda:0")
    assert stated(out) > 1000
    found["gpu"] = hashed(out)
    assert len(set(found.values())) == 1, found
    assert 0 < read_records(out).frame["fooled"].mean() < 1


def test_one_call_has_the_same_records_in_chunks_of_any_size(
    digits: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checked(tmp_path)
    names: dict[str, Any] = {}
    exec(NETS, names)
    x, y = (each[:60] for each in digits)
    frames = []
    for size in (7, 1000):
        monkeypatch.setattr(chunk_sizes, "choose_size", lambda *about, size=size: size)
        frames.append(bench.evaluate(names["Rowwise"](), x, y, eps=0.05, batch_size=16).records)
    assert frames[0].equals(frames[1])


@pytest.mark.parametrize("net", ["Noisy", "Rowwise"])
def test_what_depends_on_the_batch_has_the_standard_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: str
) -> None:
    monkeypatch.setattr(chunk_sizes, "CHUNK_EXAMPLES", 30)
    suite = checked(tmp_path, net=net)
    found = {size: run(suite, tmp_path / f"{size}", chunk_examples=size) for size in (20, 30, 60)}
    assert bounds(found[30]) == grid(30)
    assert len({hashed(out) for out in found.values()}) == 1
    for size in (20, 60):
        assert bounds(found[size]) == (grid(30) if net == "Noisy" else grid(size))


def test_larger_chunks_wait_less_often_for_the_host(suite: Suite, tmp_path: Path) -> None:
    waits = {}
    for size in (15, 60):
        machine = Machine()
        with machine.run():
            run(suite, tmp_path / f"{size}", "cuda:0", chunk_examples=size)
        waits[size] = len(machine.gpu.events)
    assert waits[60] < waits[15]


def test_as_many_survivors_of_a_larger_chunk_are_compared(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    find = verify._find_disagreement

    def counting(model: Any, accelerated: Any, *about: Any) -> str:
        asked: list[int] = []
        hook = accelerated.register_forward_pre_hook(lambda _, x: asked.append(len(x[0])))
        why = find(model, accelerated, *about)
        hook.remove()
        counted.append(sum(asked))
        return why

    monkeypatch.setattr(verify, "_find_disagreement", counting)
    monkeypatch.setattr(verify, "SPOT_CHECKS", 2)
    monkeypatch.setattr(verify, "SPOT_EXAMPLES", 20)
    net = nn_with_copy()
    x = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    bench.evaluate(net, x, y, eps=[1e-6, 2e-6], batch_size=64)
    assert counted == [2 * 2 * 3]  # at two eps, two of each twenty


def nn_with_copy() -> torch.nn.Module:
    """A net that has an accelerated copy."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(128, 3),
    ).eval()  # fmt: skip


# ---------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("shape", "radii", "free", "size"),
    [
        (MNIST, 8, 139 * 2**30, LARGE),
        (MNIST, 100, 139 * 2**30, 1000),  # of records and images of all eps, no more fit
        (MNIST, 4, 2 * 2**30, 5000),  # of the device's free memory a part
        (MNIST, 4, 2**20, 1000),
        (IMAGENET, 1, 139 * 2**30, 888),
        (IMAGENET, 8, 139 * 2**30, 111),
    ],
)
def test_a_gpu_has_as_large_chunks_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, shape: Shape, radii: int, free: int, size: int
) -> None:
    monkeypatch.setattr(chunk_sizes, "read_memory", lambda device: (free, free))
    chosen = chunk_sizes.choose_size(torch.device("cuda:0"), shape, radii)
    assert chosen == size
    assert chosen % chunk_sizes.standard_size(shape) == 0
    assert chunk_sizes.is_plausible(chosen, shape)


def test_a_cpu_has_the_chunks_that_it_had() -> None:
    assert chunk_sizes.choose_size(torch.device("cpu"), MNIST, 8) == 1000
    assert chunk_sizes.choose_size(torch.device("cpu"), IMAGENET, 8) == 111


@pytest.mark.usefixtures("eager")
def test_a_new_folder_states_the_size_that_was_chosen(suite: Suite, tmp_path: Path) -> None:
    out = run(suite, tmp_path / "out")
    assert stated(out) == 20
    assert bounds(out) == grid(20)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "options", [{"deterministic": True}, {"shard": sharding.Shard(1, 2)}, {"larger_chunks": False}]
)
def test_folders_that_must_be_divided_alike_have_the_standard_size(
    suite: Suite, tmp_path: Path, options: dict[str, Any]
) -> None:
    assert stated(run(suite, tmp_path / "shard-1-of-2", **options)) == 1000


@pytest.mark.usefixtures("eager")
def test_units_for_workers_of_ray_have_the_standard_size(
    suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "_import_ray", lambda: None)
    backend = ray.RayBackend(ray.Cluster())
    options = RunOptions(device="cpu", batch_size=16)
    with backend.open(suite, tmp_path / "out", options, lambda event: None) as loaded:
        assert loaded.chunk_examples == 1000


# ----------------------------------------------------------------------- later sessions of a folder


@pytest.mark.usefixtures("eager")
def test_a_later_session_divides_as_the_folder_does(
    suite: Suite, sevens: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(sevens, tmp_path / "out")
    for lost in (out / "records").glob("*-00000[0-3]*.parquet"):
        lost.unlink()
    run(suite, out)
    assert stated(out) == 7
    assert bounds(out) == grid(7)
    assert hashed(out) == hashed(sevens)


def test_a_gpu_divides_as_the_folder_does_that_a_cpu_made(
    suite: Suite, sevens: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(sevens, tmp_path / "out")
    for lost in (out / "records").glob("*-00000[0-3]*.parquet"):
        lost.unlink()
    with Machine().run():
        run(suite, out, "cuda:0")
    assert stated(out) == 7
    assert bounds(out) == grid(7)
    assert hashed(out) == hashed(sevens)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("size", [None, 0, -1, 10**9, "many", True, 2.5])
def test_a_folder_without_a_usable_size_has_the_standard_one(
    suite: Suite, sevens: Path, tmp_path: Path, size: object
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(sevens / manifest.FILE, out)
    state(out, size)
    assert stated(run(suite, out)) == 1000


@pytest.mark.usefixtures("eager")
def test_a_folder_that_is_made_afresh_has_a_new_size(
    suite: Suite, sevens: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(sevens, tmp_path / "out")
    run(suite, out, fresh=True)
    assert stated(out) == 20
    assert bounds(out) == grid(20)


def test_a_manifest_with_a_damaged_size_is_refused(sevens: Path, tmp_path: Path) -> None:
    shutil.copy(sevens / manifest.FILE, tmp_path)
    state(tmp_path, -3)
    with pytest.raises(RecordError, match=r"data\.chunk_examples"):
        manifest.read_manifest(tmp_path)


@pytest.mark.usefixtures("eager")
def test_images_of_another_shape_are_divided_anew(
    suite: Suite, sevens: Path, tmp_path: Path
) -> None:
    shutil.copy(sevens / manifest.FILE, tmp_path)
    content = manifest.read_raw(tmp_path)
    content["data"]["shape"] = [3, 8, 8]
    (tmp_path / manifest.FILE).write_text(json.dumps(content), encoding="utf-8")
    assert stated(run(suite, tmp_path)) == 20


@pytest.mark.usefixtures("eager")
def test_a_repetition_divides_as_its_run(sevens: Path, tmp_path: Path) -> None:
    planned = reproduce.plan_repetition(sevens, sevens.parent, None, Path(), "bench rerun")
    runner.run_suite(planned.suite, tmp_path / "again", planned.options)
    assert stated(tmp_path / "again") == 7
    old = shutil.copytree(sevens, tmp_path / "old")
    state(old, None)
    planned = reproduce.plan_repetition(old, sevens.parent, None, Path(), "bench rerun")
    runner.run_suite(planned.suite, tmp_path / "old again", planned.options)
    assert stated(tmp_path / "old again") == 1000


# ---------------------------------------------------------------------------- shards and merging


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("place", ["", "shard-2-of-3"])
def test_a_shard_divides_as_the_other_folders_of_its_run(
    suite: Suite, sevens: Path, tmp_path: Path, place: str
) -> None:
    whole = shutil.copytree(sevens, tmp_path / "whole" / place).parent if place else None
    whole = whole or shutil.copytree(sevens, tmp_path / "whole")
    shard = sharding.Shard(1, 3)
    out = run(suite, shard.folder(whole), shard=shard)
    assert stated(out) == 7
    assert set(bounds(out)) < set(grid(7))


def test_folders_of_other_sizes_are_joined_where_their_chunks_nest(
    suite: Suite, tmp_path: Path
) -> None:
    small = run(suite, tmp_path / "small", chunk_examples=10)
    large = run(suite, tmp_path / "large", chunk_examples=30)
    for lost in (small / "records").glob("*-0000050-*.parquet"):
        lost.unlink()
    for lost in (large / "records").glob("*-0000000-*.parquet"):
        lost.unlink()
    with pytest.raises(RecordError, match="holds examples that another folder has, and others"):
        merge.merge_runs([small, large], tmp_path / "refused")
    for lost in (small / "records").glob("*-00000[34]0-*.parquet"):
        lost.unlink()
    done = merge.merge_runs([small, large], tmp_path / "out")
    assert done.missing == []
    assert bounds(tmp_path / "out") == [(0, 10), (10, 20), (20, 30), (30, 60)]
    assert stated(tmp_path / "out") == 10
    whole = run(suite, tmp_path / "whole")
    assert hashed(tmp_path / "out") == hashed(whole)
    records = {path.name for path in (tmp_path / "out" / "records").glob("*.parquet")}
    run(suite, tmp_path / "out")  # nothing is left to do
    assert {path.name for path in (tmp_path / "out" / "records").glob("*.parquet")} == records
