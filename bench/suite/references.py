"""Read the [[published]] tables of a suite: reference figures, reported elsewhere.

They change no cell; reports show them beside the measured figures.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bench.core.validation import Validator
from bench.suite.checks import check_label, format_radius, read_radii

Figure = Literal[
    "robust_accuracy", "clean_accuracy", "attack_success_rate", "error_rate",
    "mean_confidence_fooled",
]  # fmt: skip
"""As in table.csv; error_rate = 1 - robust_accuracy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceFigure:
    """Values of one figure that a source reports for one attack on one model."""

    model: str
    """Label of the suite's model to compare with; its weights usually differ from the source's."""
    attack: str
    """Label of the suite's attack."""
    source: str
    figure: Figure
    eps: tuple[float, ...]
    values: tuple[float, ...]
    """Shares in [0, 1], one for each eps."""
    note: str


@dataclasses.dataclass
class ReferenceTable:
    """A [[published]] table as written."""

    model: str
    attack: str
    source: str
    eps: list[float | str]
    values: list[float]
    figure: Figure = "robust_accuracy"
    note: str = ""


def read_references(
    check: Validator,
    raw: dict[str, Any],
    models: Sequence[str],
    attacks: Mapping[str, Mapping[float, str]],
) -> tuple[ReferenceFigure, ...]:
    """Read all [[published]] tables.

    Args:
        check: Collects the mistakes.
        raw: The suite as read from TOML.
        models: Labels of the suite's models.
        attacks: Label of each attack -> its eps as a number -> as written; an attack with mistakes
            may have none.

    Returns:
        The figures of all tables that could be read.
    """
    figures = tuple(
        check.each(raw, "published", lambda e, key: _read_figure(check, e, key, models, attacks))
    )
    counts = Counter((each.source, each.model, each.attack, each.figure) for each in figures)
    for (source, model, attack, figure), count in counts.items():
        if count > 1:
            expected = f"expected one entry for {figure} of {model} under {attack} from '{source}'"
            check.say("published", f"{expected}, got {count}")
    return figures


def _read_figure(
    check: Validator,
    raw: Any,
    key: str,
    models: Sequence[str],
    attacks: Mapping[str, Mapping[float, str]],
) -> ReferenceFigure | None:
    """Read one table."""
    table: ReferenceTable | None = check.fill(ReferenceTable, raw, key)
    if table is None:
        return None
    check_label(check, f"{key}.model", "model", table.model, models)
    check_label(check, f"{key}.attack", "attack", table.attack, attacks)
    if len(table.eps) != len(table.values):
        got = f"{len(table.eps)} eps and {len(table.values)} values"
        check.say(f"{key}.values", f"expected a value for each eps, got {got}")
    for index, value in enumerate(table.values):
        if not 0 <= value <= 1:
            check.say(f"{key}.values[{index}]", f"expected a share in [0, 1], got {value:g}")
    eps = []
    known = attacks.get(table.attack, {})
    for at, written, value in read_radii(check, table.eps, f"{key}.eps"):
        if known and value not in known:
            expected = f"expected an eps that attack '{table.attack}' runs"
            got = format_radius(written)
            check.say(at, f"{expected} ({', '.join(known.values())}), got {got}")
        eps.append(value)
    fields = {**dataclasses.asdict(table), "eps": tuple(eps), "values": tuple(table.values)}
    return ReferenceFigure(**fields)
