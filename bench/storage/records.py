"""Per-example records on disk: schema, append, load.

records/ holds one Parquet file for each shard of examples and stream of cells, written once under
a temporary name, synced and renamed, so that a file that is there is whole. Its name ends in its
own hash, so that damage is seen wherever it is: who reads is told, and the next run sets the file
aside and makes its records again. The file's metadata says which cells and which examples it holds
and what they cost. Beside the first shard lie a few adversarial images for grids and cross-checks;
beside a failed cell, its reason.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.torch import load as tensors
from safetensors.torch import save
from torch import Tensor

from bench.core import files, sanitize
from bench.core.errors import RecordError
from bench.core.files import write_atomic
from bench.storage import frame_builder, schema
from bench.storage.images import LazyImages

SCHEMA = 1
COLUMNS = (
    "suite", "model", "attack", "norm", "eps", "goal", "example", "label", "target", "clean_pred",
    "adv_pred", "adv_pred_8bit", "clean_correct", "fooled", "violation", "confidence", "linf", "l2",
    "l1", "l0", "forwards", "backwards", "first_success_step", "clean_confidence", "attacked",
    "cell", "part", "agreement", "distance",
)  # fmt: skip
IMAGES = ".images"
CLEAN = "clean"
"""Under which name the first clean images are kept."""
ADVERSARIAL = ".adversarial"
"""Of the files that hold every adversarial image, where they are kept
(`bench.storage.adversarial_images`)."""
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
    nonfinite_gradients: int = 0
    """As `measure.Cost`'s, and so the next; 0 in a file written before they were counted."""
    nonfinite_examples: int = 0


class Stored(NamedTuple):
    """All that a run's folder holds."""

    frame: pd.DataFrame
    """One row per example and cell, columns as COLUMNS, ordered by cell and example."""
    pieces: list[Piece]
    failures: dict[str, str]
    """Cell -> reason."""

    def places(self) -> dict[str, Any]:
        """Cell -> where its rows are, for `frame.iloc`: a slice, which copies nothing, where they
        follow each other as `load` gives them."""
        found = self.frame.groupby("cell", observed=True).indices
        return {
            str(cell): slice(at[0], at[-1] + 1) if at[-1] - at[0] + 1 == len(at) else at
            for cell, at in found.items()
        }


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
    name = name_of(stem, pieces)
    # What goes with the records comes first: a run that ends in between makes all of it again.
    if images:
        write_images(folder, name, images)
    for piece in pieces:
        clear(folder, piece.cell)
    write_atomic(folder / "records" / f"{name}-{files.short_hash(content)}.parquet", content)


def name_of(stem: str, pieces: Sequence[Piece]) -> str:
    """What the file of these pieces, and what lies beside it, is called before its hash."""
    return f"{_slug(stem)}-{pieces[0].cell}-{pieces[0].first:07d}"


def write_images(folder: Path, name: str, images: Mapping[str, Tensor]) -> None:
    """Keep images (k, c, h, w) under their keys: a cell's identity, or the data's fingerprint.

    Raises: SuiteError if the disk is full or the folder cannot be written.
    """
    content = save({key: each.detach().cpu().contiguous() for key, each in images.items()})
    write_atomic(folder / "records" / f"{name}-{files.short_hash(content)}{IMAGES}", content)


def fail(folder: Path, cell: str, reason: str) -> None:
    """Note why a cell failed; the note goes once the cell has records."""
    text = json.dumps({"schema": SCHEMA, "cell": cell, "reason": reason})
    write_atomic(folder / "records" / f"{cell}.failed.json", text.encode())


def clear(folder: Path, cell: str) -> None:
    """Forget why a cell failed, if it did."""
    files.remove(folder / "records" / f"{cell}.failed.json")


def pieces(folder: Path) -> list[Piece]:
    """What is done, from the files' metadata.

    Raises: RecordError naming a file that is damaged or newer than this bench.
    """
    paths = sorted((folder / "records").glob("*.parquet"))
    return [piece for path in paths for piece in pieces_of(path)]


def pieces_of(path: Path) -> list[Piece]:
    """What one file holds, from its metadata.

    Raises: RecordError if it is damaged or newer than this bench.
    """
    return _pieces(path, _content(path))


def read(path: Path) -> pd.DataFrame:
    """The rows of one file, columns as COLUMNS.

    Raises: RecordError if it is damaged or newer than this bench.
    """
    rows: pd.DataFrame = _table(path, pieces_of(path)).to_pandas()
    return rows


def load(folder: Path) -> Stored:
    """All records of a run's folder.

    Raises: RecordError naming a file that is damaged or newer than this bench.
    """
    held = {path: pieces_of(path) for path in sorted((folder / "records").glob("*.parquet"))}
    found = {(piece.cell, piece.first): piece for some in held.values() for piece in some}
    try:
        schema.check_places(list(found.values()))
    except ValueError as error:
        raise RecordError(f"{folder / 'records'} does not hold together: {error}") from error
    starts, n = {}, 0
    for key in sorted(found):
        starts[key] = n
        n += found[key].last - found[key].first
    rows = frame_builder.FrameBuilder(n)
    for path, some in held.items():
        rows.lay(_table(path, some), _stretches(some, starts))
    frame = rows.frame() if held else pd.DataFrame({column: [] for column in COLUMNS})
    return Stored(frame, list(found.values()), failures(folder))


def _table(path: Path, held: list[Piece]) -> pa.Table:
    """The rows of one file, columns as COLUMNS.

    Raises: RecordError if it is damaged.
    """
    try:
        table = pq.read_table(pa.BufferReader(_content(path)), read_dictionary=list(_REPEATED))
        return schema.typed(_upgraded(table), held, COLUMNS)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(path, error) from error


def _stretches(
    held: list[Piece], starts: Mapping[tuple[str, int], int]
) -> list[tuple[int, int, int]]:
    """Where the pieces of a file begin, there and among all rows, and how many rows they have."""
    sizes = [piece.last - piece.first for piece in held]
    begins = [sum(sizes[:at]) for at in range(len(held))]
    places = [starts[piece.cell, piece.first] for piece in held]
    return list(zip(begins, places, sizes, strict=True))


def failures(folder: Path) -> dict[str, str]:
    """Cell -> why it failed.

    Raises: RecordError naming a note that is damaged.
    """
    found: dict[str, str] = {}
    for path in sorted((folder / "records").glob("*.failed.json")):
        with contextlib.suppress(FileNotFoundError):  # a run beside this one has just succeeded
            cell, reason = _failure(path)
            found[cell] = reason
    return found


def images(folder: Path) -> LazyImages:
    """The images kept by cell, and the clean ones by the data's fingerprint, (k, c, h, w) each.

    Raises: RecordError naming a file that is damaged, now or when its images are looked at.
    """
    return LazyImages(sorted((folder / "records").glob(f"*{IMAGES}")), tensors_of)


def forget(folder: Path) -> None:
    """Delete all records of a folder, for --fresh.

    Raises: SuiteError if they cannot be deleted.
    """
    kinds = (
        ".parquet",
        IMAGES,
        ADVERSARIAL,
        ".certificates",
        ".json",
        files.PARTIAL,
        files.DAMAGED,
    )
    for path in (folder / "records").glob("*"):
        if path.suffix in kinds:
            files.remove(path)


class Recovered(NamedTuple):
    """What is left of a folder's records once what was damaged is set aside."""

    pieces: list[Piece]
    """What need not be run again."""
    notes: list[str]
    """A sentence for each file set aside."""


def recover(folder: Path) -> Recovered:
    """What is done, from the files' metadata; leftovers go, and damaged files are set aside.

    Only for a run that holds the folder. A shard whose images were damaged is not done.
    Raises: RecordError naming a file that is newer than this bench; SuiteError if a file cannot be
    renamed or deleted.
    """
    place = folder / "records"
    files.remove_partials(place)
    done: dict[str, list[Piece]] = {}
    notes = []
    spoilt: set[str] = set()
    for path in sorted(place.glob("*")):
        try:
            if path.suffix == ".parquet":
                done.setdefault(files.strip_hash(path), []).extend(_pieces(path, _content(path)))
            elif path.suffix in (IMAGES, ADVERSARIAL):
                tensors_of(path)
            elif path.suffix == ".certificates":
                _content(path)
            elif path.name.endswith(".failed.json"):
                _failure(path)
        except DamagedError as error:
            aside = files.set_aside(path)
            notes.append(f"{path}: {error.why}; set aside as {aside.name}, to be made again")
            spoilt.add(files.strip_hash(path) if path.suffix in (IMAGES, ADVERSARIAL) else "")
    whole = done.keys() - spoilt
    for path in place.glob("*"):
        # Images of a shard that is made again are those of another attempt, which on another
        # device or version are others: what is read later must belong to the records beside it.
        stale = path.suffix in (IMAGES, ADVERSARIAL) and files.strip_hash(path) not in whole
        if stale and files.strip_hash(path) != CLEAN:
            files.remove(path)
    left = [piece for shard, some in done.items() if shard in whole for piece in some]
    return Recovered(left, notes)


def _upgraded(table: pa.Table) -> pa.Table:
    """Records as they are written now, from those of an older bench."""
    n = len(table)
    if "part" not in table.column_names:  # written before there were ensembles
        table = table.append_column("part", pa.array([""] * n, pa.string()))
    if "agreement" not in table.column_names:  # written when every model was asked but once
        table = table.append_column("agreement", pa.array([1.0] * n, pa.float32()))
    if "distance" not in table.column_names:  # written when a search was read at each eps alone
        table = table.append_column("distance", pa.array([float("nan")] * n, pa.float32()))
    return table.replace_schema_metadata(None)


class DamagedError(RecordError):
    """A file of records is not what it was when it was written."""

    def __init__(self, path: Path, why: object) -> None:
        why = str(why)[:300]  # a library may repeat what the file holds, which may be long
        super().__init__(
            f"{path}: damaged records ({why}); bench run sets the file aside and makes it again"
        )
        self.why = f"damaged ({why})"


def _content(path: Path) -> bytes:
    """The bytes of a file of records, held against the hash in its name."""
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


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The images (k, c, h, w) in a file of them. Raises: RecordError if it is damaged."""
    try:
        found: dict[str, Tensor] = tensors(_content(path))
    except SafetensorError as error:
        raise DamagedError(path, error) from error
    for key, kept in found.items():
        if kept.ndim != 4 or not kept.is_floating_point():
            raise DamagedError(path, f"no images: {key[:40]!r} is {tuple(kept.shape)}")
    return found


def _failure(path: Path) -> tuple[str, str]:
    """The cell and the reason in a note of a failure."""
    try:
        note = sanitize.escape_nested(json.loads(_content(path)))
        return str(note["cell"]), str(note["reason"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(path, error) from error


def _pieces(path: Path, content: bytes) -> list[Piece]:
    try:
        held = pq.read_metadata(pa.BufferReader(content))
        schema.check_size(held)
        about: dict[str, Any] = json.loads((held.metadata or {})[b"bench"])
        if about["schema"] <= SCHEMA:
            found = [Piece(**piece) for piece in about["pieces"]]
            schema.check_pieces(found)
            return found
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(path, error) from error
    raise RecordError(
        f"{path}: records of schema {about['schema']}, this bench reads up to {SCHEMA}; "
        "use the bench that wrote them"
    )


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-").lower()[:60] or "x"
