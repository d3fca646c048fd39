"""What `bench explain` found out about two cells: the experiments, the cause, and where they lie.

A run's folder keeps its explanations in explanations.json, one for each pair of cells, and its
report shows those whose cells are still in the plan.
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
from bench.evaluation.metrics import Paired

FILE, SCHEMA = "explanations.json", 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """One change of one side towards the other, and what both sides then break."""

    change: str
    """Empty: both sides as they are."""
    ours_robust: int
    reference_robust: int
    only_ours_broke: int
    only_reference_broke: int
    p_value: float
    """Of the exact paired test."""
    closes: bool
    """Whether the gap is closed, or the sides agreed from the start."""

    @property
    def gap(self) -> int:
        """Examples on which the two sides disagree."""
        return self.only_ours_broke + self.only_reference_broke


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why two attacks on one model disagree, as far as experiments tell."""

    model: str
    ours: str
    reference: str
    norm: str
    eps_text: str
    attacked: int
    """Examples that both attacked: those that the model gets right without attack."""
    only_ours: tuple[int, ...]
    """Ids of the examples that ours alone broke."""
    only_reference: tuple[int, ...]
    experiments: Annotated[tuple[Experiment, ...], MinLen(1)]
    """The sides as they are, then every change in the order of trying."""
    closed_by: tuple[str, ...]
    """The first change that closes the gap, or several that do so together; empty if none does."""
    cause: str
    """That in a sentence, and what was found beside it."""
    cells: tuple[str, str]
    """Identities of the two cells in the run; empty texts outside one."""

    @property
    def gap(self) -> str:
        """By how much the two disagree, in a sentence."""
        first = self.experiments[0]
        return (
            f"{self.ours} and {self.reference} disagree on {first.gap} of {self.attacked} attacked "
            f"examples of {self.model} at eps {self.eps_text} ({self.norm}): ours alone breaks "
            f"{first.only_ours_broke}, the reference alone {first.only_reference_broke}."
        )


def count_disagreements(test: Paired) -> int:
    """Examples on which two outcomes differ."""
    return test.only_first + test.only_second


def read_explanations(folder: Path, cells: Collection[str]) -> list[Explanation]:
    """The explanations kept in a run's folder, of pairs of the given cells.

    Raises: RecordError if the file is damaged or newer than this bench.
    """
    return [each for each in _all(folder) if set(each.cells) <= set(cells)]


def write_explanation(folder: Path, found: Explanation) -> None:
    """Put an explanation into a run's folder, in place of an earlier one of the same cells.

    Raises: SuiteError if the folder cannot be written.
    """
    others = [each for each in _all(folder) if each.cells != found.cells]
    told = [dataclasses.asdict(each) for each in (*others, found)]
    document = {"schema": SCHEMA, "explanations": told}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    write_atomic(folder / FILE, text.encode())


def _all(folder: Path) -> list[Explanation]:
    path = folder / FILE
    if not path.exists():
        return []
    try:
        document = sanitize.escape_nested(json.loads(path.read_text(encoding="utf-8")))
        if document["schema"] <= SCHEMA:
            return [_explanation(raw) for raw in document["explanations"]]
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise RecordError(f"{path}: damaged ({why}); delete it and explain again") from error
    raise RecordError(
        f"{path}: schema {document['schema']}, this bench reads up to {SCHEMA}; "
        "use the bench that wrote it"
    )


def _explanation(raw: Any) -> Explanation:
    """Raises: ValueError if it is none."""
    return TypeAdapter(Explanation).validate_json(json.dumps(raw), strict=True)
