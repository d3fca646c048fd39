"""The same bits again on one device, whatever was timed, remembered or set before."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import bench
from bench.analysis import results
from bench.engine import determinism, timing
from bench.engine.acceleration import accelerate, calibration
from bench.storage import fingerprint, images, reader

SUITE = """
schema = 1
name = "same"
[data]
name = "digits"
limit = 40
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "{attack}"
label = "a"
norm = "linf"
eps = [0, 0.05, 0.1]
[[attacks]]
name = "square"
norm = "linf"
eps = [0.1]
params = {{ steps = 20 }}
"""
TIMES = {"seconds", "verify_seconds", "floor_seconds", "busy_seconds", "busy_floor_seconds"}
"""What of a file of records is not an outcome but a stopwatch's."""
PUT = """
import torch
from bench.attacks.fgsm import Params
from bench import Attack

def run(model, x, y, threat, params, noise):
    return torch.put(x, torch.zeros(1, dtype=torch.int64), x.new_ones(1))

PUT = Attack(summary="s", source="s", params=Params, norms=("linf",), run=run)
"""


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test does to the number of threads is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No calibration of another test is remembered."""
    file = tmp_path / "cache" / "calibrations.json"
    monkeypatch.setattr(calibration, "cache_file", lambda: file)
    return file


def ran(folder: Path, out: str, attack: str = "pgd", **options: bool) -> Path:
    path = folder / "same.toml"
    path.write_text(SUITE.format(attack=attack), encoding="utf-8")
    bench.run(str(path), folder / out, device="cpu", **options)  # type: ignore[arg-type]
    return folder / out


def outcomes(out: Path) -> dict[str, bytes]:
    """Every file of records without its times, and every file of images, byte for byte."""
    result = {
        path.name: path.read_bytes() for path in (out / "records").glob(f"*{images.IMAGES_SUFFIX}")
    }
    for path in (out / "records").glob("*.parquet"):
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"bench"])
        reported = [{k: v for k, v in piece.items() if k not in TIMES} for piece in about["pieces"]]
        text = json.dumps([reported, table.replace_schema_metadata(None).to_pydict()])
        result[path.name.rpartition("-")[0]] = text.encode()
    return result


def test_two_runs_give_the_same_bits_for_any_threads_and_timings(
    tmp_path: Path, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    first = ran(tmp_path, "first", deterministic=True)
    torch.set_num_threads(1)
    # As if an earlier run had found other rows and another layout to be quicker.
    monkeypatch.setattr(calibration, "recall", lambda key: ("channels-last", 4))
    second = ran(tmp_path, "second", deterministic=True)
    assert outcomes(first) == outcomes(second)
    assert len(outcomes(first)) >= 4
    frames = [reader.read_records(out).frame for out in (first, second)]
    assert fingerprint.records_hash(frames[0]) == fingerprint.records_hash(frames[1])


def test_what_was_remembered_does_decide_where_nothing_must_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "recall", lambda key: ("contiguous", 4))
    document = json.loads((ran(tmp_path, "out") / "provenance.json").read_text(encoding="utf-8"))
    assert document["sessions"][-1]["copies"]["lenet"][0]["rows"] == 4


def test_no_stopwatch_chooses_and_nothing_is_remembered(tmp_path: Path, cache: Path) -> None:
    out = ran(tmp_path, "out", deterministic=True)
    document = json.loads((out / "provenance.json").read_text(encoding="utf-8"))["sessions"][-1]
    assert not document["copies"]["lenet"][0]["timed"]
    assert not cache.exists()
    assert document["options"]["deterministic"] is True
    assert document["environment"]["threads"] == 1


def test_torch_is_as_it_was_afterwards(threads: None) -> None:
    torch.set_num_threads(2)
    with determinism.enforce_determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic
        assert torch.get_num_threads() == 1
        assert os.environ[determinism.WORKSPACE]
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.get_num_threads() == 2
    assert determinism.WORKSPACE not in os.environ


def test_settings_of_torch_are_restored_afterwards() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with determinism.enforce_determinism(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_without_a_deterministic_form_fails_its_cells_alone(tmp_path: Path) -> None:
    (tmp_path / "put.py").write_text(PUT, encoding="utf-8")
    out = ran(tmp_path, "out", "put.py:PUT", deterministic=True)
    table = results.read_results(out).table.set_index(["attack", "eps"])
    assert table["status"].to_dict() == {
        ("a", 0.0): "ok", ("a", 0.05): "failed", ("a", 0.1): "failed", ("square", 0.1): "ok",
    }  # fmt: skip
    reason = table.loc[("a", 0.1), "reason"]
    assert "torch has no deterministic form of put_" in reason
    assert "run without --deterministic" in reason


def test_who_asks_torch_for_it_gets_rows_by_rule_too(lenet: nn.Module) -> None:
    x = torch.zeros(16, 1, 28, 28)
    rows = timing.rows_per_pass(lenet, x)
    with determinism.enforce_determinism(True):
        copy = accelerate.accelerate_model(lenet, x, rows)
    assert (copy.rows, copy.timed) == (rows, False)
    assert "nothing is timed" in copy.describe()
