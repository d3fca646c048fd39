"""Store and read what `bench explain` found about pairs of cells: experiments and cause.

The file explanations.json in a run's folder contains one explanation per pair of cells; the report
shows those whose cells are in the plan.
"""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import TypeAdapter

from bench.core import sanitize
from bench.core.errors import RecordError
from bench.core.files import write_atomic
from bench.evaluation.metrics import McNemarTest

FILE, SCHEMA = "explanations.json", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One change of one attack towards the other, and what both then break."""

    change: str
    """What was changed; empty: nothing."""
    ours_robust: int
    reference_robust: int
    only_ours_broke: int
    only_reference_broke: int
    p_value: float
    """Of the exact paired test."""
    closes: bool
    """Whether the attacks agree after the change, or agreed from the start."""

    @property
    def gap(self) -> int:
        """Number of examples on which the two attacks disagree."""
        return self.only_ours_broke + self.only_reference_broke


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why two attacks on one model disagree, as far as experiments show."""

    model: str
    ours: str
    reference: str
    norm: str
    eps_text: str
    attacked: int
    """Number of examples that both attacked: those classified correctly without attack."""
    only_ours: tuple[int, ...]
    """Indices of the examples that only ours broke."""
    only_reference: tuple[int, ...]
    experiments: Annotated[tuple[Experiment, ...], MinLen(1)]
    """The unchanged attacks, then every change in the order of the experiments."""
    closed_by: tuple[str, ...]
    """The first change after which the attacks agree, or several together; empty if none."""
    cause: str
    """`closed_by` in a sentence, and further findings."""
    cells: tuple[str, str]
    """Identities of the two cells in the run; empty texts outside one."""

    @property
    def gap(self) -> str:
        """A sentence on how much the attacks disagree."""
        first = self.experiments[0]
        return (
            f"{self.ours} and {self.reference} disagree on {first.gap} of {self.attacked} attacked "
            f"examples of {self.model} at eps {self.eps_text} ({self.norm}): ours alone breaks "
            f"{first.only_ours_broke}, the reference alone {first.only_reference_broke}."
        )


def count_disagreements(test: McNemarTest) -> int:
    """Count the examples on which two outcomes differ.

    Args:
        test: A paired test of the two outcomes.

    Returns:
        Number of examples.
    """
    return test.only_first + test.only_second


def read_explanations(folder: Path, cells: Collection[str]) -> list[Explanation]:
    """Read the explanations in a run's folder.

    Args:
        folder: Folder of the run.
        cells: Identities of cells; a pair with another cell is ignored.

    Returns:
        One explanation per pair.

    Raises:
        RecordError: The file is damaged or newer than this bench.
    """
    return [each for each in _read_all(folder) if set(each.cells) <= set(cells)]


def write_explanation(folder: Path, explanation: Explanation) -> None:
    """Add an explanation to a run's folder; it replaces an earlier one of the same cells.

    Args:
        folder: Folder of the run.
        explanation: The explanation.

    Raises:
        SuiteError: The folder cannot be written.
        RecordError: The existing file is damaged or newer than this bench.
    """
    others = [each for each in _read_all(folder) if each.cells != explanation.cells]
    entries = [dataclasses.asdict(each) for each in (*others, explanation)]
    document = {"schema": SCHEMA, "explanations": entries}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(folder / FILE, text.encode())


def _read_all(folder: Path) -> list[Explanation]:
    path = folder / FILE
    if not path.exists():
        return []
    try:
        document = sanitize.escape_nested(json.loads(path.read_text(encoding="utf-8")))
        if document["schema"] <= SCHEMA:
            return [_parse(raw) for raw in document["explanations"]]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise RecordError(f"{path}: damaged ({why}); delete it and explain again") from error
    raise RecordError(
        f"{path}: schema {document['schema']}, this bench reads up to {SCHEMA}; "
        "use the bench that wrote it"
    )


def _parse(raw: Any) -> Explanation:
    """Check and convert one entry; raise ValueError if it is not valid."""
    return TypeAdapter(Explanation).validate_json(json.dumps(raw), strict=True)
