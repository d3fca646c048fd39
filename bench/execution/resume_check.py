"""Comparison of models with records that a run's folder already contains.

An identity does not cover everything that a model's answers depend on: a file that its forward
reads, a library, a driver. Before a run is resumed, each model is asked again about the first clean
and adversarial images that have records, and must return what it returned then.
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
from bench.storage import reader, schema
from bench.storage.images import IMAGES_SUFFIX, read_tensors
from bench.suite import plan

CLEAN_IMAGES = 32
"""Most clean images that a model is asked about again."""
ADVERSARIAL_IMAGES = 64
"""Most adversarial images, from as many of its cells as possible."""
FILES = 8
"""Most files of records that are read for one model."""

RecordFile = tuple[Path, tuple[schema.Piece, ...]]
"""A file of records, and the pieces that it contains."""


class _Answers(NamedTuple):
    """Images and the recorded answers to them; every field has the axis n."""

    x: Tensor
    pred: Tensor
    confidence: Tensor
    name: Sequence[str]
    """Description of each image, for people."""


def select_files(tasks: Sequence[plan.AttackTask], out: Path) -> dict[str, tuple[RecordFile, ...]]:
    """Select the files of records that each model is compared with.

    Args:
        tasks: All tasks of the suite; other records of the folder are ignored.
        out: Folder of the run, without damaged files.

    Returns:
        Model -> at most FILES files with the earliest examples; no entry for a model that has none.
    """
    stored = [
        (path, tuple(reader.read_file_pieces(path)))
        for path in sorted((out / "records").glob("*.parquet"))
    ]
    selected = {}
    for model in dict.fromkeys(task.model for task in tasks):
        cells = _cells_of(tasks, model)
        own = [each for each in stored if any(piece.cell in cells for piece in each[1])]
        own.sort(key=lambda each: min(piece.first for piece in each[1]))
        if own:
            selected[model] = tuple(own[:FILES])
    return selected


def check_model(
    evaluator: Evaluator,
    label: str,
    tasks: Sequence[plan.AttackTask],
    record_files: Sequence[RecordFile],
    out: Path,
) -> Iterator[str]:
    """Compare the answers of a model with those in its records.

    Args:
        evaluator: Loaded suite.
        label: Label of the model.
        tasks: All tasks of the suite.
        record_files: As selected by `select_files`.
        out: Folder of the run.

    Yields:
        A sentence if the model could not be asked.

    Raises:
        SuiteError: The model answers otherwise than when its records were made.
    """
    cells = _cells_of(tasks, label)
    frames = {path: reader.read_file(path) for path, _ in record_files}
    try:
        _compare(evaluator, label, out, _read_clean(evaluator, label, *frames.values()))
        _compare(evaluator, label, out, _read_adversarial(evaluator, record_files, frames, cells))
    except (SuiteError, KeyboardInterrupt):
        raise
    except BaseException as error:  # user's code: each of its cells raises the same and reports it
        yield (
            f"{label} could not be asked about the examples that have records: {describe(error)}"
        )


def _cells_of(tasks: Sequence[plan.AttackTask], model: str) -> dict[str, plan.Cell]:
    """Identity -> cell, of one model."""
    return {cell.identity: cell for task in tasks for cell in task.cells if task.model == model}


def _compare(evaluator: Evaluator, label: str, out: Path, recorded: _Answers | None) -> None:
    """Raise a SuiteError if the model answers otherwise than recorded."""
    if recorded is None:
        return
    difference = consistency.first_difference(
        evaluator.models[label].model, recorded.x, evaluator.pool.judge_rows(label), *recorded[1:3]
    )
    if difference is not None:
        raise SuiteError(
            f"model '{label}' is not the one that the records in {out} were made with: "
            f"{recorded.name[difference.position]} was {difference.describe()}, so that its old "
            "and new numbers would be mixed; nothing is lost: undo what changed (a file that it "
            "reads, a library, its weights), run into another folder by --out, or make all records "
            "again by --fresh"
        )


def _read_clean(evaluator: Evaluator, label: str, *frames: pd.DataFrame) -> _Answers:
    """The first clean examples of a file of records, in the batch in which they were judged."""
    frame = frames[0]
    frame = frame[frame["cell"] == frame["cell"].iloc[0]].sort_values("example")
    start = int(frame["example"].iloc[0])
    # A model whose answers depend on the batch is asked in the batch of the clean pass.
    rows = frame[frame["example"] < start + max(CLEAN_IMAGES, evaluator.pool.judge_rows(label))]
    ids = rows["example"].tolist()
    return _Answers(
        evaluator.data.read(ids[0], ids[-1] + 1).to(evaluator.device),
        torch.tensor(rows["clean_pred"].to_numpy()),
        torch.tensor(rows["clean_confidence"].to_numpy()),
        [f"clean example {example}" for example in ids],
    )


def _read_adversarial(
    evaluator: Evaluator,
    record_files: Sequence[RecordFile],
    frames: Mapping[Path, pd.DataFrame],
    cells: Mapping[str, plan.Cell],
) -> _Answers | None:
    """Stored adversarial images, a few of every cell; None if there are none."""
    stored: list[Iterator[tuple[Tensor, Any, str]]] = []
    for path, pieces in record_files:
        stored_images = sorted(path.parent.glob(f"{files.strip_hash(path)}-*{IMAGES_SUFFIX}"))
        images = read_tensors(stored_images[0]) if stored_images else {}
        for piece in pieces:
            if piece.cell in cells and piece.cell in images:
                frame = frames[path]
                rows = frame[(frame["cell"] == piece.cell).to_numpy()].sort_values("example")
                stored.append(_iterate_judged(images[piece.cell], rows, cells[piece.cell]))
    # The first of each cell, then the second of each, ...
    turns = [each for turn in zip_longest(*stored) for each in turn if each is not None]
    chosen = turns[:ADVERSARIAL_IMAGES]
    if not chosen:
        return None
    return _Answers(
        torch.stack([image for image, _, _ in chosen]).to(evaluator.device),
        torch.tensor([int(row.adv_pred) for _, row, _ in chosen]),
        torch.tensor([float(row.confidence) for _, row, _ in chosen]),
        [name for _, _, name in chosen],
    )


def _iterate_judged(
    images: Tensor, rows: pd.DataFrame, cell: plan.Cell
) -> Iterator[tuple[Tensor, Any, str]]:
    """Images that were judged as they are stored, each with its record and its description."""
    record_rows: Iterable[Any] = rows.itertuples()
    for image, row in zip(images, record_rows, strict=False):
        # Of a minimum-norm attack that ended outside the ball the clean image was judged.
        judged = row.fooled if cell.budget == "minimum" else row.attacked
        if judged and not row.violation and not math.isnan(row.confidence):
            yield image, row, f"example {row.example} under {cell.attack} at eps {cell.eps_text}"
