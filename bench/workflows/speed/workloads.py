"""What is raced, read from workloads.toml: plain values, so that `bench speed --list` is quick."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge

from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator, parse_toml, read_text

FILE = Path(__file__).with_name("workloads.toml")
Variant = Literal[
    "first-success", "judged", "never", "nested", "plain", "plain-never", "bfloat16",
    "bfloat16-never",
]  # fmt: skip
"""How bench runs a work; contestants/ours.py says what each means."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Victim:
    """A model to be attacked."""

    name: str
    weights: str

    def __str__(self) -> str:
        return f"{self.name}, {self.weights} weights"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """One list of robust accuracies that every contestant is to bring, in linf, untargeted."""

    name: str
    title: str
    models: Sequence[Victim]
    """Raced one after the other, a table each."""
    data: str
    folder: str = ""
    """Of images inside the data folder; where it is not there, images are random."""
    limit: Annotated[int, Ge(1)]
    """Examples taken unless the caller says how many."""
    attack: str
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eps: Sequence[float | str]
    ours: Sequence[Variant]


def read(path: Path = FILE) -> tuple[Work, ...]:
    """All declared works, in the file's order.

    Raises: SuiteError with every mistake of the file.
    """
    check = Validator(path.name)
    raw = parse_toml(read_text(path, "works"), path.name)

    def work(entry: Any, key: str) -> Work | None:
        models = list(
            check.each(entry, "models", lambda each, at: check.fill(Victim, each, f"{key}.{at}"))
        )
        found: Work | None = check.fill(Work, {**entry, "models": models}, key)
        if found is not None:
            for index, eps in enumerate(found.eps):
                check.radius(eps, f"{key}.eps[{index}]")
        return found

    works = tuple(check.each(raw, "works", work))
    check.unique("works", [each.name for each in works])
    check.stop_if_wrong()
    return works


def chosen(names: Sequence[str], among: Sequence[Work]) -> tuple[Work, ...]:
    """The works called `names`, in that order; all of them if none is named.

    Raises: SuiteError for a name that no work has.
    """
    known = {work.name: work for work in among}
    for name in names:
        if name not in known:
            raise SuiteError(f"work '{name}' is unknown; {nearest(name, known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(among)
