"""Reduce a run to what a gate compares: its models, its attacks on them, its cells above eps 0.

Outcomes are one bit per example, in the order of their indices 0..n-1, the first in the highest
bit, in base64: 1,000 examples take 168 characters, whatever the outcomes.
"""

import base64
import binascii
import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from annotated_types import Ge
from pydantic import JsonValue

from bench.analysis.results import RunResults
from bench.core.errors import RecordError
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.suite.plan import Cell

_Strict: Any = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
_Count: TypeAlias = Annotated[int, Ge(0)]
_Number: TypeAlias = Annotated[float, Ge(0)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSnapshot:
    """The examples; the fingerprint covers all of them and their order."""

    __pydantic_config__ = _Strict
    name: str
    n: Annotated[int, Ge(1)]
    fingerprint: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineSnapshot:
    """The machine: throughput is compared on the same one only."""

    __pydantic_config__ = _Strict
    device: str
    processor: str
    threads: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSnapshot:
    """A model without attack."""

    __pydantic_config__ = _Strict
    model: str
    fingerprint: str
    clean_correct: _Count
    signs: list[str]
    """Names of the symptoms that its audit found."""
    clean: str
    """Packed: which examples it classifies correctly."""
    unchecked: tuple[str, ...] = dataclasses.field(default=(), compare=False)
    """Names of the symptoms that its audit did not check; unknown of a snapshot read from a file,
    which does not store them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackSnapshot:
    """An attack on a model, at all its eps."""

    __pydantic_config__ = _Strict
    model: str
    attack: str
    family: str
    settings: dict[str, JsonValue]
    """`plan.Cell.settings`."""
    floor_ratio: _Number | None
    """Processor time over that of a bare loop of the same passes, both summed over the finished
    cells; None if it was not measured."""
    seconds: _Number
    """Processor time."""
    clock_seconds: _Number
    """Wall-clock time: more, where other programs used the processor."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellSnapshot:
    """A model under an attack at one eps above 0."""

    __pydantic_config__ = _Strict
    model: str
    attack: str
    eps: _Number
    eps_text: str
    status: Literal["ok", "skipped", "failed", "missing"]
    reason: str
    robust_correct: _Count = 0
    violations: _Count = 0
    robust: str = ""
    """Packed: on which examples it is robust; empty unless the cell is ok."""
    robust_within: dict[str, str] = dataclasses.field(default_factory=dict)
    """Budget of queries -> packed: on which examples it is robust within as many; of untargeted
    attacks whose queries are known."""
    certified: _Count = 0
    """Examples that were certified and therefore not attacked."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A run, reduced to what later runs are compared with."""

    __pydantic_config__ = _Strict
    schema: Literal[1]
    suite: str
    seed: int
    data: DataSnapshot
    machine: MachineSnapshot
    provenance: dict[str, JsonValue]
    models: list[ModelSnapshot]
    tasks: list[AttackSnapshot]
    cells: list[CellSnapshot]


class ExampleClasses(NamedTuple):
    """The true classes of a run's examples; a snapshot does not store them."""

    labels: npt.NDArray[np.int64]
    """Of the examples 0..n-1, (n,)."""
    names: Sequence[str] | None
    """Name of each class; None if there are none."""


# ------------------------------------------------------------------------------------------ bits


def pack_outcomes(outcomes: Outcomes) -> str:
    """Pack outcomes into text.

    Args:
        outcomes: Those of the examples 0..n-1, bool (n,).

    Returns:
        One bit per example, in base64.

    >>> pack_outcomes(pd.Series([True, False, False, False, False, False, False, True, True]))
    'gYA='
    """
    return base64.b64encode(np.packbits(outcomes.to_numpy(dtype=bool)).tobytes()).decode("ascii")


def unpack_outcomes(text: str, n: int) -> Outcomes:
    """Unpack what `pack_outcomes` returned.

    Args:
        text: What it returned.
        n: Number of examples.

    Returns:
        Outcomes, bool (n,), indexed by example.

    Raises:
        ValueError: The text does not contain the outcomes of n examples.

    >>> unpack_outcomes("gYA=", 9).to_numpy().nonzero()[0].tolist()
    [0, 7, 8]
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"no base64: {error}") from error
    if len(raw) != (n + 7) // 8:
        raise ValueError(f"expected {(n + 7) // 8} bytes for {n} examples, got {len(raw)}")
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8)).astype(bool)
    if bits[n:].any():
        raise ValueError(f"expected {n} examples, got more")
    return pd.Series(bits[:n])


# --------------------------------------------------------------------------------- from a run


def take_snapshot(run: RunResults) -> Snapshot:
    """Reduce a run to a snapshot.

    Args:
        run: Results with records.

    Returns:
        The snapshot.

    Raises:
        RecordError: A finished cell does not contain each example once.
    """
    session = run.provenance["sessions"][-1]
    environment = session["environment"]
    data = run.provenance["data"]
    return Snapshot(
        schema=1,
        suite=run.provenance["suite"]["name"],
        seed=run.provenance["suite"]["seed"],
        data=DataSnapshot(name=data["name"], n=data["n"], fingerprint=data["fingerprint"]),
        machine=MachineSnapshot(
            device=environment["device"],
            processor=environment["device_name"] or environment["processor"],
            threads=environment["threads"],
        ),
        provenance={
            **{key: session[key] for key in ("command", "started", "finished")},
            **{key: environment[key] for key in ("packages", "git")},
        },
        models=_models(run),
        tasks=_tasks(run),
        cells=_cells(run),
    )


def collect_classes(run: RunResults) -> ExampleClasses | None:
    """Collect the classes of a run's examples from the records of one finished cell.

    Args:
        run: Results with records.

    Returns:
        The classes; None if no cell is finished.
    """
    done = run.table["cell"][run.table["status"] == "ok"]
    if done.empty:
        return None
    records = run.stored.frame[run.stored.frame["cell"] == done.iloc[0]]
    labels = records.sort_values("example")["label"].to_numpy(dtype=np.int64)
    return ExampleClasses(labels, run.provenance["data"].get("classes"))


def _select_outcomes(run: RunResults, cell: str, column: Outcomes) -> Outcomes:
    """Select the rows of one cell from a column of all records, in the order of the examples."""
    in_cell = run.stored.frame["cell"] == cell
    examples = run.stored.frame["example"][in_cell].to_numpy()
    n = run.provenance["data"]["n"]
    if not np.array_equal(examples, np.arange(n)):
        raise RecordError(
            f"cell {cell}: expected records of the examples 0 to {n - 1}, each once; "
            "run the suite again with --fresh"
        )
    return pd.Series(column[in_cell].to_numpy(dtype=bool))


def _models(run: RunResults) -> list[ModelSnapshot]:
    models = []
    for label, rows in run.table[run.table["status"] == "ok"].groupby("model", sort=False):
        correct = run.stored.frame["clean_correct"]
        clean = _select_outcomes(run, rows["cell"].iloc[0], correct)
        symptoms = {symptom.name for symptom in run.audit.symptoms if symptom.model == label}
        models.append(
            ModelSnapshot(
                model=str(label),
                fingerprint=run.provenance["models"][label]["fingerprint"],
                clean_correct=int(clean.sum()),
                signs=sorted(symptoms),
                clean=pack_outcomes(clean),
                unchecked=tuple(each.name for each in run.audit.unchecked if each.model == label),
            )
        )
    return models


def _tasks(run: RunResults) -> list[AttackSnapshot]:
    above = [cell for cell in run.plan if cell.eps > 0]
    done = set(run.table["cell"][run.table["status"] == "ok"])
    tasks = []
    for model, attack in dict.fromkeys((cell.model, cell.attack) for cell in above):
        cells = [cell for cell in above if (cell.model, cell.attack) == (model, attack)]
        own = {cell.identity for cell in cells} & done
        pieces = [piece for piece in run.stored.pieces if piece.cell in own]
        busy = sum(piece.busy_seconds for piece in pieces)
        floor = sum(piece.busy_floor_seconds for piece in pieces)
        tasks.append(
            AttackSnapshot(
                model=model,
                attack=attack,
                family=cells[0].family or attack,
                settings=dict(cells[0].settings),
                floor_ratio=round(busy / floor, 4) if floor else None,
                seconds=round(busy, 3),
                clock_seconds=round(sum(piece.seconds for piece in pieces), 3),
            )
        )
    return tasks


def _cells(run: RunResults) -> list[CellSnapshot]:
    robust = metrics.robust_examples(run.stored.frame)
    planned = {cell.identity: cell for cell in run.plan}
    cells = []
    for row in run.table[run.table["eps"] > 0].to_dict("records"):
        about = {name: row[name] for name in ("model", "attack", "eps", "eps_text", "status")}
        counted: dict[str, Any] = {}
        if row["status"] == "ok":
            counted = {name: int(row[name]) for name in ("robust_correct", "violations")}
            counted["robust"] = pack_outcomes(_select_outcomes(run, row["cell"], robust))
            count = row.get("certified")
            counted["certified"] = 0 if count is None or pd.isna(count) else int(count)
            counted["robust_within"] = _pack_budgets(run, planned[row["cell"]])
        cells.append(CellSnapshot(**about, reason=row["reason"], **counted))
    return cells


def _pack_budgets(run: RunResults, cell: Cell) -> dict[str, str]:
    """Pack the outcomes of a finished cell within each of its budgets."""
    records = run.stored.frame[run.stored.frame["cell"] == cell.identity].set_index("example")
    counted = cell.queries and not records["queries"][records["attacked"].astype(bool)].isna().any()
    if cell.goal != "untargeted" or not counted:
        return {}
    clean = records["clean_correct"].astype(bool)
    return {
        str(budget): pack_outcomes((clean & ~metrics.fooled_within(records, budget)).sort_index())
        for budget in cell.budgets
    }
