"""Ask each model again about examples whose records a folder holds already.

Whatever a cell's identity does not cover (a file that a forward reads, a library, a driver) may
change between a run and its resumption. What is stored is then another model's. So before a run
goes on, each model is asked about the first clean images and the first adversarial images that the
folder has records of, and must say of them what it said when the records were made.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from bench.core import files
from bench.core.errors import SuiteError, describe
from bench.evaluation import consistency
from bench.evaluation.evaluator import Evaluator
from bench.evaluation.stages import Stage, Watch
from bench.storage import schema
from bench.storage.images import SUFFIX as IMAGES_SUFFIX
from bench.storage.images import read_tensors
from bench.storage.reader import read_file, read_file_pieces
from bench.suite import plan

CLEAN_IMAGES = 32
"""Clean images that a model is asked about again, at most."""
ADVERSARIAL_IMAGES = 64
"""Adversarial images, likewise, from as many of its cells as possible."""
FILES = 8
"""Files of records that are read for one model, at most."""


class _Seen(NamedTuple):
    """Images and what was said of them; every field has the axis n."""

    x: Tensor
    pred: Tensor
    confidence: Tensor
    name: Sequence[str]
    """What each is, for people."""


def check_model(
    session: Evaluator, tasks: Sequence[plan.AttackTask], out: Path, watch: Watch
) -> Iterator[str]:
    """Compare the answers of every model now with those in the records of `out`.

    Args:
        session: Models and data, as loaded for this run.
        tasks: All that the suite asks for; other records of the folder are left alone.
        out: Folder of the run, which is held and whose damaged files were set aside.
        watch: Informed before each model is asked.

    Yields:
        A sentence for each model that could not be asked.

    Raises:
        SuiteError: A model answers otherwise than when its records were made.
    """
    held = [(path, read_file_pieces(path)) for path in sorted((out / "records").glob("*.parquet"))]
    for label, subject in session.subjects.items():
        cells = {
            cell.identity: cell for task in tasks for cell in task.cells if task.model == label
        }
        own = [each for each in held if any(piece.cell in cells for piece in each[1])]
        stage = Stage("resume", f"{label}, asked about examples that have records", label)
        if not own or subject.random or label in session.unfit or watch.enter(stage):
            continue
        own = sorted(own, key=lambda each: min(piece.first for piece in each[1]))[:FILES]
        frames = {path: read_file(path) for path, _ in own}
        try:
            _compare(session, label, out, _clean(session, label, *frames.values()))
            _compare(session, label, out, _adversarial(session, own, frames, cells))
        except (SuiteError, KeyboardInterrupt):
            raise
        except (
            BaseException
        ) as error:  # a stranger's model, whose cells meet that again and tell it
            yield (
                f"{label} could not be asked about the examples that have records: "
                f"{describe(error)}"
            )


def _compare(session: Evaluator, label: str, out: Path, seen: _Seen | None) -> None:
    """Raises: SuiteError if the model called `label` says something else now."""
    if seen is None:
        return
    found = consistency.first_difference(
        session.subjects[label].model, seen.x, session.judged_rows(label), *seen[1:3]
    )
    if found is not None:
        raise SuiteError(
            f"model '{label}' is not the one that the records in {out} were made with: "
            f"{seen.name[found.position]} was {found.words()}, so that its old and new "
            "numbers would be mixed; nothing is lost: undo what changed (a file that it reads, "
            "a library, its weights), run into another folder by --out, or make all records "
            "again by --fresh"
        )


def _clean(session: Evaluator, label: str, *frames: pd.DataFrame) -> _Seen:
    """The first clean examples of a file of records, in the batch in which they were judged."""
    frame = frames[0]
    frame = frame[frame["cell"] == frame["cell"].iloc[0]].sort_values("example")
    start = int(frame["example"].iloc[0])
    # A model that depends on its batch must be asked in the same: one pass, as the clean one is.
    rows = frame[frame["example"] < start + max(CLEAN_IMAGES, session.judged_rows(label))]
    ids = rows["example"].tolist()
    return _Seen(
        session.data.read(ids[0], ids[-1] + 1).to(session.device),
        torch.tensor(rows["clean_pred"].to_numpy()),
        torch.tensor(rows["clean_confidence"].to_numpy()),
        [f"clean example {example}" for example in ids],
    )


def _adversarial(
    session: Evaluator,
    own: Sequence[tuple[Path, list[schema.Piece]]],
    frames: Mapping[Path, pd.DataFrame],
    cells: Mapping[str, plan.Cell],
) -> _Seen | None:
    """Adversarial images that lie beside records, a few of every cell; None where none do."""
    stored: list[Iterator[tuple[Tensor, Any, str]]] = []
    for path, pieces in own:
        beside = sorted(path.parent.glob(f"{files.strip_hash(path)}-*{IMAGES_SUFFIX}"))
        images = read_tensors(beside[0]) if beside else {}
        for piece in pieces:
            if piece.cell in cells and piece.cell in images:
                frame = frames[path]
                rows = frame[(frame["cell"] == piece.cell).to_numpy()].sort_values("example")
                stored.append(_judged(images[piece.cell], rows, cells[piece.cell]))
    # One of each cell, then a second of each, ...
    turns = [each for turn in zip_longest(*stored) for each in turn if each is not None]
    chosen = turns[:ADVERSARIAL_IMAGES]
    if not chosen:
        return None
    return _Seen(
        torch.stack([image for image, _, _ in chosen]).to(session.device),
        torch.tensor([int(row.adv_pred) for _, row, _ in chosen]),
        torch.tensor([float(row.confidence) for _, row, _ in chosen]),
        [name for _, _, name in chosen],
    )


def _judged(
    images: Tensor, rows: pd.DataFrame, cell: plan.Cell
) -> Iterator[tuple[Tensor, Any, str]]:
    """Each image that was attacked and judged as it lies there, its record and its name."""
    told: Iterable[Any] = rows.itertuples()
    for image, row in zip(images, told, strict=False):
        # A search that ended outside the ball returned nothing, and the clean image was judged.
        judged = row.fooled if cell.budget == "minimum" else row.attacked
        if judged and not row.violation and not math.isnan(row.confidence):
            yield image, row, f"example {row.example} under {cell.attack} at eps {cell.eps_text}"
