"""Per-example records on disk: schema, append, load.

records/ holds one Parquet file for each shard of examples and stream of cells, written once under
a temporary name, synced and renamed, so that a file that is there is whole. Its name ends in its
own hash, so that damage is seen wherever it is. The file's metadata says which cells and which
examples it holds and what they cost. Beside the first shard lie a few
adversarial images for grids and cross-checks; beside a failed cell, its reason.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bench.errors import RecordError
from bench.files import write_whole

SCHEMA = 1
COLUMNS = (
    "suite", "model", "attack", "norm", "eps", "goal", "example", "label", "target", "clean_pred",
    "adv_pred", "adv_pred_8bit", "clean_correct", "fooled", "violation", "confidence", "linf", "l2",
    "l1", "l0", "forwards", "backwards", "first_success_step", "clean_confidence", "attacked",
    "cell", "part", "agreement", "distance",
)  # fmt: skip
_REPEATED = ("suite", "model", "attack", "norm", "goal", "violation", "cell", "part")


class Piece(NamedTuple):
    """The examples first..last-1 of one cell, and what they cost."""

    cell: str
    first: int
    last: int
    attacked: int
    seconds: float
    verify_seconds: float
    floor_seconds: float
    rows: int
    device: str
    busy_seconds: float = 0.0
    """As `seconds` and `floor_seconds`, in seconds that the processor worked for this process; 0 in
    a file written before they were kept."""
    busy_floor_seconds: float = 0.0


class Stored(NamedTuple):
    """All that a run's folder holds."""

    frame: pd.DataFrame
    """One row per example and cell, columns as COLUMNS, ordered by cell and example."""
    pieces: list[Piece]
    failures: dict[str, str]
    """Cell -> reason."""


def write(
    folder: Path,
    stem: str,
    frame: pd.DataFrame,
    pieces: Iterable[Piece],
    images: Mapping[str, Tensor],
) -> None:
    """Add one file of records, and of images where there are any; either is whole or absent.

    Raises: SuiteError if the disk is full or the folder cannot be written.
    """
    pieces = list(pieces)
    table = pa.Table.from_pandas(frame.loc[:, list(COLUMNS)], preserve_index=False)
    about = {"schema": SCHEMA, "pieces": [piece._asdict() for piece in pieces]}
    table = table.replace_schema_metadata({"bench": json.dumps(about)})
    sink = pa.BufferOutputStream()
    floats = [field.name for field in table.schema if pa.types.is_floating(field.type)]
    rest = [field.name for field in table.schema if field.name not in floats]
    pq.write_table(  # a quarter smaller than with the defaults, so that records can be committed
        table, sink, compression="zstd", compression_level=9,
        use_dictionary=rest, use_byte_stream_split=floats,
    )  # fmt: skip
    content = sink.getvalue().to_pybytes()
    name = f"{_slug(stem)}-{pieces[0].cell}-{pieces[0].first:07d}"
    if images:
        write_images(folder, name, images)
    write_whole(folder / "records" / f"{name}-{_hash(content)}.parquet", content)
    for piece in pieces:
        (folder / "records" / f"{piece.cell}.failed.json").unlink(missing_ok=True)


def write_images(folder: Path, name: str, images: Mapping[str, Tensor]) -> None:
    """Keep images (k, c, h, w) under their keys: a cell's identity, or the data's fingerprint.

    Raises: SuiteError if the disk is full or the folder cannot be written.
    """
    write_whole(folder / "records" / f"{name}.images", save(dict(images)))


def fail(folder: Path, cell: str, reason: str) -> None:
    """Note why a cell failed; the note goes once the cell has records."""
    text = json.dumps({"schema": SCHEMA, "cell": cell, "reason": reason})
    write_whole(folder / "records" / f"{cell}.failed.json", text.encode())


def pieces(folder: Path) -> list[Piece]:
    """What is done, from the files' metadata.

    Raises: RecordError naming a file that is damaged or newer than this bench.
    """
    found = []
    for path in sorted((folder / "records").glob("*.parquet")):
        found += _pieces(path, _content(path))
    return found


def load(folder: Path) -> Stored:
    """All records of a run's folder.

    Raises: RecordError naming a file that is damaged or newer than this bench.
    """
    found: dict[tuple[str, int], Piece] = {}
    tables = []
    for path in sorted((folder / "records").glob("*.parquet")):
        content = _content(path)
        for piece in _pieces(path, content):
            found[piece.cell, piece.first] = piece
        try:
            table = pq.read_table(pa.BufferReader(content), read_dictionary=list(_REPEATED))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error
        if "part" not in table.column_names:  # written before there were ensembles
            nothing = pa.DictionaryArray.from_arrays(pa.array([0] * len(table), pa.int32()), [""])
            table = table.append_column("part", nothing)
        if "agreement" not in table.column_names:  # written when every model was asked but once
            table = table.append_column("agreement", pa.array([1.0] * len(table), pa.float32()))
        if "distance" not in table.column_names:  # written when a search was read at each eps alone
            unknown = pa.array([float("nan")] * len(table), pa.float32())
            table = table.append_column("distance", unknown)
        tables.append(table.replace_schema_metadata(None))
    if tables:
        frame = pa.concat_tables(tables).unify_dictionaries().to_pandas()
        frame = frame.drop_duplicates(["cell", "example"]).sort_values(["cell", "example"])
    else:
        frame = pd.DataFrame({column: [] for column in COLUMNS})
    failures = {}
    for path in sorted((folder / "records").glob("*.failed.json")):
        try:
            note = json.loads(path.read_text(encoding="utf-8"))
            failures[note["cell"]] = note["reason"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
    return Stored(frame.reset_index(drop=True), list(found.values()), failures)


def images(folder: Path, keys: Iterable[str]) -> dict[str, Tensor]:
    """The images kept under any of the `keys`, (k, c, h, w) each.

    Raises: RecordError naming a file that is damaged.
    """
    wanted, found = set(keys), {}
    for path in sorted((folder / "records").glob("*.images")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in wanted & set(file.keys()):
                    found[key] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error
    return found


def forget(folder: Path) -> None:
    """Delete all records of a folder, for --fresh."""
    for path in (folder / "records").glob("*"):
        if path.suffix in (".parquet", ".images", ".certificates", ".json", ".partial"):
            path.unlink()


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _content(path: Path) -> bytes:
    """The bytes of a file of records, held against the hash in its name."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _damaged(path, error) from error
    named = re.search(r"-([0-9a-f]{16})$", path.stem)
    if named and named[1] != _hash(content):
        raise _damaged(path, "its hash is not the one in its name")
    return content


def _pieces(path: Path, content: bytes) -> list[Piece]:
    try:
        metadata = pq.read_schema(pa.BufferReader(content)).metadata or {}
        about: dict[str, Any] = json.loads(metadata[b"bench"])
        if about["schema"] <= SCHEMA:
            return [Piece(**piece) for piece in about["pieces"]]
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    raise RecordError(
        f"{path}: records of schema {about['schema']}, this bench reads up to {SCHEMA}; "
        "use the bench that wrote them"
    )


def _damaged(path: Path, why: object) -> RecordError:
    return RecordError(f"{path}: damaged records ({why}); delete it and run again")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "x"
