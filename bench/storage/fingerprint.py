"""One hash for all that the records of a run say, whatever files and order they were written in.

Two runs of one suite have the same hash if and only if every example of every cell had the same
outcome, to the last bit of its distances and confidences; times and the cells' identities are no
part of it.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FILE = "records.sha256"
"""Beside the tables of a run: the hash of the records that they were made from."""
PLACE = ("model", "attack", "norm", "eps", "goal")
"""What a cell is, whatever made it."""


def records_hash(frame: pd.DataFrame) -> str:
    """sha256, 64 hexadecimal digits, over a frame of `records.load`; "" where it has no row."""
    if frame.empty:
        return ""
    # By what a cell is, and not by its identity, which another spelling of the code may change.
    keys = [frame["example"].to_numpy(), *(_key(frame[name]) for name in reversed(PLACE))]
    order = np.lexsort(keys)
    digest = hashlib.sha256()
    for name in sorted(set(frame.columns) - {"cell"}):  # one by one: a million rows are not copied
        digest.update(f"{name}\x1e".encode())
        digest.update(_content(frame[name].iloc[order]))
    return digest.hexdigest()


def _key(column: "pd.Series[Any]") -> npt.NDArray[Any]:
    return column.to_numpy() if pd.api.types.is_numeric_dtype(column) else _ranks(column)[1]


def _content(column: "pd.Series[Any]") -> bytes:
    """The values of a column, row by row, spelled the same on every machine."""
    if pd.api.types.is_bool_dtype(column):
        return np.asarray(column, dtype=np.uint8).tobytes()
    if pd.api.types.is_integer_dtype(column):
        return np.asarray(column, dtype="<i8").tobytes()
    if pd.api.types.is_float_dtype(column):
        values: npt.NDArray[np.float64] = np.asarray(column, dtype="<f8")
        return np.where(np.isnan(values), np.nan, values).astype("<f8").tobytes()
    # A text stands once and its rows point to it: a run repeats few texts many times.
    texts, ranks = _ranks(column)
    return "\x1f".join(texts).encode() + ranks.astype("<i8").tobytes()


def _ranks(column: "pd.Series[Any]") -> tuple[list[str], npt.NDArray[np.int64]]:
    """The texts of a column in their order, and for each row which of them it holds."""
    kinds = column.astype("category").cat
    texts = np.asarray(kinds.categories.astype(str), dtype=str)
    used, places = np.unique(kinds.codes, return_inverse=True)
    order = np.argsort(texts[used])
    return [str(text) for text in texts[used][order]], np.argsort(order)[places]
