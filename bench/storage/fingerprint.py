"""Hash all records of a run, independently of the files and the order they were written in.

Two runs of one suite have the same hash if and only if every example of every cell had the same
outcome, to the last bit of its distances and confidences. Times, identities of cells and what is
recorded of the queries are not included.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FILE = "records.sha256"
"""File beside the tables of a run with the hash of the records that they were made from."""
PLACE = ("model", "attack", "norm", "eps", "goal")
"""Columns that name a cell, and order the rows."""

ADDED: dict[str, str | int | bool | None] = {
    "parameters": "", "rejection": -1, "rejected_is_robust": False, "victim_queries": None,
    "certified": False,
}  # fmt: skip
"""Columns that earlier versions did not write, with the value of runs that do not use them, None
for a missing one; hashed only in runs that do."""


UNHASHED = ("cell", "queries", "distance_within")
"""Columns that are not hashed: a new version of bench may change the identity of a cell, and runs
made before queries were counted have the same hash."""


def records_hash(frame: pd.DataFrame) -> str:
    """Hash a frame of records.

    Args:
        frame: That of `reader.read_records`.

    Returns:
        sha256, 64 hexadecimal digits; "" if the frame has no row.
    """
    if frame.empty:
        return ""
    keys = [frame["example"].to_numpy(), *(_key(frame[name]) for name in reversed(PLACE))]
    order = np.lexsort(keys)
    digest = hashlib.sha256()
    unused = {
        name for name, value in ADDED.items() if name in frame and _is_unused(frame[name], value)
    }
    # One by one, to not copy a million rows.
    for name in sorted(set(frame.columns) - set(UNHASHED) - unused):
        digest.update(f"{name}\x1e".encode())
        digest.update(_content(frame[name].iloc[order]))
    return digest.hexdigest()


def _is_unused(column: "pd.Series[Any]", value: str | int | bool | None) -> bool:
    """Return whether every row has the value of a run that does not use the column."""
    return bool((column.isna() if value is None else column == value).all())


def _key(column: "pd.Series[Any]") -> npt.NDArray[Any]:
    return column.to_numpy() if pd.api.types.is_numeric_dtype(column) else _ranks(column)[1]


def _content(column: "pd.Series[Any]") -> bytes:
    """Encode the values of a column, row by row, the same on every machine."""
    if pd.api.types.is_bool_dtype(column):
        return np.asarray(column, dtype=np.uint8).tobytes()
    if pd.api.types.is_integer_dtype(column):
        return np.asarray(column, dtype="<i8").tobytes()
    if pd.api.types.is_float_dtype(column):
        values: npt.NDArray[np.float64] = np.asarray(column, dtype="<f8")
        return np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes()
    # Each text once, and its index per row: a run repeats few texts many times.
    texts, ranks = _ranks(column)
    return "\x1f".join(texts).encode() + ranks.astype("<i8").tobytes()


def _ranks(column: "pd.Series[Any]") -> tuple[list[str], npt.NDArray[np.int64]]:
    """Return the sorted texts of a column, and for each row the index of its text."""
    kinds = column.astype("category").cat
    texts = np.asarray(kinds.categories.astype(str), dtype=str)
    used, places = np.unique(kinds.codes, return_inverse=True)
    order = np.argsort(texts[used])
    return [str(text) for text in texts[used][order]], np.argsort(order)[places]
