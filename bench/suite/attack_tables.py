"""Read the [[attacks]] tables of a suite: one table becomes one or several attack entries.

A table makes one entry for each combination of source model, value of a varied parameter and
seed.
"""

import dataclasses
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from annotated_types import Ge

from bench.core.contracts.adaptation import Adaptation
from bench.core.contracts.attack import Attack, ExternalAttack, IterativeAttack
from bench.core.contracts.input_transforms import InputTransforms
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import BALLS, Combination, Goal, Norm, Precision, Stop
from bench.core.optional import Unchecked
from bench.core.validation import Validator
from bench.engine.threats.registry import find_level_problem
from bench.suite import query_budgets, victim_queries
from bench.suite.adaptations import check_parts, is_user_loss, read_adaptation
from bench.suite.checks import check_label, find_extension, format_radius, read_radii
from bench.suite.labels import WORST_CASE
from bench.suite.schema import TARGET_RULES, AttackEntry, EnsembleEntry, Eps

MAX_SEEDS = 1000
"""Most seeds of one attack: each makes one more entry."""
_Seed = Annotated[int, Ge(0)]


@dataclasses.dataclass
class AttackTable:
    """An [[attacks]] table as written; `params` are checked against the attack later."""

    name: str
    norm: Norm
    eps: list[float | str]
    label: str | None = None
    goal: Goal = "untargeted"
    target: str | int | None = None
    stop: Stop | None = None
    precision: Precision | None = None
    samples: Count = 1
    transforms: dict[str, Any] | None = None
    """Fields of InputTransforms, checked as such."""
    batch_size: Count | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str | list[str] | dict[str, Any] | None = None
    """Labels, "each", or a `SourceTable`."""
    victim_queries: Any = None
    """Most queries of the judged model per example, or true, checked by `victim_queries`."""
    vary: dict[str, list[int | float | str]] = dataclasses.field(default_factory=dict)
    seeds: Count | list[_Seed] | None = None
    features: list[str] = dataclasses.field(default_factory=list)
    """Names of the modules whose outputs the user's loss gets."""
    backward: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Name of a module -> function whose gradient takes the place of the module's."""
    budgets: list[Count] | None = None
    skip_certified: bool | None = None
    """Whether certified examples are left out, resolved by `skipped_certificates`."""
    fail: list[str] = dataclasses.field(default_factory=list)
    """Thresholds of `bench check`, which `thresholds` reads."""


@dataclasses.dataclass
class SourceTable:
    """The `source` of an attack as a table: several models that are attacked as one."""

    models: list[str]
    combine: Combination = "logits"
    weights: list[Annotated[float, Ge(0)]] | None = None
    """Equal unless given."""
    label: str | None = None
    """Name in tables."""


class _Source(NamedTuple):
    """What an entry's examples are crafted on."""

    label: str
    ensemble: EnsembleEntry | None = None


@dataclasses.dataclass(frozen=True)
class SuiteDefaults:
    """Settings at the top of a suite, which hold where an attack does not set them."""

    stop: Stop = "first-success"
    precision: Precision = "float32"
    budgets: tuple[int, ...] = ()


class ExpandedTable(NamedTuple):
    """The entries of one [[attacks]] table."""

    labels: tuple[str, ...] = ()
    """Labels of all its entries, those of invalid entries included."""
    entries: tuple[AttackEntry, ...] = ()
    """Empty if the table has mistakes that leave no entry."""
    skip_certified: bool | None = None
    """As written in the table; None if it is not."""


class _Variant(NamedTuple):
    """One value of a varied parameter; `name` is empty where nothing is varied."""

    name: str
    value: float | str
    params: Any
    """The attack's params dataclass; None if they are invalid."""


class _CheckedTable(NamedTuple):
    """A table, and what was read of it beside its own types."""

    table: AttackTable
    attack: Attack
    family: str
    eps: tuple[Eps, ...]
    adaptation: Adaptation | None
    transforms: InputTransforms | None
    victim_queries: int


def expand_table(
    check: Validator,
    raw: Any,
    key: str,
    base: Path,
    defaults: SuiteDefaults,
    models: Sequence[str],
    given: Attack | None = None,
    has_source: bool = False,
) -> ExpandedTable:
    """Expand one [[attacks]] table into its entries.

    Args:
        check: Collects the mistakes.
        raw: The table as read from TOML.
        key: Its key in the file, such as "attacks[0]".
        base: Folder that file names start from.
        defaults: Settings of the suite.
        models: Labels of the models to craft on.
        given: The attack itself; that of the table's name if None.
        has_source: Whether the caller has a source that the table does not name.

    Returns:
        Labels and entries.
    """
    table: AttackTable | None = check.fill(AttackTable, raw, key)
    attack = given or find_extension(check, "attacks", raw, key, base)
    if not isinstance(raw, dict):
        return ExpandedTable()
    family = str(raw.get("label", raw.get("name")))
    sources = _read_sources(check, table, key, models) if table else [None]
    _check_target(check, raw, key)
    if not isinstance(attack, Attack):
        if attack is not None:
            _refuse_attack(check, attack, key)
        return ExpandedTable((family,))
    raw, loss = _separate_loss(raw)
    adaptation = read_adaptation(
        check, attack, loss, table.features if table else [], table.backward if table else {},
        key, base,
    )  # fmt: skip
    variants = _read_variants(check, table, attack, raw, key)
    if adaptation is not None and adaptation.loss is not None:  # so that it is shown everywhere
        variants = [_name_loss(variant, adaptation.loss.name) for variant in variants]
    seeds = _read_seeds(check, table, attack, key)
    if table is not None and table.label is not None and not family.strip():
        check.say(f"{key}.label", f"expected a name, got {family!r}")
    combinations = [*itertools.product(sources, variants, seeds)]
    labels = tuple(_label(family, *combination) for combination in combinations)
    if WORST_CASE in labels:
        expected = f"expected a label other than '{WORST_CASE}', which tables have in its place"
        check.say(f"{key}.label", f"{expected}, got '{WORST_CASE}'")
    if table is None:
        return ExpandedTable(labels)
    _check_capabilities(check, table, attack, key)
    transforms = _read_transforms(check, table, key)
    query_budgets.check_budgets(
        check,
        f"{key}.budgets",
        table.name,
        attack,
        table.norm,
        table.budgets,
        params=[variant.params for variant in variants],
        asks_other=sources != [None],
        samples=table.samples,
        batch_size=table.batch_size,
    )
    victim_budget = victim_queries.read_budget(
        check,
        f"{key}.victim_queries",
        table.victim_queries,
        table.name,
        attack,
        params=[variant.params for variant in variants],
        has_source=has_source or table.source is not None,
        stop=table.stop,
        precision=table.precision or defaults.precision,
    )
    eps = tuple(_read_eps(check, table, key))
    if any(variant.params is None for variant in variants):
        return ExpandedTable(labels)
    if adaptation is not None:
        if any(each and each.ensemble for each in sources):
            expected = "expected one model: a user's loss and gradients belong to a single one"
            check.say(f"{key}.source", f"{expected}, got several as one source")
        check_parts(check, attack, variants[0].params, table.norm, adaptation, key)
        if (table.precision or defaults.precision) == "bfloat16":
            expected = "expected float32 or tf32, since an adapted model is not accelerated"
            check.say(f"{key}.precision", f"{expected}, got bfloat16")
    checked = _CheckedTable(table, attack, family, eps, adaptation, transforms, victim_budget)
    entries = (
        _make_entry(checked, defaults, label, *combination)
        for label, combination in zip(labels, combinations, strict=True)
    )
    return ExpandedTable(labels, tuple(entries), table.skip_certified)


def _refuse_attack(check: Validator, found: object, key: str) -> None:
    """Say that what a table names is no attack of bench."""
    remedy = "; make it the `run` of a bench.Attack" if inspect.isfunction(found) else ""
    check.say(f"{key}.name", f"expected a bench Attack, got {type(found).__name__}{remedy}")


def _read_transforms(check: Validator, table: AttackTable, key: str) -> InputTransforms | None:
    """Read the input transformations that a table names."""
    if table.transforms is None:
        return None
    transforms: InputTransforms | None = check.fill(
        InputTransforms, table.transforms, f"{key}.transforms"
    )
    if transforms and "smallest" in table.transforms and not transforms.diversity:
        expected = "expected diversity above 0 beside it, since no image is reduced otherwise"
        check.say(f"{key}.transforms.smallest", f"{expected}, got none; take the key out")
    return transforms


def _make_entry(
    checked: _CheckedTable,
    defaults: SuiteDefaults,
    label: str,
    source: _Source | None,
    variant: _Variant,
    seed: int | None,
) -> AttackEntry:
    """Make one entry of a table: its attack on one source, with one variant and one seed."""
    table, attack = checked.table, checked.attack
    budgets: tuple[int, ...] = ()
    if source is None:
        budgets = query_budgets.choose_budgets(
            table.budgets, defaults.budgets, attack, table.norm, variant.params, table.batch_size
        )
    # Pages draw a curve over the numbers of a varied parameter; texts have no order.
    number = None if not variant.name or isinstance(variant.value, str) else variant.value
    return AttackEntry(
        name=table.name,
        label=label,
        norm=table.norm,
        eps=checked.eps,
        goal=table.goal,
        target=table.target,
        params=variant.params,
        attack=attack,
        # An attack that stopped once its own model was fooled would hardly transfer.
        stop=table.stop or (defaults.stop if source is None else "never"),
        precision="float32"
        if isinstance(attack, ExternalAttack)
        else table.precision or defaults.precision,
        samples=table.samples,
        adaptation=checked.adaptation,
        transforms=checked.transforms,
        batch_size=table.batch_size,
        family=checked.family,
        source=source.label if source else None,
        ensemble=source.ensemble if source else None,
        varied="" if number is None else variant.name,
        value=number,
        seed=seed,
        victim_queries=checked.victim_queries,
        budgets=budgets,
    )


def _separate_loss(raw: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Take a loss that is the user's function out of the params; None if it is not."""
    params = raw.get("params")
    if not isinstance(params, Mapping) or not is_user_loss(params.get("loss")):
        return raw, None
    others = {name: value for name, value in params.items() if name != "loss"}
    return {**raw, "params": others}, params["loss"]


def _name_loss(variant: _Variant, name: str) -> _Variant:
    """Set the loss of a variant's params to the name of the user's function."""
    if variant.params is None:
        return variant
    return variant._replace(params=dataclasses.replace(variant.params, loss=name))


def _label(family: str, source: _Source | None, variant: _Variant, seed: int | None) -> str:
    """Return the label of one entry, unique in its table."""
    return (
        family
        + (f" from {source.label}" if source is not None else "")
        + (f", {_describe_variant(variant)}" if variant.name else "")
        + (f", seed {seed}" if seed is not None else "")
    )


def _describe_variant(variant: _Variant) -> str:
    """Return parameter and number; a text says by itself which parameter it is of."""
    if isinstance(variant.value, str):
        return variant.value
    return f"{variant.name} {variant.value:g}"


def _check_capabilities(check: Validator, table: AttackTable, attack: Attack, key: str) -> None:
    """Check that the attack supports the norm, goal, precision and samples asked of it."""
    for what, value, known in (
        ("norm", table.norm, attack.norms),
        ("goal", table.goal, attack.goals),
    ):
        if value not in known:
            check.say(
                f"{key}.{what}",
                f"attack '{table.name}' has no {what} '{value}'; it has {', '.join(known)}",
            )
    follows = isinstance(attack, IterativeAttack) and attack.needs == "gradient"
    if table.transforms is not None and not follows:
        expected = "expected none: only iterative attacks that follow gradients have them"
        check.say(f"{key}.transforms", f"{expected}, got attack '{table.name}'")
    runs_once = isinstance(attack, ExternalAttack) and attack.budget == "fixed"
    if table.norm in attack.norms and table.norm not in BALLS and not runs_once:
        expected = "expected a function `run` and a fixed budget for a threat without a norm"
        check.say(f"{key}.norm", f"{expected}, got another kind of attack for {table.norm}")
    if not isinstance(attack, ExternalAttack):
        return
    if table.precision not in (None, "float32"):
        expected = "expected float32: an attack with a loop of its own computes as the model does"
        check.say(f"{key}.precision", f"{expected}, got {table.precision}")
    if table.samples > 1:
        expected = "expected 1: an attack with a loop of its own decides itself how often it looks"
        check.say(f"{key}.samples", f"{expected}, got {table.samples}")


def _read_sources(
    check: Validator, table: AttackTable, key: str, models: Sequence[str]
) -> list[_Source | None]:
    """Return what to craft on; "each" is every model of the suite."""
    if table.source is None:
        return [None]
    if table.source == "each":
        return [_Source(label) for label in models]
    if isinstance(table.source, dict):
        return [_read_ensemble(check, table.source, f"{key}.source", models)]
    labels = [table.source] if isinstance(table.source, str) else table.source
    for label in labels:
        check_label(check, f"{key}.source", "model", label, [*models, "each"])
    if not labels:
        check.say(f"{key}.source", "expected at least one model, got an empty list")
    return [_Source(label) for label in labels]


def _read_ensemble(
    check: Validator, raw: dict[str, Any], key: str, models: Sequence[str]
) -> _Source | None:
    """Read a source of several models; None after a mistake."""
    table: SourceTable | None = check.fill(SourceTable, raw, key)
    if table is None:
        return None
    for label in table.models:
        check_label(check, f"{key}.models", "model", label, models)
    if len(set(table.models)) < max(2, len(table.models)):
        expected = "expected at least two models, each once"
        check.say(f"{key}.models", f"{expected}, got {table.models}")
        return None
    weights = [1.0] * len(table.models) if table.weights is None else table.weights
    if len(weights) != len(table.models) or not 0 < sum(weights) < float("inf"):
        expected = "expected a weight for each model, with a sum above 0"
        check.say(f"{key}.weights", f"{expected}, got {table.weights}")
        return None
    total = sum(weights)
    written = "" if table.weights is None else f", weights {', '.join(f'{w:g}' for w in weights)}"
    combined = "" if table.combine == "logits" else f", {table.combine}"
    label = table.label or f"{' + '.join(table.models)}{combined}{written}"
    if label in models:
        check.say(f"{key}.label", f"expected a name that no model has, got '{label}'")
    ensemble = EnsembleEntry(
        models=tuple(table.models),
        combine=table.combine,
        weights=tuple(weight / total for weight in weights),
    )
    return _Source(label, ensemble)


def check_source_labels(check: Validator, entries: Sequence[AttackEntry]) -> None:
    """Check that no two sources of several models have one label.

    Tables name a source by its label, and it is built once for all attacks that name it.

    Args:
        check: Collects the mistakes.
        entries: All attacks of the suite.
    """
    first: dict[str, AttackEntry] = {}
    for entry in entries:
        if entry.source is None or entry.ensemble is None:
            continue
        known = first.setdefault(entry.source, entry)
        if known.ensemble != entry.ensemble:
            check.say(
                "attacks",
                f"expected a label for each source of several models, got '{entry.source}' for two "
                f"of attacks '{known.label}' and '{entry.label}'; set source.label",
            )


def _read_variants(
    check: Validator, table: AttackTable | None, attack: Attack, raw: dict[str, Any], key: str
) -> list[_Variant]:
    """Return the params of each variant of the table."""
    vary = table.vary if table else {}
    params = raw.get("params", {})
    if attack.params is Unchecked:  # only the library itself knows which parameters it takes
        return [_Variant("", 0.0, attack.params())]
    if not vary:
        return [_Variant("", 0.0, check.fill(attack.params, params, f"{key}.params"))]
    if len(vary) > 1 or not all(vary.values()):
        check.say(f"{key}.vary", f"expected one parameter with a list of values, got {vary}")
        return []
    ((name, values),) = vary.items()
    return [
        _Variant(name, value, check.fill(attack.params, {**params, name: value}, f"{key}.vary"))
        for value in values
    ]


def _read_seeds(
    check: Validator, table: AttackTable | None, attack: Attack, key: str
) -> list[int | None]:
    """Return the seed of each entry; a number N means 0 to N - 1, None the suite's seed."""
    if table is None or table.seeds is None:
        return [None]
    if not attack.stochastic:
        problem = f"attack '{table.name}' draws nothing at random, so seeds make no difference"
        check.say(f"{key}.seeds", problem)
    if isinstance(table.seeds, int) and table.seeds > MAX_SEEDS:
        check.say(f"{key}.seeds", f"expected at most {MAX_SEEDS}, got {table.seeds}")
        return [None]
    seeds = [*range(table.seeds)] if isinstance(table.seeds, int) else table.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        expected = "expected how many seeds, or a list with each seed once"
        check.say(f"{key}.seeds", f"{expected}, got {table.seeds}")
    return [*dict.fromkeys(seeds)]


def _check_target(check: Validator, raw: dict[str, Any], key: str) -> None:
    """Check that a target is set if and only if the goal is targeted."""
    goal, target = raw.get("goal", "untargeted"), raw.get("target")
    if goal == "untargeted" and target is not None:
        check.say(f"{key}.target", "expected goal = 'targeted' beside a target, got untargeted")
    if goal == "targeted" and target is None:
        rules = ", ".join(TARGET_RULES)
        expected = f"expected one of {rules}, a class index or a class name"
        check.say(f"{key}.target", f"{expected}, got nothing")


def _read_eps(check: Validator, table: AttackTable, key: str) -> Iterator[Eps]:
    """Yield the eps that are valid for the norm, each once."""
    for at, written, value in read_radii(check, table.eps, f"{key}.eps"):
        if problem := find_level_problem(table.norm, value):
            check.say(at, f"{problem}, got {written}")
        else:
            yield Eps(value, format_radius(written))
