"""Read a run without records from the tables beside its manifest.

Only records have single examples, violations and images, so these are empty. A frame without a
file is empty; without unchecked.csv it is unknown what the audit checked, so it lists no models.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.analysis import (
    certified,
    classes,
    columns,
    corruptions,
    crosscheck,
    min_norm,
    pairwise,
    queries,
    references,
    rejections,
    smoothed,
    stages,
    tables,
    unions,
)
from bench.analysis.results import RunResults
from bench.core import sanitize
from bench.core.errors import RecordError, first_line
from bench.evaluation.audit import symptoms
from bench.evaluation.audit.findings import Audit, UncheckedSymptom, find_unaudited
from bench.evaluation.audit.symptoms import ObservedSymptom
from bench.storage import manifest, spreadsheet
from bench.storage.reader import StoredRecords
from bench.storage.schema import COLUMNS

_TEXTS = (
    *columns.select_names("text"),
    "first", "second", "ours", "reference", "examples", "differ_ids", "seeds", "sentence", "note",
    "figure", "method", "name", "why", "label", "threats", "largest_eps", "absent", "broken_by",
    "broken_only_by", "class_name", "wrong_class_name", "radius_text", "part", "corruption",
    "baseline", "counted_as",
)  # fmt: skip
"""Columns of any table that contain text, even if it looks like a number."""


def read_results_from_csv(folder: Path) -> RunResults:
    """Read the results of a run from its tables.

    Args:
        folder: Folder of the run.

    Returns:
        The results; `stored` is empty, and with it `violations`, `searches` and `query_curves`.

    Raises:
        SuiteError: There is no run.
        RecordError: A table is damaged.
    """
    provenance, plan = manifest.read_manifest(folder)
    table = _cast_table(folder / "table.csv", _read_table(folder, "table.csv"))
    stored = StoredRecords(pd.DataFrame({column: [] for column in COLUMNS}), [], {})
    models = list(dict.fromkeys(cell.model for cell in plan))
    return RunResults(folder, provenance, plan, stored).replace(
        table=table,
        worst=_read_table(folder, "worst.csv", tables.WORST_CASE_COLUMNS),
        unions=_read_table(folder, "unions.csv", unions.COLUMNS),
        classes=_read_table(folder, "classes.csv", classes.COLUMNS),
        rejections=_read_table(folder, "rejections.csv", rejections.COLUMNS),
        searches=[],
        query_curves=[],
        queries=_read_table(folder, "queries.csv", queries.COLUMNS),
        distances=_read_table(folder, "distances.csv", min_norm.COLUMNS),
        comparisons=_read_table(folder, "comparisons.csv", pairwise.COLUMNS),
        seeds=_read_table(folder, "seeds.csv", pairwise.SEED_COLUMNS),
        stages=_read_table(folder, "stages.csv", stages.COLUMNS),
        crosschecks=_read_table(folder, "crosscheck.csv", crosscheck.COLUMNS),
        published=_read_table(folder, "published.csv", references.COLUMNS),
        audit=_read_audit(folder, models, table),
        corruptions=corruptions.CorruptionResults(
            errors=_read_table(folder, "corruptions.csv", corruptions.COLUMNS),
            means=_read_table(folder, "corruption_means.csv", corruptions.MEAN_COLUMNS),
        ),
        certified=certified.CertifiedResults(
            table=_read_table(folder, "certified.csv", certified.COLUMNS),
            contradictions=_read_table(folder, "contradictions.csv", certified.CONTRADICTIONS),
        ),
        smoothed=smoothed.SmoothedResults(
            table=_read_table(folder, "smoothing.csv", smoothed.COLUMNS),
            curve=_read_table(folder, "smoothing_curve.csv", smoothed.CURVE_COLUMNS),
            examples=pd.DataFrame(columns=list(smoothed.EXAMPLE_COLUMNS)),
        ),
    )


def cast_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns of table.csv that are missing, and cast all to their declared types.

    Args:
        table: A table of cells, possibly of an earlier version.

    Returns:
        The table with all columns of `bench.analysis.columns`, in their order, then any others.
        A text that is missing is empty.
    """
    wanted = [*tables.COLUMNS, *tables.ADDITIONAL_COLUMNS]
    more = [name for name in table.columns if name not in wanted]
    known = table.reindex(columns=[*wanted, *more])
    # Some columns are there only where a cell uses them.
    optional = tuple(each for each in columns.OPTIONAL if each.name in known)
    declared = (*columns.MAIN, *columns.ADDITIONAL, *optional)
    texts, counts, numbers = (
        columns.select_names(kind, declared) for kind in ("text", "count", "number")
    )
    return known.assign(
        **{name: known[name].astype(object).fillna("").astype(str) for name in texts},
        **{name: known[name].astype("Int64") for name in counts},
        **{name: known[name].astype(float) for name in numbers},
    )


def _cast_table(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    try:
        return cast_columns(table)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RecordError(
            f"{path}: damaged ({first_line(error)}); run bench report on the run again"
        ) from error


def _read_table(folder: Path, name: str, expected: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Read a table to the last bit; one that may be absent is then empty, columns `expected`."""
    path = folder / name
    if expected is not None and not path.exists():
        return pd.DataFrame(columns=list(expected))
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise RecordError(
            f"{path}: damaged ({first_line(error)}); run bench report on the run again"
        ) from error
    table = table.rename(columns=sanitize.escape_controls).map(_clean_text)
    numbers = [name for name in table.columns if name not in _TEXTS]
    return table.assign(**{name: _to_numbers(table[name]) for name in numbers})


def _clean_text(text: str) -> str:
    return sanitize.escape_controls(spreadsheet.unguard_formula(text))


def _to_numbers(column: "pd.Series[str]") -> "pd.Series[Any]":
    """Convert to bool, int or float, to the last bit, if every text allows it; else keep texts."""
    present = [text for text in column if text]
    if present and {"True", "False"}.issuperset(present):
        return column.map({"True": True, "False": False})
    try:
        if len(present) == len(column):
            return pd.Series([int(text) for text in column], index=column.index, dtype="int64")
    except (ValueError, OverflowError):
        pass
    try:
        values = [float(text) if text else float("nan") for text in column]
    except ValueError:
        return column
    return pd.Series(values, index=column.index, dtype=float)


def _to_symptom(row: Mapping[Hashable, Any]) -> ObservedSymptom:
    return ObservedSymptom(
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


def _read_audit(folder: Path, models: list[str], table: pd.DataFrame) -> Audit:
    """Read audit.csv, and what was not checked from unchecked.csv."""
    audit = _read_table(folder, "audit.csv", symptoms.COLUMNS)
    unchecked = _read_table(folder, "unchecked.csv", UncheckedSymptom._fields)
    try:
        observed = [
            _to_symptom(row) for row in audit.to_dict("records") if row["name"] in symptoms.SYMPTOMS
        ]
        missing = [UncheckedSymptom(*map(str, row)) for row in unchecked.itertuples(index=False)]
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise RecordError(
            f"{folder / 'audit.csv'}: damaged ({error!r:.300}); run bench report on the run again"
        ) from error
    known = models if (folder / "unchecked.csv").exists() else []
    return Audit(known, observed, missing, find_unaudited(table))
