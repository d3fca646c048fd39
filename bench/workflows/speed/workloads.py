"""Read the workloads of `bench speed` from workloads.toml, without importing torch."""

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
    "bfloat16-never", "bfloat16-leads", "tf32-leads",
]  # fmt: skip
"""How bench runs a workload; see competitors/bench_engine.py."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetModel:
    """The model to be attacked."""

    name: str
    weights: str

    def __str__(self) -> str:
        return f"{self.name}, {self.weights} weights"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One attack on some models; every competitor computes robust accuracies (linf, untargeted)."""

    name: str
    title: str
    models: Sequence[TargetModel]
    """One race and one table each."""
    data: str
    folder: str = ""
    """Folder of images inside the data folder; without it, images are random."""
    limit: Annotated[int, Ge(1)]
    """Default number of examples."""
    attack: str
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    eps: Sequence[float | str]
    ours: Sequence[Variant]


def read_workloads(path: Path = FILE) -> tuple[Workload, ...]:
    """Read all workloads.

    Args:
        path: TOML file.

    Returns:
        Workloads in the file's order.

    Raises:
        SuiteError: The file is invalid; the message lists every mistake.
    """
    check = Validator(path.name)
    raw = parse_toml(read_text(path, "works"), path.name)

    def work(entry: Any, key: str) -> Workload | None:
        models = list(
            check.each(
                entry, "models", lambda each, at: check.fill(TargetModel, each, f"{key}.{at}")
            )
        )
        workload: Workload | None = check.fill(Workload, {**entry, "models": models}, key)
        if workload is not None:
            for index, eps in enumerate(workload.eps):
                check.radius(eps, f"{key}.eps[{index}]")
        return workload

    works = tuple(check.each(raw, "works", work))
    check.unique("works", [each.name for each in works])
    check.stop_if_wrong()
    return works


def select_workloads(names: Sequence[str], among: Sequence[Workload]) -> tuple[Workload, ...]:
    """Select workloads by name.

    Args:
        names: Names; empty: all.
        among: The workloads to select from.

    Returns:
        Workloads in the order of the names.

    Raises:
        SuiteError: A name is unknown.
    """
    known = {work.name: work for work in among}
    for name in names:
        if name not in known:
            raise SuiteError(f"work '{name}' is unknown; {nearest(name, known)}")
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(among)
