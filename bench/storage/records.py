"""Write, recover and delete the per-example records of a run's folder.

A file is written once under a temporary name, synced and renamed, so that a file that exists is
complete; it is never changed. Its name ends in a hash of its content: readers report damage, and
the next run sets the file aside and makes its records again. Beside the records of the first chunk
lie a few adversarial images (`images`); beside those of a failed cell, its reason. The columns are
declared in `schema`; `reader` reads.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from bench.core import files
from bench.core.files import write_atomic
from bench.storage.images import (
    ADVERSARIAL_SUFFIX,
    CLEAN,
    IMAGES_SUFFIX,
    read_tensors,
    write_images,
)
from bench.storage.reader import DamagedError, read_failure, read_file_pieces, read_verified_bytes
from bench.storage.schema import COLUMNS, SCHEMA_VERSION, Piece

_CERTIFICATES_SUFFIX = ".certificates"
_IMAGE_SUFFIXES = (IMAGES_SUFFIX, ADVERSARIAL_SUFFIX)


def write_records(
    folder: Path,
    stem: str,
    frame: pd.DataFrame,
    pieces: Iterable[Piece],
    images: Mapping[str, Tensor],
) -> None:
    """Write one file of records, and one of images if there are any.

    Args:
        folder: Folder of the run.
        stem: Beginning of the file's name, for people.
        frame: One row per example and cell, at least the columns COLUMNS.
        pieces: The cells and examples of `frame`, in the order of its rows.
        images: Identity of a cell -> its first adversarial images (k, c, h, w).

    Raises:
        SuiteError: The disk is full or the folder cannot be written.
    """
    pieces = list(pieces)
    table = pa.Table.from_pandas(frame.loc[:, list(COLUMNS)], preserve_index=False)
    about = {"schema": SCHEMA_VERSION, "pieces": [piece._asdict() for piece in pieces]}
    table = table.replace_schema_metadata({"bench": json.dumps(about)})
    sink = pa.BufferOutputStream()
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    rest = [field.name for field in table.schema if field.name not in floats]
    pq.write_table(  # a quarter smaller than with the defaults, so that records can be committed
        table, sink, compression="zstd", compression_level=9,
        use_dictionary=rest, use_byte_stream_split=floats,
    )  # fmt: skip
    content = sink.getvalue().to_pybytes()
    name = file_stem(stem, pieces)
    # What goes with the records comes first: a run that ends in between makes all of it again.
    if images:
        write_images(folder, name, images)
    for piece in pieces:
        delete_failure(folder, piece.cell)
    write_atomic(folder / "records" / f"{name}-{files.short_hash(content)}.parquet", content)


def file_stem(stem: str, pieces: Sequence[Piece]) -> str:
    """Name the file of some pieces, and the files beside it, up to the hash.

    Args:
        stem: Beginning of the name, for people.
        pieces: Those of the file, at least one.

    Returns:
        The name without hash and suffix.
    """
    # Letters beyond ASCII have always been dashes here: files of earlier runs are so called.
    plain = stem.encode("ascii", "replace").decode()
    return f"{files.slug(plain, 60)}-{pieces[0].cell}-{pieces[0].first:07d}"


def write_failure(folder: Path, cell: str, reason: str) -> None:
    """Write the note that a cell failed; it is deleted once the cell has records.

    Args:
        folder: Folder of the run.
        cell: Identity of the cell.
        reason: One sentence.

    Raises:
        SuiteError: The disk is full or the folder cannot be written.
    """
    text = json.dumps({"schema": SCHEMA_VERSION, "cell": cell, "reason": reason})
    write_atomic(_failure_file(folder, cell), text.encode())


def delete_failure(folder: Path, cell: str) -> None:
    """Delete the note that a cell failed, if there is one.

    Args:
        folder: Folder of the run.
        cell: Identity of the cell.

    Raises:
        SuiteError: It cannot be deleted.
    """
    files.remove(_failure_file(folder, cell))


def _failure_file(folder: Path, cell: str) -> Path:
    return folder / "records" / f"{cell}.failed.json"


def delete_records(folder: Path) -> None:
    """Delete all records of a folder, for --fresh.

    Args:
        folder: Folder of the run; other files in `records/` are left.

    Raises:
        SuiteError: A file cannot be deleted.
    """
    suffixes = (
        ".parquet", *_IMAGE_SUFFIXES, _CERTIFICATES_SUFFIX, ".json", files.PARTIAL, files.DAMAGED,
    )  # fmt: skip
    for path in (folder / "records").glob("*"):
        if path.suffix in suffixes:
            files.remove(path)


class Recovery(NamedTuple):
    """What is left of a folder's records after damaged files were set aside."""

    pieces: list[Piece]
    """Examples that need not be run again."""
    notes: list[str]
    """A sentence for each file that was set aside."""


def recover_records(folder: Path) -> Recovery:
    """Find what is recorded, delete leftovers of interrupted writes and set damaged files aside.

    Only for a run that has locked the folder. Records whose images are damaged are made again.

    Args:
        folder: Folder of the run.

    Returns:
        What need not be run again, and what was set aside.

    Raises:
        RecordError: A file is newer than this bench.
        SuiteError: A file cannot be renamed or deleted.
    """
    place = folder / "records"
    files.remove_partials(place)
    recorded: dict[str, list[Piece]] = {}
    notes = []
    without_images: set[str] = set()
    for path in sorted(place.glob("*")):
        try:
            if path.suffix == ".parquet":
                recorded.setdefault(files.strip_hash(path), []).extend(read_file_pieces(path))
            elif path.suffix in _IMAGE_SUFFIXES:
                read_tensors(path)
            elif path.suffix == _CERTIFICATES_SUFFIX:
                read_verified_bytes(path)
            elif path.name.endswith(".failed.json"):
                read_failure(path)
        except DamagedError as error:
            aside = files.set_aside(path)
            notes.append(f"{path}: {error.why}; set aside as {aside.name}, to be made again")
            if path.suffix in _IMAGE_SUFFIXES:
                without_images.add(files.strip_hash(path))
    complete = recorded.keys() - without_images
    for path in place.glob("*"):
        # Records that are made again may have other images, on another device or version: those
        # of the earlier attempt must not be read with them.
        stale = path.suffix in _IMAGE_SUFFIXES and files.strip_hash(path) not in complete
        if stale and files.strip_hash(path) != CLEAN:
            files.remove(path)
    pieces = [piece for name, some in recorded.items() if name in complete for piece in some]
    return Recovery(pieces, notes)
