"""One hash for what records say: of the outcomes alone, whatever files and order they came in."""

from pathlib import Path

import pandas as pd
import pytest

from bench.execution import runner
from bench.execution.options import RunOptions
from bench.storage import fingerprint
from bench.storage.reader import read_records
from bench.suite import reader

SUITE = """
schema = 1
name = "d"
[data]
name = "digits"
limit = 24
[[models]]
name = "lenet"
weights = "digits"
[[attacks]]
name = "fgsm"
norm = "linf"
eps = [0.05, 0.1]
"""


def run(folder: Path, rows: int | None = None) -> pd.DataFrame:
    options = RunOptions(device="cpu", batch_size=rows)
    runner.run_suite(reader.parse_suite(SUITE, "d.toml", Path()), folder, options)
    return read_records(folder).frame


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return run(tmp_path_factory.mktemp("run"))


def test_the_order_and_the_kinds_of_columns_are_no_part_of_it(frame: pd.DataFrame) -> None:
    other = frame.sample(frac=1, random_state=0)[list(frame.columns[::-1])]
    other["attack"] = other["attack"].astype(str)
    other["model"] = other["model"].cat.add_categories(["a", "zz"])
    other["cell"] = other["cell"].cat.reorder_categories(other["cell"].cat.categories[::-1])
    assert fingerprint.records_hash(other) == fingerprint.records_hash(frame)
    assert len(fingerprint.records_hash(frame)) == 64


def test_a_run_made_again_has_the_same(frame: pd.DataFrame, tmp_path: Path) -> None:
    assert fingerprint.records_hash(run(tmp_path)) == fingerprint.records_hash(frame)


@pytest.mark.parametrize("column", ["adv_pred", "confidence", "attack", "fooled", "example"])
def test_one_field_of_one_example_changes_it(frame: pd.DataFrame, column: str) -> None:
    other = frame.copy()
    other[column] = other[column].astype(object)
    value = other[column].iloc[3]
    other.loc[other.index[3], column] = f"{value}x" if isinstance(value, str) else value + 1
    kinds = {"attack": str, "fooled": int}.get(column, frame[column].dtype)
    assert fingerprint.records_hash(other.astype({column: kinds})) != fingerprint.records_hash(
        frame
    )


def test_texts_that_only_join_to_the_same_are_told_apart(frame: pd.DataFrame) -> None:
    two = frame.head(2).astype({"model": str, "attack": str})
    first = two.assign(model=["ab", "c"], attack=["a", "a"])
    second = two.assign(model=["a", "bc"], attack=["a", "a"])
    assert fingerprint.records_hash(first) != fingerprint.records_hash(second)


def test_no_records_have_no_hash(frame: pd.DataFrame) -> None:
    assert fingerprint.records_hash(frame.head(0)) == ""


def test_columns_that_a_run_does_not_use_are_no_part_of_it(frame: pd.DataFrame) -> None:
    earlier = frame.drop(columns=["parameters", "victim_queries"])
    assert fingerprint.records_hash(earlier) == fingerprint.records_hash(frame)
    used = frame.assign(victim_queries=3.0)
    assert fingerprint.records_hash(used) != fingerprint.records_hash(frame)
