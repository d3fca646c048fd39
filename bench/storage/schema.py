"""Columns of the per-example records, and what a file must contain before it is counted from.

Read `RECORD_COLUMNS` first: the only declaration of a column's name, type, meaning, role and
default. The hash in a file's name shows that its content has not changed since it was written, not
who wrote it: a file from elsewhere may claim any column, type, number of rows or examples.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bench.core import sanitize

SCHEMA_VERSION = 1
"""Written into every file of records and into provenance.json; a newer one is not read."""
MAX_ROWS = 2**24
"""Rows of one file: a chunk has some thousand examples, and as many rows for each eps."""
MAX_BYTES = 2**30
"""Size of one file, decompressed."""
MAX_SECONDS = 1e12
"""Seconds of one file's work; an integer too large for a float is rejected with it."""


class Column(NamedTuple):
    """One column of the per-example records."""

    name: str
    type: Literal["text", "flag", "integer", "number", "numbers"]
    meaning: str
    role: Literal["cell", "outcome", "measured", ""] = ""
    """"cell": which cell a row belongs to. "outcome": counted, equal in every repetition of a run.
    "measured": differs by rounding between two devices or versions."""
    default: str | float | None = None
    """Value in files that were written before the column existed; None if every file has it."""


RECORD_COLUMNS = (
    Column("suite", "text", "Name of the suite.", "cell"),
    Column("model", "text", "Label of the model.", "cell"),
    Column("attack", "text", "Label of the attack.", "cell"),
    Column("norm", "text", "Norm of the threat model: linf, l2, l1 or l0, or the name of a "
           "family of images.", "cell"),
    Column("eps", "number", "Radius of the threat model, for images in [0, 1]; level of a "
           "family.", "cell"),
    Column("goal", "text", "untargeted or targeted.", "cell"),
    Column("example", "integer", "Index of the example in the data set."),
    Column("label", "integer", "True class."),
    Column("target", "integer", "Class that a targeted attack aims at; -1 if untargeted."),
    Column("clean_pred", "integer", "Predicted class of the clean image."),
    Column("adv_pred", "integer", "Predicted class of the returned image."),
    Column("adv_pred_8bit", "integer", "Predicted class of it, rounded to 8 bits per channel."),
    Column("clean_correct", "flag", "The clean image is classified correctly.", "outcome"),
    Column("fooled", "flag", "The attack succeeded, without a violation.", "outcome"),
    Column("violation", "text", "How the returned image breaks the threat model; empty if it "
           "does not.", "outcome"),
    Column("confidence", "number", "Largest softmax probability on the returned image.",
           "measured"),
    Column("linf", "number", "L-inf norm of the perturbation.", "measured"),
    Column("l2", "number", "L2 norm of the perturbation.", "measured"),
    Column("l1", "number", "L1 norm of the perturbation.", "measured"),
    Column("l0", "number", "Number of pixel values that changed.", "measured"),
    Column("forwards", "number", "Forward passes that the attack used."),
    Column("backwards", "number", "Backward passes that the attack used."),
    Column("first_success_step", "integer", "Step of the first misclassified iterate; -1 if there "
           "was none or steps were not observed."),
    Column("clean_confidence", "number", "Largest softmax probability on the clean image.",
           "measured"),
    Column("attacked", "flag", "The attack was run on this example.", "outcome"),
    Column("cell", "text", "Identity of the cell.", "cell"),
    Column("part", "text", "Label of the ensemble's attack that succeeded; empty otherwise.",
           default=""),
    # Every model was asked once before the column existed.
    Column("agreement", "number", "Share of the predictions of the returned image that agree with "
           "the majority.", "measured", default=1.0),
    # A search was read only at the given eps before the column existed.
    Column("distance", "number", "Least distance that a minimum-norm search found; missing for "
           "other attacks.", "measured", default=float("nan")),
    Column("queries", "number", "Queries of the model until the example fell; infinite if it did "
           "not, missing if they were not counted.", default=float("nan")),
    Column("distance_within", "numbers", "Least distance that a search found within each of the "
           "cell's budgets of queries; missing for other attacks.", default=float("nan")),
    Column("parameters", "text", "What the image of a threat model without a norm was made with; "
           "empty for a norm.", default=""),
    Column("rejection", "integer", "Class number that stands for an image that the model's "
           "detector rejects; -1 without a detector.", default=-1),
    Column("rejected_is_robust", "flag", "A rejected adversarial image counts as robust.",
           default=False),
    Column("victim_queries", "number", "Queries of the judged model by an attack on a source with "
           "a budget of them; missing for other attacks.", default=float("nan")),
    Column("certified", "flag", "A certificate proves the example robust at this eps, so it was "
           "not attacked (`skip_certified`).", default=False),
)  # fmt: skip
"""Columns of the per-example records, in the order of the file."""
COLUMNS = tuple(column.name for column in RECORD_COLUMNS)
TEXT_COLUMNS = tuple(column.name for column in RECORD_COLUMNS if column.type == "text")
_TYPES = {column.name: column.type for column in RECORD_COLUMNS}
_NUMBERS = pa.list_(pa.float32())
_DICTIONARY = pa.dictionary(pa.int32(), pa.string())


def select_columns(role: Literal["cell", "outcome", "measured"]) -> tuple[str, ...]:
    """Select the columns of one role.

    Args:
        role: See `Column.role`.

    Returns:
        Names, in the order of the file.

    >>> select_columns("outcome")
    ('clean_correct', 'fooled', 'violation', 'attacked')
    """
    return tuple(column.name for column in RECORD_COLUMNS if column.role == role)


class Piece(NamedTuple):
    """The examples first..last-1 of one cell in one file of records, and their cost."""

    cell: str
    """Identity of the cell."""
    first: int
    last: int
    attacked: int
    """Examples on which the attack was run."""
    seconds: float
    """Wall-clock time of crafting."""
    verify_seconds: float
    floor_seconds: float
    """Time of a bare loop of the same number of passes."""
    rows: int
    """Images in one pass."""
    device: str
    busy_seconds: float = 0.0
    """As `seconds`, but processor time of this process; 0 in files written before it was
    measured."""
    busy_floor_seconds: float = 0.0
    """As `floor_seconds`, but processor time of this process."""
    nonfinite_gradients: int = 0
    """Gradients with entries that were not finite and counted as 0; 0 in files written before they
    were counted."""
    nonfinite_examples: int = 0
    """Examples that had such a gradient."""


def check_size(metadata: pq.FileMetaData) -> None:
    """Reject a file that claims to be larger than any that bench writes.

    Args:
        metadata: Parquet metadata of the file.

    Raises:
        ValueError: It claims more than MAX_ROWS rows or MAX_BYTES bytes.
    """
    groups = range(metadata.num_row_groups)
    size = sum(metadata.row_group(group).total_byte_size for group in groups)
    if metadata.num_rows > MAX_ROWS or size > MAX_BYTES:
        raise ValueError(f"{metadata.num_rows} rows in {size} bytes, more than bench ever writes")


def check_pieces(pieces: Sequence[Piece]) -> None:
    """Check the values in a file's metadata.

    Args:
        pieces: Built from JSON, so their fields may have any type.

    Raises:
        ValueError: A name, count or time is not valid.
        TypeError: A count or time is not a number.
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
        if not all(0 <= value <= MAX_SECONDS for value in seconds):
            raise ValueError("a piece without seconds")
        if not 0 < piece.last - piece.first <= MAX_ROWS or piece.attacked > piece.last:
            raise ValueError(f"a piece of the examples {piece.first} to {piece.last}")


def check_places(pieces: Sequence[Piece]) -> None:
    """Check that no example of a cell is contained twice.

    Args:
        pieces: Those of all files of a run.

    Raises:
        ValueError: Two pieces of one cell share examples.
    """
    ordered = sorted(pieces, key=lambda piece: (piece.cell, piece.first))
    for one, other in pairwise(ordered):
        if one.cell == other.cell and other.first < one.last:
            raise ValueError(f"cell {one.cell} holds the examples from {other.first} on twice")


def upgrade_table(table: pa.Table) -> pa.Table:
    """Add the columns that did not exist when a file was written, filled with their default.

    Args:
        table: Rows of one file.

    Returns:
        The table with the added columns, without the metadata of the file.
    """
    for column in RECORD_COLUMNS:
        if column.default is not None and column.name not in table.column_names:
            if column.type == "numbers":
                values = pa.nulls(len(table), _NUMBERS)
            else:
                kind = pa.string() if column.type == "text" else pa.float32()
                values = pa.array([column.default] * len(table), kind)
            table = table.append_column(column.name, values)
    return table.replace_schema_metadata(None)


def cast_table(table: pa.Table, pieces: Sequence[Piece]) -> pa.Table:
    """Cast the columns, and check the rows against the metadata of the file.

    Args:
        table: Rows of one file.
        pieces: The cells and examples that the file's metadata declares.

    Returns:
        The table with COLUMNS only: text as dictionary, flags as bool, integers as int32 (half
        the memory of a million rows), numbers as floating point.

    Raises:
        ValueError: A column is missing or occurs twice, a value is missing or contains control
            characters, or the rows are not those that `pieces` declare.
        pa.ArrowException: A value cannot be cast.
    """
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing or len(set(table.column_names)) < table.num_columns:
        expected = ", ".join(missing) if missing else "each column once"
        raise ValueError(f"expected the columns {expected}")
    table = pa.table({name: _cast_column(name, table[name]) for name in COLUMNS})
    _check_rows(table, pieces)
    return table


def _cast_column(name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = _TYPES[name]
    if kind == "numbers":
        return column.cast(_NUMBERS)
    if kind == "number":  # NaN is written as null
        return column if pa.types.is_floating(column.type) else column.cast(pa.float64())
    if column.null_count:
        raise ValueError(f"{name}: nothing in {column.null_count} rows")
    if kind == "flag":
        return column if pa.types.is_boolean(column.type) else column.cast(pa.bool_())
    if kind == "integer":
        return column.cast(pa.int32())
    texts = pc.unique(column).cast(pa.string()).to_pylist()
    if offence := sanitize.find_control_characters(texts):
        raise ValueError(f"{name}: {offence}")
    if pa.types.is_dictionary(column.type):
        return column.cast(_DICTIONARY)
    return column.cast(pa.string()).dictionary_encode()


def _check_rows(table: pa.Table, pieces: Sequence[Piece]) -> None:
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
