"""What may get worse before a check turns red: thresholds, and where a suite sets them.

A threshold is written METRIC:CHANGE, the change in the direction in which the metric gets worse:
`robust_accuracy:-1pp` (percentage points), `robust_accuracy:-5%` (of what it was before),
`examples_per_second:-25%`, `violations:+0`. It is exceeded by more than that, never by just that.

For each metric the first of these that says something counts: the command line, a table of
[[gate.cells]] (the last that fits), the `fail` of an [[attacks]] table, the `fail` of [gate],
DEFAULTS. No threshold is part of what is measured, so none changes the identity of a cell.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

from annotated_types import Gt, Lt

from bench.core.errors import nearest
from bench.core.validation import Validator

ALPHA = 0.01
"""Chance of a false alarm that a whole check allows itself."""
DEFAULTS = (
    "robust_accuracy:-1pp", "clean_accuracy:-0.5pp", "examples_per_second:-25%", "violations:+0",
    "audit:+0",
)  # fmt: skip
_WRITTEN = re.compile(
    r"(?P<metric>[^:]+):(?P<sign>[+-])(?P<amount>\d+(\.\d+)?)(?P<unit>pp|%|)", re.ASCII
)


class Metric(NamedTuple):
    """One thing that a check watches."""

    worse: str
    """Sign of a change for the worse."""
    units: tuple[str, ...]
    place: tuple[str, ...]
    """What one verdict on it belongs to; a threshold for less than that makes no sense."""


METRICS = {
    "robust_accuracy": Metric("-", ("pp", "%"), ("model", "attack", "eps")),
    "clean_accuracy": Metric("-", ("pp", "%"), ("model",)),
    "examples_per_second": Metric("-", ("%",), ("model",)),
    "violations": Metric("+", ("",), ("model", "attack")),
    "audit": Metric("+", ("",), ("model",)),
}


class Threshold(NamedTuple):
    """How much worse a metric may become."""

    metric: str
    amount: Fraction
    unit: str
    text: str

    def allowed(self, before: float, n: int) -> Fraction:
        """The largest change for the worse that passes, in what the metric counts: of a rate the
        examples among `n`, of a throughput its own unit."""
        if self.unit == "pp":
            return self.amount / 100 * n
        if self.unit == "%":
            return self.amount / 100 * Fraction(before)
        return self.amount


class Scope(NamedTuple):
    """Cells that a threshold is for; None fits everything."""

    model: str | None = None
    attack: str | None = None
    """Label of the attack, or of the table that several attacks stem from."""
    eps: float | None = None


class Thresholds(NamedTuple):
    """All thresholds of a check."""

    rules: tuple[tuple[Scope, Threshold], ...]
    """A later rule overrides an earlier one."""
    alpha: float = ALPHA

    def of(self, metric: str, model: str, attacks: Sequence[str] = (), eps: float = 0) -> Threshold:
        """What holds for a metric there; `attacks` are the names that the attack goes by."""
        fitting = [
            threshold
            for place, threshold in self.rules
            if threshold.metric == metric
            and place.model in (None, model)
            and (place.attack is None or place.attack in attacks)
            and place.eps in (None, eps)
        ]
        return fitting[-1]


@dataclasses.dataclass
class _Gate:
    """The [gate] table of a suite."""

    fail: list[str] = dataclasses.field(default_factory=list)
    alpha: Annotated[float, Gt(0), Lt(1)] = ALPHA
    cells: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class _Cells:
    """One of [[gate.cells]]."""

    fail: list[str]
    model: str | None = None
    attack: str | None = None
    eps: float | str | None = None


def parse_threshold(text: str) -> Threshold:
    """The threshold written as `text`.

    Raises: ValueError if it is none.

    >>> parse_threshold("robust_accuracy:-1.5pp").allowed(before=900, n=1000)
    Fraction(15, 1)
    """
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"expected METRIC:CHANGE, such as {', '.join(DEFAULTS)}, got {text!r}")
    name, unit = found["metric"], found["unit"]
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    metric = METRICS[name]
    change = f"{found['sign']}{found['amount']}{unit}"
    if found["sign"] != metric.worse:
        way = "falling" if metric.worse == "-" else "rising"
        raise ValueError(f"{name} gets worse by {way}: expected '{metric.worse}', got '{change}'")
    if unit not in metric.units:
        wanted = " or ".join(each or "a plain count" for each in metric.units)
        raise ValueError(f"{name} is given in {wanted}, got '{change}'")
    return Threshold(name, Fraction(found["amount"]), unit, text.strip())


def read_thresholds(
    check: Validator,
    raw: Mapping[str, Any],
    models: Sequence[str],
    radii: Mapping[str, Mapping[float, str]],
) -> Thresholds:
    """The thresholds of a suite's tables `raw`; mistakes gather in `check`.

    `radii` holds, for each name that an attack goes by, its eps and how they are written.
    """
    gate: _Gate = check.fill(_Gate, raw.get("gate", {}), "gate") or _Gate()
    rules = [(Scope(), parse_threshold(text)) for text in DEFAULTS]
    rules += _rules(check, gate.fail, "gate.fail", Scope())
    tables = raw.get("attacks")
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        texts = table.get("fail") if isinstance(table, dict) else None
        if isinstance(texts, list):
            label = str(table.get("label", table.get("name")))
            place = Scope(attack=label)
            rules += _rules(check, texts, f"attacks[{index}].fail", place)
    for index, table in enumerate(gate.cells):
        key = f"gate.cells[{index}]"
        place_or_none = _place(check, table, key, models, radii)
        if place_or_none is not None:
            rules += _rules(check, table["fail"], f"{key}.fail", place_or_none)
    return Thresholds(tuple(rules), gate.alpha)


def override_thresholds(texts: Sequence[str], limits: Thresholds) -> Thresholds:
    """`limits` with those of the command line above them.

    Raises: SuiteError with one sentence for each mistake.
    """
    check = Validator("--fail")
    rules = tuple(_rules(check, texts, "", Scope()))
    check.stop_if_wrong()
    return limits._replace(rules=limits.rules + rules)


def _rules(
    check: Validator, texts: Sequence[Any], key: str, place: Scope
) -> Iterator[tuple[Scope, Threshold]]:
    for text in texts:
        try:
            threshold = parse_threshold(str(text))
        except ValueError as error:
            check.say(key, str(error))
            continue
        told = METRICS[threshold.metric].place
        extra = [
            name
            for name, value in place._asdict().items()
            if value is not None and name not in told
        ]
        if extra:
            whole = " and ".join(told)
            got = " and ".join(extra)
            check.say(key, f"{threshold.metric} has one verdict for a {whole}, got it for an {got}")
            continue
        yield place, threshold


def _place(
    check: Validator,
    raw: Any,
    key: str,
    models: Sequence[str],
    radii: Mapping[str, Mapping[float, str]],
) -> Scope | None:
    entry: _Cells | None = check.fill(_Cells, raw, key)
    if entry is None:
        return None
    before = len(check.problems)
    for what, label, known in (("model", entry.model, models), ("attack", entry.attack, radii)):
        if label is not None and label not in known:
            told = f"no {what} has the label '{label}'; {nearest(label, known)}"
            check.say(f"{key}.{what}", told)
    eps = None if entry.eps is None else check.radius(entry.eps, f"{key}.eps")
    run = {
        value: text
        for attack, each in radii.items()
        if entry.attack in (None, attack)
        for value, text in each.items()
    }
    if eps is not None and run and eps not in run:
        told = f"expected an eps that is run ({', '.join(run.values())}), got {entry.eps}"
        check.say(f"{key}.eps", told)
    return None if len(check.problems) > before else Scope(entry.model, entry.attack, eps)
