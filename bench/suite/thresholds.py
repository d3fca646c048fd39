"""Define the thresholds of `bench check`, and read those that a suite sets.

A threshold is written METRIC:CHANGE, the change in the direction in which the metric gets worse:
`robust_accuracy:-1pp` (percentage points), `robust_accuracy:-5%` (of the value before),
`examples_per_second:-25%`, `violations:+0`. A larger change exceeds it, an equal one does not.

For each metric the first of these that sets a threshold applies: the command line, a table of
[[gate.cells]] (the last that matches), the `fail` of an [[attacks]] table, the `fail` of [gate],
DEFAULTS. `union_robust_accuracy`, `worst_class_robust_accuracy` and `query_robust_accuracy`, which
is the robust accuracy within each budget of queries, have no default: they are compared where a
threshold is set.
Thresholds are no part of what is measured, so they change no identity.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, NamedTuple

from annotated_types import Gt, Lt

from bench.core.contracts.parameters import Count
from bench.core.errors import nearest
from bench.core.validation import Validator
from bench.suite.checks import check_label

ALPHA = 0.01
"""Probability of a false alarm of a whole check."""
DEFAULTS = (
    "robust_accuracy:-1pp", "clean_accuracy:-0.5pp", "examples_per_second:-25%", "violations:+0",
    "audit:+0",
)  # fmt: skip
_NOUNS = {
    "model": "a model", "attack": "an attack", "eps": "an eps", "queries": "a number of queries"
}  # fmt: skip
_WRITTEN = re.compile(
    r"(?P<metric>[^:]+):(?P<sign>[+-])(?P<amount>\d+(\.\d+)?)(?P<unit>pp|%|)", re.ASCII
)


class Metric(NamedTuple):
    """A quantity that a check compares."""

    worse: str
    """Sign of a change for the worse."""
    units: tuple[str, ...]
    scope: tuple[str, ...]
    """What one verdict covers; a threshold for part of it is a mistake."""


METRICS = {
    "robust_accuracy": Metric("-", ("pp", "%"), ("model", "attack", "eps")),
    "clean_accuracy": Metric("-", ("pp", "%"), ("model",)),
    "union_robust_accuracy": Metric("-", ("pp", "%"), ("model",)),
    "worst_class_robust_accuracy": Metric("-", ("pp", "%"), ("model", "attack", "eps")),
    "query_robust_accuracy": Metric("-", ("pp", "%"), ("model", "attack", "eps", "queries")),
    "examples_per_second": Metric("-", ("%",), ("model",)),
    "violations": Metric("+", ("",), ("model", "attack")),
    "audit": Metric("+", ("",), ("model",)),
}


class Threshold(NamedTuple):
    """The largest change for the worse that passes."""

    metric: str
    amount: Fraction
    unit: str
    text: str

    def allowed(self, before: float | Fraction, n: int) -> Fraction:
        """Convert the threshold to the unit in which the metric is counted.

        Args:
            before: Value of the baseline: examples of a rate, the rate itself, or examples per
                second of a throughput.
            n: Number of examples; 1 for a rate.

        Returns:
            The largest change for the worse that passes, in the unit of `before`.
        """
        if self.unit == "pp":
            return self.amount / 100 * n
        if self.unit == "%":
            return self.amount / 100 * Fraction(before)
        return self.amount


class Scope(NamedTuple):
    """Cells that a threshold applies to; None matches everything."""

    model: str | None = None
    attack: str | None = None
    """Label of the attack, or of the table that several attacks stem from."""
    eps: float | None = None
    queries: int | None = None
    """Budget of queries."""


class Thresholds(NamedTuple):
    """All thresholds of a check."""

    rules: tuple[tuple[Scope, Threshold], ...]
    """A later rule overrides an earlier one."""
    alpha: float = ALPHA

    def covers(
        self,
        metric: str,
        model: str,
        attacks: Sequence[str] = (),
        eps: float = 0,
        queries: int | None = None,
    ) -> bool:
        """Return whether a verdict on a metric without a default has a threshold.

        Args:
            metric: A key of METRICS.
            model: Label of the model.
            attacks: Labels of the attack: its own and that of its table.
            eps: Radius.
            queries: Budget of queries; None for a metric without one.

        Returns:
            True if a rule matches.
        """
        return bool(self._list_matching(metric, model, attacks, eps, queries))

    def mentions(self, metric: str, model: str) -> bool:
        """Return whether a metric without a default has a threshold for any verdict on a model.

        Args:
            metric: A key of METRICS.
            model: Label of the model.

        Returns:
            True if a rule is for the model or for all models.
        """
        return any(
            threshold.metric == metric and scope.model in (None, model)
            for scope, threshold in self.rules
        )

    def covers_metric(self, metric: str) -> bool:
        """Return whether a metric without a default has any threshold.

        Args:
            metric: A key of METRICS.

        Returns:
            True if there is a rule.
        """
        return any(threshold.metric == metric for _, threshold in self.rules)

    def find(
        self,
        metric: str,
        model: str,
        attacks: Sequence[str] = (),
        eps: float = 0,
        queries: int | None = None,
    ) -> Threshold:
        """Find the threshold that applies to one verdict.

        Args:
            metric: A key of METRICS.
            model: Label of the model.
            attacks: Labels of the attack: its own and that of its table.
            eps: Radius.
            queries: Budget of queries; None for a metric without one.

        Returns:
            The last matching rule.

        Raises:
            IndexError: No rule matches, which `covers` tells of a metric without a default.
        """
        return self._list_matching(metric, model, attacks, eps, queries)[-1]

    def _list_matching(
        self, metric: str, model: str, attacks: Sequence[str], eps: float, queries: int | None
    ) -> list[Threshold]:
        return [
            threshold
            for scope, threshold in self.rules
            if threshold.metric == metric
            and scope.model in (None, model)
            and (scope.attack is None or scope.attack in attacks)
            and scope.eps in (None, eps)
            and scope.queries in (None, queries)
        ]


@dataclasses.dataclass
class GateTable:
    """The [gate] table of a suite."""

    fail: list[str] = dataclasses.field(default_factory=list)
    alpha: Annotated[float, Gt(0), Lt(1)] = ALPHA
    cells: list[Any] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class GateCellsTable:
    """A [[gate.cells]] table."""

    fail: list[str]
    model: str | None = None
    attack: str | None = None
    eps: float | str | None = None
    queries: Count | None = None


def parse_threshold(text: str) -> Threshold:
    """Parse a threshold.

    >>> parse_threshold("robust_accuracy:-1.5pp").allowed(before=900, n=1000)
    Fraction(15, 1)

    Args:
        text: METRIC:CHANGE.

    Returns:
        The threshold.

    Raises:
        ValueError: The text is no threshold.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected METRIC:CHANGE, such as {', '.join(DEFAULTS)}, got {text!r}")
    name, unit = match["metric"], match["unit"]
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; {nearest(name, METRICS)}")
    metric = METRICS[name]
    change = f"{match['sign']}{match['amount']}{unit}"
    if match["sign"] != metric.worse:
        way = "falling" if metric.worse == "-" else "rising"
        raise ValueError(f"{name} gets worse by {way}: expected '{metric.worse}', got '{change}'")
    if unit not in metric.units:
        expected = " or ".join(each or "a plain count" for each in metric.units)
        raise ValueError(f"{name} is given in {expected}, got '{change}'")
    return Threshold(name, Fraction(match["amount"]), unit, text.strip())


def read_thresholds(
    check: Validator,
    raw: Mapping[str, Any],
    models: Sequence[str],
    radii: Mapping[str, Mapping[float, str]],
    budgets: Mapping[str, Sequence[int]] | None = None,
) -> Thresholds:
    """Read the thresholds of a suite.

    Args:
        check: Collects the mistakes.
        raw: The suite as read from TOML.
        models: Labels of the suite's models.
        radii: Each label of an attack or of its table -> its eps as a number -> as written.
        budgets: Likewise -> its budgets of queries; None if no attack has any.

    Returns:
        DEFAULTS and the thresholds of the suite.
    """
    gate: GateTable = check.fill(GateTable, raw.get("gate", {}), "gate") or GateTable()
    rules = [(Scope(), parse_threshold(text)) for text in DEFAULTS]
    rules += _read_rules(check, gate.fail, "gate.fail", Scope())
    tables = raw.get("attacks")
    for index, table in enumerate(tables if isinstance(tables, list) else []):
        texts = table.get("fail") if isinstance(table, dict) else None
        if isinstance(texts, list):
            label = str(table.get("label", table.get("name")))
            rules += _read_rules(check, texts, f"attacks[{index}].fail", Scope(attack=label))
    for index, table in enumerate(gate.cells):
        key = f"gate.cells[{index}]"
        scope = _read_scope(check, table, key, models, radii, budgets or {})
        if scope is not None:
            rules += _read_rules(check, table["fail"], f"{key}.fail", scope)
    return Thresholds(tuple(rules), gate.alpha)


def override_thresholds(texts: Sequence[str], thresholds: Thresholds) -> Thresholds:
    """Add the thresholds of the command line, which override all others.

    Args:
        texts: Values of --fail.
        thresholds: Those of the suite.

    Returns:
        Both.

    Raises:
        SuiteError: Some texts are no thresholds; one sentence for each.
    """
    check = Validator("--fail")
    rules = tuple(_read_rules(check, texts, "", Scope()))
    check.stop_if_wrong()
    return thresholds._replace(rules=thresholds.rules + rules)


def _read_rules(
    check: Validator, texts: Sequence[Any], key: str, scope: Scope
) -> Iterator[tuple[Scope, Threshold]]:
    """Parse the thresholds of one `fail`."""
    seen: dict[str, str] = {}
    for text in texts:
        try:
            threshold = parse_threshold(str(text))
        except ValueError as error:
            check.say(key, str(error))
            continue
        covered = METRICS[threshold.metric].scope
        extra = [
            name
            for name, value in scope._asdict().items()
            if value is not None and name not in covered
        ]
        if extra:
            whole = " and ".join(covered)
            got = " and ".join(_NOUNS[name] for name in extra)
            check.say(key, f"{threshold.metric} has one verdict for a {whole}, got it for {got}")
            continue
        if threshold.metric in seen:
            both = f"{seen[threshold.metric]} and {threshold.text}"
            check.say(key, f"expected one threshold for {threshold.metric}, got {both}")
            continue
        seen[threshold.metric] = threshold.text
        yield scope, threshold


def _read_scope(
    check: Validator,
    raw: Any,
    key: str,
    models: Sequence[str],
    radii: Mapping[str, Mapping[float, str]],
    budgets: Mapping[str, Sequence[int]],
) -> Scope | None:
    """Read which cells a [[gate.cells]] table applies to; None after a mistake."""
    table: GateCellsTable | None = check.fill(GateCellsTable, raw, key)
    if table is None:
        return None
    n_problems = len(check.problems)
    check_label(check, f"{key}.model", "model", table.model, models)
    check_label(check, f"{key}.attack", "attack", table.attack, radii)
    eps = None if table.eps is None else check.radius(table.eps, f"{key}.eps")
    known = {
        value: text
        for attack, each in radii.items()
        if table.attack in (None, attack)
        for value, text in each.items()
    }
    if eps is not None and known and eps not in known:
        expected = f"expected an eps that is run ({', '.join(known.values())})"
        check.say(f"{key}.eps", f"{expected}, got {table.eps}")
    chosen = [
        budget
        for attack, each in budgets.items()
        if table.attack in (None, attack)
        for budget in each
    ]
    if table.queries is not None and table.queries not in chosen:
        among = f" ({', '.join(map(str, sorted(set(chosen))))})" if chosen else ", which has none"
        check.say(
            f"{key}.queries", f"expected one of the suite's budgets{among}, got {table.queries}"
        )
    if len(check.problems) > n_problems:
        return None
    return Scope(table.model, table.attack, eps, table.queries)
