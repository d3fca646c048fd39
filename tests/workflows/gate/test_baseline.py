"""Baselines as files: small, stable, a line a cell; what is damaged is told in a sentence."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.analysis import snapshot, snapshot_file
from bench.analysis.snapshot import Snapshot
from bench.core.errors import RecordError, SuiteError

Make = Callable[..., Snapshot]
CELL = ("net", "walk", 0.1)


def some(make: Make, n: int = 100, cells: int = 3) -> Snapshot:
    generator = np.random.default_rng(0)
    keys = [("net", "walk", (each + 1) / 10) for each in range(cells)]
    return make({key: generator.random(n) < 0.5 for key in keys}, n=n)


def damaged(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(RecordError) as caught:
        snapshot_file.read_snapshot(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(path))
    return line


def test_a_baseline_is_read_as_it_was_written(make: Make, tmp_path: Path) -> None:
    snap = some(make)
    snapshot_file.write_snapshot(snap, tmp_path / "b.json")
    assert snapshot_file.read_snapshot(tmp_path / "b.json") == snap
    again = snapshot_file.format_snapshot(snapshot_file.read_snapshot(tmp_path / "b.json"))
    assert again.encode() == (tmp_path / "b.json").read_bytes()


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_outcomes_are_packed_and_unpacked(outcomes: list[bool]) -> None:
    packed = snapshot.pack_outcomes(pd.Series(outcomes, dtype=bool))
    assert snapshot.unpack_outcomes(packed, len(outcomes)).tolist() == outcomes


def test_a_change_of_one_cell_is_a_change_of_one_line(make: Make) -> None:
    snap = some(make)
    (first, *rest) = snap.cells
    fewer = dataclasses.replace(first, status="failed", reason="r", robust="", robust_correct=0)
    lines, others = (
        snapshot_file.format_snapshot(each).splitlines()
        for each in (snap, dataclasses.replace(snap, cells=[fewer, *rest]))
    )
    assert sum(a != b for a, b in zip(lines, others, strict=True)) == 1


def test_50_cells_of_1000_examples_take_less_than_100_kb(make: Make) -> None:
    assert len(snapshot_file.format_snapshot(some(make, n=1000, cells=50)).encode()) < 25_000


def test_a_baseline_that_is_not_there_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r"found no such file; make one .* bench baseline DIR -o"):
        snapshot_file.read_snapshot(tmp_path / "none.json")
    with pytest.raises(SuiteError, match="could not be read as a baseline"):
        snapshot_file.read_snapshot(tmp_path)


def edited(make: Make, edit: Callable[[dict[str, Any]], object]) -> bytes:
    raw = json.loads(snapshot_file.format_snapshot(some(make)))
    edit(raw)
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda raw: raw.update(schema=2), "schema 2, this bench reads up to 1"),
        (lambda raw: raw.update(schema="1"), "schema: "),
        (lambda raw: raw.pop("cells"), "cells: "),
        (lambda raw: raw.update(more=1), "more: "),
        (lambda raw: raw["data"].update(n=113), "for 113 examples, got 13"),
        (lambda raw: raw["data"].update(n=0), "data.n: "),
        (lambda raw: raw["data"].update(n=10**12), "bytes for 1000000000000 examples"),
        (lambda raw: raw["cells"][0].update(robust="!"), "eps 0.1: outcomes: no base64"),
        (lambda raw: raw["cells"][0].update(robust=""), "expected 13 bytes for 100 examples"),
        (lambda raw: raw["cells"][0].update(robust_correct=3), "outcomes where 3 are counted"),
        (lambda raw: raw["cells"][0].update(robust_correct=True), "cells.0.robust_correct: "),
        (lambda raw: raw["cells"][0].update(violations=101), "101 violations among 100"),
        (lambda raw: raw["cells"][0].update(eps=-1), "cells.0.eps: "),
        (lambda raw: raw["cells"][0].update(status="fine"), "cells.0.status: "),
        (lambda raw: raw["cells"].append(raw["cells"][0]), "2 times"),
        (lambda raw: raw["tasks"].clear(), "no such attack among tasks"),
        (lambda raw: raw["models"].clear(), "no model of that name"),
        (lambda raw: raw["tasks"][0].update(floor_ratio=float("inf")), "damaged baseline"),
        (
            lambda raw: raw["models"][0].update(clean="A" * 16 + "AA==", clean_correct=0),
            "robust where the model is wrong",
        ),
    ],
)
def test_every_damage_is_reported_in_a_sentence(
    make: Make, tmp_path: Path, edit: Callable[[dict[str, Any]], object], expected: str
) -> None:
    assert expected in damaged(tmp_path / "b.json", edited(make, edit))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe", b'{"schema": 1}', b"[" * 5000,
                b"{" + b'"a":' * 9, b'{"schema": ' + b"9" * 4000 + b"}"],
)  # fmt: skip
def test_what_is_no_baseline_is_reported_in_a_sentence(tmp_path: Path, content: bytes) -> None:
    damaged(tmp_path / "b.json", content)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10_000), cut=st.integers(0, 40), put=st.binary(max_size=6))
def test_a_baseline_with_any_change_is_read_or_refused(
    make: Make, tmp_path: Path, at: int, cut: int, put: bytes
) -> None:
    text = snapshot_file.format_snapshot(some(make)).encode()
    at %= len(text)
    path = tmp_path / "b.json"
    path.write_bytes(text[:at] + put + text[at + cut :])
    result = ""
    try:
        assert isinstance(snapshot_file.read_snapshot(path), Snapshot)
    except RecordError as error:
        result = str(error)
    assert "\n" not in result
