"""Read the per-example records of a run's folder.

The folder `records/` contains one Parquet file for each chunk of examples and attack, written by
`bench.storage.records`. A file's name ends in a hash of its content, so that damage is found
wherever the file is read; its metadata lists the cells and examples that it contains and their
cost (`schema.Piece`).
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from bench.core import files, sanitize
from bench.core.errors import RecordError, first_line
from bench.storage import schema
from bench.storage.frame_builder import FrameBuilder
from bench.storage.schema import COLUMNS, SCHEMA_VERSION, TEXT_COLUMNS, Piece


class StoredRecords(NamedTuple):
    """The records of a run's folder."""

    frame: pd.DataFrame
    """One row per example and cell, columns COLUMNS, ordered by cell and example."""
    pieces: list[Piece]
    failures: dict[str, str]
    """Identity of a failed cell -> reason."""

    def row_positions(self) -> dict[str, Any]:
        """Find the rows of each cell.

        Returns:
            Identity of a cell -> argument for `frame.iloc`: a slice, which copies nothing, where
            the rows are consecutive, as `read_records` orders them.
        """
        positions = self.frame.groupby("cell", observed=True).indices
        return {
            str(cell): slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else at
            for cell, at in positions.items()
        }


class DamagedError(RecordError):
    """A file of records does not contain what was written."""

    def __init__(self, path: Path, why: object) -> None:
        why = first_line(why) if isinstance(why, Exception) else str(why)
        super().__init__(
            f"{path}: damaged records ({why}); bench run sets the file aside and makes it again"
        )
        self.why = f"damaged ({why})"


def read_records(folder: Path) -> StoredRecords:
    """Read all records of a run's folder.

    Args:
        folder: Folder of the run.

    Returns:
        Records, cost and failures; empty if nothing was recorded.

    Raises:
        RecordError: A file is damaged or newer than this bench, or two files contradict each
            other.
    """
    contained = {path: read_file_pieces(path) for path in _record_files(folder)}
    # Two files may hold the same piece; other overlaps are an error.
    pieces = {piece[:3]: piece for some in contained.values() for piece in some}
    try:
        schema.check_places(list(pieces.values()))
    except ValueError as error:
        raise RecordError(f"{folder / 'records'} does not hold together: {error}") from error
    starts, n = {}, 0
    for cell, first, last in sorted(pieces):
        starts[cell, first] = n
        n += last - first
    builder = FrameBuilder(n)
    for path, some in contained.items():
        builder.add(_read_table(path, some), _stretches(some, starts))
    frame = builder.build() if contained else pd.DataFrame({column: [] for column in COLUMNS})
    return StoredRecords(frame, list(pieces.values()), read_failures(folder))


def read_file(path: Path) -> pd.DataFrame:
    """Read one file of records.

    Args:
        path: A Parquet file of `records/`.

    Returns:
        One row per example and cell, columns COLUMNS.

    Raises:
        RecordError: The file is damaged or newer than this bench.
    """
    rows: pd.DataFrame = _read_table(path, read_file_pieces(path)).to_pandas()
    return rows


def read_pieces(folder: Path) -> list[Piece]:
    """Read which examples of which cells are recorded, from the metadata of the files.

    Args:
        folder: Folder of the run.

    Returns:
        All pieces, file by file.

    Raises:
        RecordError: A file is damaged or newer than this bench.
    """
    return [piece for path in _record_files(folder) for piece in read_file_pieces(path)]


def read_file_pieces(path: Path) -> list[Piece]:
    """Read which examples of which cells one file contains, from its metadata.

    Args:
        path: A Parquet file of `records/`.

    Returns:
        The pieces in the order of the file's rows.

    Raises:
        RecordError: The file is damaged or newer than this bench.
    """
    content = read_verified_bytes(path)
    try:
        metadata = pq.read_metadata(pa.BufferReader(content))
        schema.check_size(metadata)
        about: dict[str, Any] = json.loads((metadata.metadata or {})[b"bench"])
        if about["schema"] <= SCHEMA_VERSION:
            pieces = [Piece(**piece) for piece in about["pieces"]]
            schema.check_pieces(pieces)
            return pieces
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(path, error) from error
    raise RecordError(
        f"{path}: records of schema {about['schema']}, this bench reads up to {SCHEMA_VERSION}; "
        "use the bench that wrote them"
    )


def read_failures(folder: Path) -> dict[str, str]:
    """Read why cells failed.

    Args:
        folder: Folder of the run.

    Returns:
        Identity of a cell -> reason.

    Raises:
        RecordError: A note is damaged.
    """
    reasons: dict[str, str] = {}
    for path in sorted((folder / "records").glob("*.failed.json")):
        with contextlib.suppress(FileNotFoundError):  # a run in parallel has just succeeded
            cell, reason = read_failure(path)
            reasons[cell] = reason
    return reasons


def read_failure(path: Path) -> tuple[str, str]:
    """Read the note of one failed cell.

    Args:
        path: A file *.failed.json.

    Returns:
        Identity of the cell, and the reason.

    Raises:
        RecordError: The note is damaged.
    """
    try:
        note = sanitize.escape_nested(json.loads(read_verified_bytes(path)))
        return str(note["cell"]), str(note["reason"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(path, error) from error


def read_verified_bytes(path: Path) -> bytes:
    """Read a file and compare its content with the hash in its name.

    Args:
        path: Any file of `records/`; one without a hash in its name is not compared.

    Returns:
        The content.

    Raises:
        FileNotFoundError: There is no such file.
        RecordError: The file may not be read or is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise RecordError(
            f"{path}: may not be read; give yourself leave to and try again"
        ) from error
    except OSError as error:
        raise DamagedError(path, error) from error
    if not files.matches_hash(path, content):
        raise DamagedError(path, "its hash is not the one in its name")
    return content


def _record_files(folder: Path) -> list[Path]:
    return sorted((folder / "records").glob("*.parquet"))


def _read_table(path: Path, pieces: list[Piece]) -> pa.Table:
    """Read the rows of one file, columns COLUMNS."""
    try:
        content = pa.BufferReader(read_verified_bytes(path))
        table = schema.upgrade_table(pq.read_table(content, read_dictionary=list(TEXT_COLUMNS)))
        return schema.cast_table(table, pieces)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(path, error) from error


def _stretches(
    pieces: list[Piece], starts: Mapping[tuple[str, int], int]
) -> list[tuple[int, int, int]]:
    """Compute for each piece its first row in the file, its first row of all, and its length."""
    sizes = [piece.last - piece.first for piece in pieces]
    begins = [sum(sizes[:at]) for at in range(len(pieces))]
    places = [starts[piece.cell, piece.first] for piece in pieces]
    return list(zip(begins, places, sizes, strict=True))
