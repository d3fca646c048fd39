"""What a file of per-example records must hold before anything is counted from it.

A hash in a file's name tells that nothing has changed since it was written, not who wrote it: a
file from elsewhere may claim any column, type, number of rows or examples.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.core import sanitize

MOST_ROWS = 2**24
"""In one file: a shard holds some thousand examples, and as many rows for each eps."""
MOST_BYTES = 2**30
"""Of one file, unpacked."""
MOST_SECONDS = 1e12
"""Of one file's work; a whole number beyond any float is none, either."""
_FLAGS = ("clean_correct", "fooled", "attacked")
_WHOLE = (
    "example", "label", "target", "clean_pred", "adv_pred", "adv_pred_8bit", "first_success_step",
)  # fmt: skip
_NUMBERS = (
    "eps", "confidence", "linf", "l2", "l1", "l0", "forwards", "backwards", "clean_confidence",
    "agreement", "distance",
)  # fmt: skip

_TEXT = pa.dictionary(pa.int32(), pa.string())


def check_size(metadata: pq.FileMetaData) -> None:
    """Raises: ValueError if a file says that it unpacks to more than any of ours."""
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    if metadata.num_rows > MOST_ROWS or size > MOST_BYTES:
        raise ValueError(f"{metadata.num_rows} rows in {size} bytes, more than bench ever writes")


def check_pieces(pieces: Sequence[Any]) -> None:
    """What a file's metadata says of each piece (`records.Piece`): counts and seconds.

    Raises: ValueError, TypeError if a figure is none.
    """
    for piece in pieces:
        texts = (piece.cell, piece.device)
        counts = (
            piece.first, piece.last, piece.attacked, piece.rows, piece.nonfinite_gradients,
            piece.nonfinite_examples,
        )  # fmt: skip
        seconds = (
            piece.seconds, piece.verify_seconds, piece.floor_seconds, piece.busy_seconds,
            piece.busy_floor_seconds,
        )  # fmt: skip
        if not all(isinstance(text, str) for text in texts) or sanitize.find_control_characters(
            list(texts)
        ):
            raise ValueError("a piece without the name of a cell or a device")
        if not all(isinstance(k, int) and 0 <= k < 2**63 for k in counts):
            raise ValueError("a piece without counts")
        if not all(0 <= value <= MOST_SECONDS for value in seconds):  # a float holds it
            raise ValueError("a piece without seconds")
        if not 0 < piece.last - piece.first <= MOST_ROWS or piece.attacked > piece.last:
            raise ValueError(f"a piece of the examples {piece.first} to {piece.last}")


def check_places(pieces: Sequence[Any]) -> None:
    """Raises: ValueError if two pieces of one cell share examples and are not the same."""
    ordered = sorted(pieces, key=lambda piece: (piece.cell, piece.first))
    for one, other in pairwise(ordered):
        if one.cell == other.cell and other.first < one.last:
            raise ValueError(f"cell {one.cell} holds the examples from {other.first} on twice")


def typed(table: pa.Table, pieces: Sequence[Any], columns: Sequence[str]) -> pa.Table:
    """The table with `columns` alone, each of its type, and the rows that `pieces` promise.

    Raises: ValueError, pa.ArrowException if it is not so.
    """
    missing = [name for name in columns if name not in table.column_names]
    if missing or len(set(table.column_names)) < table.num_columns:
        told = ", ".join(missing) if missing else "each column once"
        raise ValueError(f"expected the columns {told}")
    found = {name: _column(name, table[name]) for name in columns}
    table = pa.table(found)
    _check_rows(table, pieces)
    return table


def _column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of the type that its values are computed with; a text stands once."""
    if name in _NUMBERS:  # not a number is written as nothing
        return column if pa.types.is_floating(column.type) else column.cast(pa.float64())
    if column.null_count:
        raise ValueError(f"{name}: nothing in {column.null_count} rows")
    if name in _FLAGS:
        return column if pa.types.is_boolean(column.type) else column.cast(pa.bool_())
    if name in _WHOLE:
        return column.cast(pa.int32())  # half the memory of a million rows
    texts = pc.unique(column).cast(pa.string()).to_pylist()
    if told := sanitize.find_control_characters(texts):
        raise ValueError(f"{name}: {told}")
    return column.cast(_TEXT) if pa.types.is_dictionary(column.type) else _standing_once(column)


def _standing_once(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string()).dictionary_encode()


def _check_rows(table: pa.Table, pieces: Sequence[Any]) -> None:
    n = sum(piece.last - piece.first for piece in pieces)
    if n != table.num_rows:
        raise ValueError(f"{table.num_rows} rows where {n} are promised")
    promised = [np.arange(piece.first, piece.last) for piece in pieces]
    examples = np.concatenate([np.zeros(0, dtype=np.int64), *promised])
    cells = [cell for piece in pieces for cell in [piece.cell] * (piece.last - piece.first)]
    same = pc.equal(table["cell"].cast(pa.string()), pa.array(cells, pa.string()))
    if not (
        np.array_equal(table["example"].to_numpy(), examples) and pc.all(same, min_count=0).as_py()
    ):
        raise ValueError("other cells or examples than are promised")
