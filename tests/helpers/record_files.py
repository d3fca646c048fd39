"""Record files for tests of storage."""

from pathlib import Path

import pandas as pd
import torch

from bench.storage import records, schema
from bench.storage.schema import Piece

NUMBERS = ("confidence", "linf", "l2", "l1", "l0", "forwards", "backwards", "clean_confidence")
FLAGS = ("clean_correct", "fooled", "attacked", "rejected_is_robust", "certified")


def frame(cell: str = "c", first: int = 0, n: int = 4) -> pd.DataFrame:
    columns: dict[str, object] = {"example": range(first, first + n)}
    for column in schema.COLUMNS[1:]:
        columns.setdefault(column, [7] * n)
    columns |= {name: [0.25 * i for i in range(n)] for name in ("eps", *NUMBERS)}
    columns |= {name: [i % 2 == 0 for i in range(n)] for name in FLAGS}
    columns["distance_within"] = [[0.5, 0.25 * i] for i in range(n)]
    columns |= {
        name: ["é, x"] * n for name in ("suite", "model", "attack", "norm", "goal", "parameters")
    }
    return pd.DataFrame({**columns, "violation": [""] * n, "cell": [cell] * n})


def piece(cell: str = "c", first: int = 0, n: int = 4) -> Piece:
    return Piece(cell, first, first + n, n, 1.5, 0.5, 1.0, 64, "cpu")


def written(folder: Path, cell: str = "c", first: int = 0) -> Path:
    images = {} if first else {cell: torch.rand(2, 1, 3, 3, generator=torch.Generator())}
    records.write_records(folder, "net-attack", frame(cell, first), [piece(cell, first)], images)
    return next((folder / "records").glob(f"*-{cell}-{first:07d}*.parquet"))


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    plain = found.astype({name: expected[name].dtype for name in expected})
    pd.testing.assert_frame_equal(plain[list(schema.COLUMNS)], expected[list(schema.COLUMNS)])
