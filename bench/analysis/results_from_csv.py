"""A run whose records were not kept, read back from the tables beside its provenance.json.

What only records can tell is missing: single examples, violations, images. Nothing is made up for
it: a frame that no file holds is empty, and an audit whose gaps were not written down is not told.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import (
    certified,
    crosscheck,
    explanations,
    min_norm,
    pairwise,
    references,
    results,
    tables,
)
from bench.core import sanitize
from bench.core.errors import RecordError, first_line
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.findings import Audit, Unchecked
from bench.evaluation.audit.symptoms import Sign
from bench.storage import manifest, spreadsheet
from bench.storage.reader import StoredRecords
from bench.storage.schema import COLUMNS

TEXTS = (
    "suite", "model", "dataset", "attack", "implementation", "norm", "goal", "status", "reason",
    "device", "eps_text", "target", "stop", "caveats", "threat_model", "source", "family", "varied",
    "precision", "parts", "cell",
)  # fmt: skip
"""Columns of table.csv that hold words, where there are none an empty one."""
COUNTS = (*tables.COUNTS, "samples", "predictions")
_LABELS = (
    "first", "second", "ours", "reference", "examples", "differ_ids", "seeds", "sentence", "note",
    "figure", "method", "name", "why",
)  # fmt: skip
"""Columns of the other tables that hold words, even where these look like numbers."""


def read_results_from_csv(folder: Path) -> results.RunResults:
    """The results in the tables of a run's folder.

    Raises: SuiteError if there is no run; RecordError if a table is damaged.
    """
    provenance, plan = manifest.read_manifest(folder)
    table = _typed(folder / "table.csv", _frame(folder, "table.csv"))
    models = list(dict.fromkeys(cell.model for cell in plan))
    return results.RunResults(
        provenance=provenance,
        plan=plan,
        stored=StoredRecords(pd.DataFrame({column: [] for column in COLUMNS}), [], {}),
        table=table,
        worst=_frame(folder, "worst.csv", tables.WORST_CASE_COLUMNS),
        searches=[],
        distances=_frame(folder, "distances.csv", min_norm.COLUMNS),
        comparisons=_frame(folder, "comparisons.csv", pairwise.COLUMNS),
        seeds=_frame(folder, "seeds.csv", pairwise.SEED_COLUMNS),
        crosschecks=_frame(folder, "crosscheck.csv", crosscheck.COLUMNS),
        explanations=explanations.read_explanations(folder, {cell.identity for cell in plan}),
        published=_frame(folder, "published.csv", references.COLUMNS),
        violations=pd.DataFrame(
            columns=["model", "attack", "norm", "eps", "example", "violation"], dtype=object
        ),
        audit=_audit(folder, models),
        certified=certified.CertifiedResults(
            table=_frame(folder, "certified.csv", certified.COLUMNS),
            contradictions=_frame(folder, "contradictions.csv", certified.CONTRADICTIONS),
        ),
    )


def cast_columns(table: pd.DataFrame) -> pd.DataFrame:
    """A table of cells with every column that `tables` declares, each of its type: words, counts
    that may be missing, or numbers. A column that an older bench did not have is empty."""
    wanted = [*tables.COLUMNS, *tables.EXTRA]
    more = [name for name in table.columns if name not in wanted]
    found = table.reindex(columns=[*wanted, *more])
    words = {name: found[name].astype(object).fillna("").astype(str) for name in TEXTS}
    counts = {name: found[name].astype("Int64") for name in COUNTS}
    rest = [name for name in wanted if name not in words and name not in counts]
    return found.assign(**words, **counts, **{name: found[name].astype(float) for name in rest})


def _typed(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    try:
        return cast_columns(table)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RecordError(
            f"{path}: damaged ({first_line(error)}); run bench report on the run again"
        ) from error


def _frame(folder: Path, name: str, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
    """A table as it was written, to the last bit; if it may be absent, empty with `columns`."""
    path = folder / name
    if columns is not None and not path.exists():
        return pd.DataFrame(columns=list(columns))
    try:
        found = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path}: damaged ({first_line(error)}); run bench report on the run again"
        ) from error
    found = found.rename(columns=sanitize.escape_controls).map(_text)
    numbers = [name for name in found.columns if name not in (*TEXTS, *_LABELS)]
    return found.assign(**{name: _numbers(found[name]) for name in numbers})


def _text(cell: str) -> str:
    return sanitize.escape_controls(spreadsheet.unguard_formula(cell))


def _numbers(column: "pd.Series[str]") -> "pd.Series[Any]":
    """Numbers, to the last bit, or yes and no, if there is nothing else; else the words."""
    there = [text for text in column if text]
    if there and {"True", "False"}.issuperset(there):
        return column.map({"True": True, "False": False})
    try:
        if len(there) == len(column):
            return pd.Series([int(text) for text in column], index=column.index, dtype="int64")
    except (ValueError, OverflowError):
        pass
    try:
        values = [float(text) if text else float("nan") for text in column]
    except ValueError:
        return column
    return pd.Series(values, index=column.index, dtype=float)


def _sign(row: Mapping[Hashable, Any]) -> Sign:
    return Sign(
        name=str(row["name"]),
        model=str(row["model"]),
        attack=str(row["attack"]),
        norm=str(row["norm"]),
        eps=float(row["eps"]),
        count=int(row["count"]),
        n=int(row["n"]),
        evidence=str(row["evidence"]),
        examples=tuple(map(int, str(row["examples"]).split())),
        threshold=str(row["threshold"]),
    )


def _audit(folder: Path, models: list[str]) -> Audit:
    """The signs of audit.csv and what unchecked.csv says was not looked for; without the second,
    nobody knows what was, and no model is told of."""
    found = _frame(folder, "audit.csv", symptoms.COLUMNS)
    unchecked = _frame(folder, "unchecked.csv", Unchecked._fields)
    try:
        told = [_sign(row) for row in found.to_dict("records") if row["name"] in symptoms.KINDS]
        missing = [Unchecked(*map(str, row)) for row in unchecked.itertuples(index=False)]
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise RecordError(
            f"{folder / 'audit.csv'}: damaged ({error!r:.300}); run bench report on the run again"
        ) from error
    return Audit(models if (folder / "unchecked.csv").exists() else [], told, missing)
