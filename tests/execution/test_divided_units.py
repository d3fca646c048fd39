"""Units that take long are divided: the same records, less lost, and what is missing is run."""

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cli.progress import Bar
from bench.core.errors import RecordError
from bench.execution import merge, runner, work
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.execution.work import WorkUnit, divide_long_units, find_gaps
from bench.storage import fingerprint
from bench.storage.reader import read_pieces, read_records
from bench.suite import plan
from bench.suite.identity import ModelFacts
from bench.suite.reader import read_suite

SUITE = """
schema = 1
name = "long"
data = { name = "digits", limit = 48 }
models = [{ name = "softmax", weights = "random" }]

[[attacks]]
name = "pgd"
norm = "linf"
eps = [0.02, 0.05]
params = { steps = 3 }

[[attacks]]
name = "noise"
norm = "linf"
eps = [0.05]
"""

TEXTS = dict.fromkeys(("suite", "model", "attack", "norm", "goal", "cell"), str)
stretches = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=5)


@given(stretches, st.integers(0, 20), st.integers(1, 20))
def test_gaps_are_the_examples_that_no_piece_holds(
    pieces: list[tuple[int, int]], first: int, size: int
) -> None:
    held = [(begin, begin + length) for begin, length in pieces]
    gaps = find_gaps(first, first + size, held)
    found = [example for begin, end in gaps for example in range(begin, end)]
    taken = {example for begin, end in held for example in range(begin, end)}
    assert found == [each for each in range(first, first + size) if each not in taken]


def run(suite: Path, out: Path, parts: bool, rows: int = 8, deterministic: bool = False) -> Path:
    """Run the suite; with `parts` every unit counts as long."""
    options = RunOptions(device="cpu", batch_size=rows, deterministic=deterministic)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(work, "UNIT_SECONDS", 1e-12 if parts else 1e12)
        runner.run_suite(read_suite(str(suite)), out, options)
    return out


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def whole(suite: Path) -> Path:
    return run(suite, suite.parent / "whole", parts=False)


@pytest.fixture(scope="module")
def divided(suite: Path) -> Path:
    return run(suite, suite.parent / "divided", parts=True)


def hashed(folder: Path) -> str:
    return fingerprint.records_hash(read_records(folder).frame)


def assert_same_outcomes(one: Path, other: Path) -> None:
    """Other batches may change the last bits of a confidence, and nothing else."""
    keys = ["cell", "example"]
    frames = [read_records(folder).frame.sort_values(keys) for folder in (one, other)]
    first, second = (frame.reset_index(drop=True).astype(TEXTS) for frame in frames)
    pd.testing.assert_frame_equal(first, second, rtol=1e-5, atol=1e-6)


def test_a_divided_run_has_the_records_of_an_undivided_one(whole: Path, divided: Path) -> None:
    assert {piece[1:3] for piece in read_pieces(whole)} == {(0, 48)}
    assert {piece[1:3] for piece in read_pieces(divided)} == {(0, 16), (16, 32), (32, 48)}
    assert_same_outcomes(divided, whole)


def test_only_what_is_missing_is_run_again(suite: Path, divided: Path, tmp_path: Path) -> None:
    out = shutil.copytree(divided, tmp_path / "out")
    (lost,) = (out / "records").glob("*pgd*-0000016-*.parquet")
    kept = {path.name for path in (out / "records").glob("*.parquet")} - {lost.name}
    lost.unlink()
    run(suite, out, parts=False)
    names = {path.name for path in (out / "records").glob("*.parquet")}
    assert kept < names
    assert len(names - kept) == 1
    assert hashed(out) == hashed(divided)


def test_a_unit_fills_the_rows_of_a_pass(suite: Path, tmp_path: Path) -> None:
    out = run(suite, tmp_path / "out", parts=True, rows=40)
    frame = read_records(out).frame
    bounds = {piece.cell: {other[1:3] for other in read_pieces(out) if other.cell == piece.cell}
              for piece in read_pieces(out)}  # fmt: skip
    by_attack = frame.groupby("attack")["cell"].first()
    assert bounds[by_attack["pgd"]] == {(0, 24), (24, 48)}  # its two eps share a pass
    assert bounds[by_attack["noise"]] == {(0, 48)}


def test_a_deterministic_run_is_not_divided_by_a_timing(suite: Path, tmp_path: Path) -> None:
    out = run(suite, tmp_path / "out", parts=True, deterministic=True)
    assert {piece[1:3] for piece in read_pieces(out)} == {(0, 48)}


def test_folders_that_were_divided_otherwise_are_merged(
    whole: Path, divided: Path, tmp_path: Path
) -> None:
    half = shutil.copytree(divided, tmp_path / "half")
    for path in (half / "records").glob("*-0000032-*.parquet"):
        path.unlink()
    done = merge.merge_runs([whole, half], tmp_path / "out")
    assert done.missing == []
    assert_same_outcomes(tmp_path / "out", whole)
    missing = merge.merge_runs([half], tmp_path / "rest").missing
    assert len(missing) == 3
    assert all(text.endswith("examples 32 to 47") for text in missing)


def test_a_file_that_is_held_in_part_is_refused(whole: Path, divided: Path, tmp_path: Path) -> None:
    part = shutil.copytree(divided, tmp_path / "part")
    for path in (part / "records").glob("*-0000000-*.parquet"):
        path.unlink()
    with pytest.raises(RecordError, match="holds examples that another folder has, and others"):
        merge.merge_runs([part, whole], tmp_path / "out")


def test_other_outcomes_of_the_same_examples_are_found_in_folders_divided_otherwise(
    suite: Path, whole: Path, tmp_path: Path
) -> None:
    text = suite.read_text(encoding="utf-8").replace("steps = 3", "steps = 4")
    (tmp_path / "long.toml").write_text(text, encoding="utf-8")
    other = run(tmp_path / "long.toml", tmp_path / "other", parts=True)
    ours = {(piece.cell, piece.first, piece.last) for piece in read_pieces(whole)}
    theirs = {(piece.cell, piece.first, piece.last) for piece in read_pieces(other)}
    shared = merge._find_common(ours, theirs)  # cells of noise alone have the same identity
    assert {key[1:] for key in shared} == {(0, 16), (16, 32), (32, 48)}
    assert len({key[0] for key in shared}) == 1


def unit(suite: Path, seconds: float) -> WorkUnit:
    checked = read_suite(str(suite))
    tasks = plan.plan_tasks(checked, plan.collect_declared_facts(checked))
    return WorkUnit(0, tasks[0], 0, 48, seconds)


def test_parts_have_the_work_of_the_unit_together(suite: Path) -> None:
    long = unit(suite, 100.0)
    parts = divide_long_units([long], {"softmax": 8}, {})
    assert [(part.first, part.last) for part in parts] == [(0, 16), (16, 32), (32, 48)]
    assert sum(part.work for part in parts) == pytest.approx(100.0)
    assert divide_long_units([unit(suite, 10.0)], {"softmax": 8}, {}) == [unit(suite, 10.0)]


@pytest.mark.parametrize("why", ["random", "batch-dependent", "model"])
def test_outcomes_that_depend_on_the_batch_are_not_divided(suite: Path, why: str) -> None:
    long = unit(suite, 1000.0)
    spec = long.task.spec
    changes = {
        "random": {"random": True},
        "batch-dependent": {"attack": dataclasses.replace(spec.attack, batch_dependent=True)},
        "model": {},
    }
    spec = dataclasses.replace(spec, **changes[why])
    long = long._replace(task=long.task._replace(spec=spec))
    facts = {"softmax": ModelFacts(10, (1, 8, 8), batch_dependent=why == "model")}
    assert divide_long_units([long], {}, facts) == [long]


def test_an_interruption_says_what_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    about = {"model": "m", "attack": "PGD", "eps": ["0.1"], "first": 0, "last": 250}

    def interrupted() -> None:
        with Bar(reasons=False) as bar:
            bar.show_event(Event("start", "s", 2.0))
            bar.show_event(Event("begin", "m · PGD", 0.0, about))
            bar.show_event(Event("done", "m · PGD", 1.0, about))
            bar.show_event(Event("begin", "m · PGD", 0.0, {**about, "first": 250, "last": 500}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    told = capsys.readouterr().err
    assert told.count("lost: ") == 1
    assert "lost: m · PGD, examples 250 to 499, 0 s of work" in told
