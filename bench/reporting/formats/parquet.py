"""Rows as Parquet: every column keeps its type, and a count that is missing stays a count.

The same rows give the same bytes under one version of pyarrow, which writes its name into them.
"""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.reporting.formats import Export


def content(rows: pd.DataFrame) -> bytes:
    """One row group, zstd; nothing of pandas in the metadata, so that any reader sees the same."""
    table = pa.Table.from_pandas(rows, preserve_index=False)
    # Which kind of string pandas holds depends on its version; what is written must not.
    kinds = [
        field.with_type(pa.string()) if pa.types.is_large_string(field.type) else field
        for field in table.schema
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(table.cast(pa.schema(kinds)), sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


EXPORT = Export(suffix=".parquet", content=content)
