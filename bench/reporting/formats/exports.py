"""Export the rows of all cells, with their types, as CSV, JSON and Parquet.

The same rows give the same bytes; for Parquet under one version of pyarrow, which writes its name
into the file.
"""

import json
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.analysis import columns, json_schemas
from bench.reporting.formats.numbers import format_text, is_missing
from bench.storage.spreadsheet import guard_formula

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ExportFormat(NamedTuple):
    """A file format for rows with types."""

    suffix: str
    """Suffix of its files, with the dot."""
    content: Callable[[pd.DataFrame], bytes]
    """Encode the rows as the bytes of a file."""


def to_csv(rows: pd.DataFrame) -> bytes:
    """Encode rows as CSV that is safe to open in a spreadsheet.

    A spreadsheet evaluates a text that begins like a formula, so such a text gets a quotation mark
    in front: spreadsheets hide it, programs see it. Numbers are never changed.
    Source: OWASP, CSV Injection, https://owasp.org/www-community/attacks/CSV_Injection

    Args:
        rows: One row per cell.

    Returns:
        UTF-8 text, comma-separated, one line per row; floats have enough digits to be read back
        exactly.
    """
    texts = [name for name in rows if not pd.api.types.is_numeric_dtype(rows[name])]
    safe = rows.copy()
    for name in texts:
        safe[name] = pd.Series(
            [_guard(value) for value in rows[name]], index=rows.index, dtype=object
        )
    return safe.to_csv(index=False, lineterminator="\n").encode()


def _guard(value: object) -> object:
    if is_missing(value):
        return ""
    if not isinstance(value, str):
        return value
    # Some programs start a formula, others a line, at a tab or a carriage return.
    text = format_text(value) if _CONTROL.search(value) else value
    return guard_formula(text)


def to_json(rows: pd.DataFrame) -> bytes:
    """Encode rows as JSON, for programs; `bench schema table` prints its JSON Schema.

    Args:
        rows: One row per cell.

    Returns:
        UTF-8: an object with the schema's version and the rows. A number that is missing or not
        finite is null; a text that is missing is empty; texts are as they are, without the
        apostrophe that CSV needs.
    """
    kinds: dict[str, str] = {name: column.type for name, column in columns.BY_NAME.items()}
    content = {
        "schema": json_schemas.TABLE_SCHEMA_VERSION,
        "rows": [
            {
                str(name): _to_plain(value, kinds.get(str(name), "text"))
                for name, value in row.items()
            }
            for row in rows.to_dict("records")
        ],
    }
    return (json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode()


def _to_plain(value: Any, kind: str) -> str | int | float | None:
    """Convert a value of a column to what JSON has for it."""
    if kind == "text":
        return "" if is_missing(value) else str(value)
    if is_missing(value) or not math.isfinite(value):
        return None
    return int(value) if kind == "count" else float(value)


def to_parquet(rows: pd.DataFrame) -> bytes:
    """Encode rows as Parquet: one row group, zstd, without pandas metadata.

    Args:
        rows: One row per cell.

    Returns:
        The bytes of the file; every column has its type, a missing count stays a whole number.
    """
    table = pa.Table.from_pandas(rows, preserve_index=False)
    # The string type that pandas uses depends on its version; the file's must not.
    kinds = [
        field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field
        for field in table.schema
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(pa.schema(kinds)), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


CSV = ExportFormat(suffix=".csv", content=to_csv)
PARQUET = ExportFormat(suffix=".parquet", content=to_parquet)
