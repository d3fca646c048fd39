"""Parquet keeps types, and nothing of the library that happened to write it but its version."""

import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.reporting.formats.exports import PARQUET

ROWS = pd.DataFrame(
    {
        "attack": ["=PGD", ""],
        "n": pd.array([500, None], dtype="Int64"),
        "robust_accuracy": [0.1 + 0.2, float("nan")],
    }
)


def table(rows: pd.DataFrame = ROWS) -> pa.Table:
    return pq.read_table(io.BytesIO(PARQUET.content(rows)))


def test_types_are_kept_and_a_missing_count_is_no_float() -> None:
    assert [str(kind) for kind in table().schema.types] == ["string", "int64", "double"]
    assert table()["n"].to_pylist() == [500, None]
    assert table()["robust_accuracy"][0].as_py() == 0.1 + 0.2


def test_words_are_as_they_were() -> None:
    assert table()["attack"].to_pylist() == ["=PGD", ""]


def test_the_kind_of_string_that_pandas_holds_makes_no_difference() -> None:
    as_objects = ROWS.astype({"attack": object})
    assert PARQUET.content(as_objects) == PARQUET.content(ROWS)
    assert table().schema.metadata is None
