"""JSON Schemas of what bench writes, generated from the declarations of its columns and manifest.

Written for programs that read table.json, the records (one row as an object) or provenance.json.
Later versions may add properties, so none forbids unknown ones.
Source: JSON Schema 2020-12, https://json-schema.org/draft/2020-12
"""

from collections.abc import Iterable
from typing import Any, get_args

from bench.analysis import columns
from bench.core.contracts.types import Norm

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TABLE_SCHEMA_VERSION = 1
"""Written into table.json; raised when a property changes its meaning or disappears."""
_TABLE_TYPES: dict[str, list[str]] = {
    "text": ["string"],
    "count": ["integer", "null"],
    "number": ["number", "null"],
}
_RECORD_TYPES: dict[str, list[str]] = {
    "text": ["string"],
    "flag": ["boolean"],
    "integer": ["integer"],
    "number": ["number", "null"],
    "numbers": ["array", "null"],
}


def build_table_schema() -> dict[str, Any]:
    """Build the schema of table.json.

    Returns:
        The schema, as plain values.
    """
    every = (*columns.MAIN, *columns.ADDITIONAL)
    row = _build_row(
        (
            (each.name, _TABLE_TYPES[each.type], each.meaning)
            for each in (*every, *columns.OPTIONAL)
        ),
        required=[each.name for each in every],
    )
    row["properties"]["status"]["enum"] = ["ok", "skipped", "failed", "missing"]
    row["properties"]["norm"]["enum"] = [*get_args(Norm)]
    row["properties"]["goal"]["enum"] = ["untargeted", "targeted"]
    return {
        "$schema": DIALECT,
        "title": "bench: table.json, one row per cell",
        "type": "object",
        "properties": {
            "schema": {"const": TABLE_SCHEMA_VERSION},
            "rows": {"type": "array", "items": row},
        },
        "required": ["schema", "rows"],
    }


def build_records_schema() -> dict[str, Any]:
    """Build the schema of one row of the per-example records.

    Returns:
        The schema, as plain values.
    """
    from bench.storage import schema

    row = _build_row(
        ((each.name, _RECORD_TYPES[each.type], each.meaning) for each in schema.RECORD_COLUMNS),
        required=[each.name for each in schema.RECORD_COLUMNS if each.default is None],
    )
    return {"$schema": DIALECT, "title": "bench: one row of records/*.parquet", **row}


def build_provenance_schema() -> dict[str, Any]:
    """Build the schema of provenance.json from the types that it is checked by.

    Returns:
        The schema, as plain values.
    """
    from bench.storage import manifest

    found = manifest.describe_manifest()
    return {"$schema": DIALECT, **found, "title": "bench: provenance.json, the manifest of a run"}


SCHEMAS = {
    "table": build_table_schema,
    "records": build_records_schema,
    "provenance": build_provenance_schema,
}
"""Name of each schema -> how to build it."""


def _build_row(fields: Iterable[tuple[str, list[str], str]], required: list[str]) -> dict[str, Any]:
    """Build the schema of a row from (name, types, meaning) of its columns."""
    properties = {
        name: {"type": kinds[0] if len(kinds) == 1 else kinds, "description": meaning}
        for name, kinds, meaning in fields
    }
    return {"type": "object", "properties": properties, "required": required}
