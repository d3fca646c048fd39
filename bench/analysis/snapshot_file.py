"""Write and read a snapshot as JSON: the baseline that later runs are compared with, kept in git.

One line for each model, each attack on a model and each cell, so that a change of one cell changes
one line; only `provenance` depends on when and by what the file was made. A baseline may come from
elsewhere and is checked like any other data.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from bench.analysis.snapshot import CellSnapshot, Snapshot, unpack_outcomes
from bench.core import files
from bench.core.errors import RecordError, SuiteError
from bench.evaluation.metrics import Outcomes

SCHEMA = 1


def write_snapshot(snapshot: Snapshot, path: Path) -> None:
    """Write a baseline; the same run gives the same bytes.

    Args:
        snapshot: Of the run that is accepted.
        path: File to write.

    Raises:
        SuiteError: The file cannot be written.
    """
    files.write_atomic(path, format_snapshot(snapshot).encode())


def format_snapshot(snapshot: Snapshot) -> str:
    """Format a baseline as JSON.

    Args:
        snapshot: Of a run.

    Returns:
        A document with one line for each model, attack on a model, and cell.
    """
    fields = dataclasses.asdict(snapshot)
    for model in fields["models"]:
        del model["unchecked"]  # of the run at hand alone; a baseline lists what was found
    for cell in fields["cells"]:
        if not cell["robust_within"]:  # so that a baseline without budgets is as it always was
            del cell["robust_within"]
        if not cell["certified"]:  # likewise, without certified examples that were left out
            del cell["certified"]
    parts = []
    for key, value in fields.items():
        if key in ("models", "tasks", "cells"):
            lines = ",\n".join(f"  {_line(each)}" for each in value)
            parts.append(f' "{key}": [\n{lines}\n ]' if lines else f' "{key}": []')
        else:
            parts.append(f' "{key}": {_line(value)}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_snapshot(path: Path) -> Snapshot:
    """Read a baseline.

    Args:
        path: A file that `write_snapshot` wrote.

    Returns:
        The snapshot, checked for contradictions.

    Raises:
        SuiteError: There is no such file, or it cannot be read.
        RecordError: It is damaged or newer than this bench.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SuiteError(
            f"{path}: expected a baseline, found no such file; make one of a run that you accept "
            f"with bench baseline DIR -o {path}"
        ) from None
    except OSError as error:
        raise SuiteError(f"{path}: could not be read as a baseline ({error.strerror})") from error
    try:
        raw = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise _damaged(path, f"not valid JSON: {error}") from None
    schema = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise RecordError(
            f"{path}: schema {schema}, this bench reads up to {SCHEMA}; use the bench that wrote it"
        )
    try:
        snapshot = TypeAdapter(Snapshot).validate_json(content)
        _check(snapshot)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise _damaged(path, f"{where}: {first['msg'].lower()}") from None
    except ValueError as error:
        raise _damaged(path, str(error)) from None
    return snapshot


def _check(snapshot: Snapshot) -> None:
    """Raise ValueError if models, attacks and cells contradict each other."""
    n = snapshot.data.n
    clean = {}
    for model in snapshot.models:
        clean[model.model] = _unpack_counted(model.clean, model.clean_correct, n, model.model)
    for cell in snapshot.cells:
        name = f"{cell.model}, {cell.attack}, eps {cell.eps_text}"
        if cell.status != "ok":
            continue
        if cell.model not in clean:
            raise ValueError(f"{name}: no model of that name among models")
        robust = _unpack_counted(cell.robust, cell.robust_correct, n, name)
        if (robust & ~clean[cell.model]).any():
            raise ValueError(f"{name}: robust where the model is wrong without attack")
        _check_budgets(cell, robust, clean[cell.model], name)
        if cell.certified > cell.robust_correct:
            raise ValueError(
                f"{name}: {cell.certified} certified examples and {cell.robust_correct} robust ones"
            )
        if cell.violations > n:
            raise ValueError(f"{name}: {cell.violations} violations among {n} examples")
    _check_unique("models", (model.model for model in snapshot.models))
    _check_unique("tasks", ((task.model, task.attack) for task in snapshot.tasks))
    _check_unique("cells", ((cell.model, cell.attack, cell.eps) for cell in snapshot.cells))
    tasks = {(task.model, task.attack) for task in snapshot.tasks}
    for cell in snapshot.cells:
        if (cell.model, cell.attack) not in tasks:
            raise ValueError(f"{cell.model}, {cell.attack}: no such attack among tasks")


def _unpack_counted(text: str, k: int, n: int, name: str) -> Outcomes:
    """Unpack outcomes of n examples; raise ValueError unless k of them are True."""
    try:
        outcomes = unpack_outcomes(text, n)
    except ValueError as error:
        raise ValueError(f"{name}: outcomes: {error}") from None
    if int(outcomes.sum()) != k:
        raise ValueError(f"{name}: {int(outcomes.sum())} outcomes where {k} are counted")
    return outcomes


def _check_budgets(cell: CellSnapshot, robust: Outcomes, clean: Outcomes, name: str) -> None:
    """Raise ValueError unless no example that fell within a budget is robust within more."""
    before = clean
    for budget in sorted(cell.robust_within, key=lambda text: int(text)):
        try:
            within = unpack_outcomes(cell.robust_within[budget], len(robust))
        except ValueError as error:
            raise ValueError(f"{name}: outcomes within {budget} queries: {error}") from None
        if (within & ~before).any() or (robust & ~within).any():
            raise ValueError(f"{name}: robust within {budget} queries and not within fewer")
        before = within


def _check_unique(what: str, names: Iterable[Any]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{what}: {name} {count} times")


def _damaged(path: Path, why: str) -> RecordError:
    reason = " ".join(why.split())[:300]
    return RecordError(f"{path}: damaged baseline ({reason}); make it again with bench baseline")
