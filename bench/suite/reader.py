"""Read a suite from TOML and check it as a whole.

All mistakes are found before anything runs and reported together, each in one sentence with file,
key, what was expected, what was found and the nearest known name. Each table is a dataclass, whose
annotations pydantic checks. What depends on a built model, such as its number of classes, is
checked by the planner, which skips cells.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from bench.core.contracts.attack import Attack
from bench.core.contracts.dataset import Dataset
from bench.core.contracts.detector import Detector
from bench.core.contracts.model import Model
from bench.core.contracts.parameters import Count
from bench.core.contracts.types import Precision, Stop, Sweep
from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator, parse_toml, read_text
from bench.models.preflight.findings import FINDINGS
from bench.suite import (
    attack_tables,
    catalog,
    certificates,
    composer,
    query_budgets,
    references,
    skipped_certificates,
    thresholds,
    unions,
)
from bench.suite.attack_tables import ExpandedTable, SuiteDefaults
from bench.suite.checks import check_label, find_extension
from bench.suite.model_figures import collect_figures
from bench.suite.schema import AttackEntry, Crosscheck, DataEntry, Eps, ModelEntry, Suite

_NAME = re.compile(r"\w[\w.-]*")


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "expected letters, digits, '-', '_' and '.', since it names the run's folder"
        )
    return name


@dataclasses.dataclass
class SuiteTable:
    """The keys at the top of a suite; its sections are read one by one."""

    schema: Literal[1]
    name: Annotated[str, AfterValidator(_check_name)]
    data: Any
    models: list[Any]
    attacks: list[Any]
    title: str = ""
    seed: int = 0
    stop: Stop = "first-success"
    sweep: Sweep = "independent"
    precision: Precision = "float32"
    budgets: list[Count] = dataclasses.field(default_factory=list)
    crosschecks: list[Any] = dataclasses.field(default_factory=list)
    published: list[Any] = dataclasses.field(default_factory=list)
    unions: list[Any] = dataclasses.field(default_factory=list)
    gate: Any = None
    certify: Any = False
    """Read by `certificates`, as tables are."""
    skip_certified: bool = False
    """Whether certified examples are left out by every attack that certificates apply to."""
    corruption_baseline: str | None = None
    """Label of the model whose errors normalise the mean corruption error."""


def read_suite(name: str) -> Suite:
    """Read a suite file.

    Args:
        name: Path of the file, or bare name of a shipped suite.

    Returns:
        The checked suite.

    Raises:
        SuiteError: The file has mistakes; one sentence for each.
    """
    path = catalog.find_suite(name)
    return parse_suite(read_text(path, "a suite"), str(path), path.resolve().parent)


def parse_suite(text: str, where: str, base: Path) -> Suite:
    """Parse the text of a suite.

    Args:
        text: TOML.
        where: Name of the file, for messages.
        base: Folder that file names in the suite start from.

    Returns:
        The checked suite.

    Raises:
        SuiteError: The text has mistakes; one sentence for each.
    """
    if text.startswith(composer.OBJECTS_HEADER):
        raise SuiteError(
            f"{where}: expected a suite that names its models, got one that bench.benchmark made "
            "of Python objects; call bench.benchmark again with these objects"
        )
    check = Validator(where)
    suite = check_suite(check, parse_toml(text, where), text, base)
    check.stop_if_wrong()
    assert suite is not None
    return dataclasses.replace(suite, published=collect_figures(suite))


def parse_attack(
    raw: dict[str, Any], where: str, attack: Attack | None = None, has_source: bool = False
) -> AttackEntry:
    """Read one attack outside any suite.

    Args:
        raw: Keys of an [[attacks]] table.
        where: Name of the caller, for messages.
        attack: The attack itself; that of the table's name if None.
        has_source: Whether the caller sets a source.

    Returns:
        The attack's entry.

    Raises:
        SuiteError: The table has mistakes (one sentence for each), or the library is missing.
    """
    check = Validator(where)
    expanded = attack_tables.expand_table(
        check, raw, "", Path(), SuiteDefaults(), [], attack, has_source
    )
    check.stop_if_wrong()
    entry = expanded.entries[0]
    if entry.attack.unavailable:
        raise SuiteError(entry.attack.unavailable)
    return entry


def check_suite(check: Validator, raw: dict[str, Any], text: str, base: Path) -> Suite | None:
    """Check all tables of a suite.

    Sections are checked even where the top of the file has mistakes, so that one run reports all.

    Args:
        check: Collects the mistakes.
        raw: The file as read from TOML.
        text: Its text, which the suite keeps.
        base: Folder that file names in the suite start from.

    Returns:
        The suite; None after some of the mistakes.
    """
    top: SuiteTable | None = check.fill(SuiteTable, raw, "")
    query_budgets.check_numbers(check, top.budgets if top else [], "budgets")
    data = _read_data(check, raw.get("data"), base)
    models = list(check.each(raw, "models", lambda e, key: _read_model(check, e, key, base)))
    check.unique("models", [model.label for model in models])
    tables = _expand_attacks(check, raw, top, [model.label for model in models], base)
    attacks = [entry for table in tables for entry in table.entries]
    labels = [label for table in tables for label in table.labels]
    check.unique("attacks", labels)
    attack_tables.check_source_labels(check, attacks)
    by_label = {entry.label: entry for entry in attacks}
    crosschecks = tuple(
        check.each(
            raw, "crosschecks", lambda e, key: _read_crosscheck(check, e, key, by_label, labels)
        )
    )
    # Entries with mistakes may be named elsewhere all the same: they have labels, but no eps.
    radii = {
        label: {eps.value: eps.text for eps in by_label[label].eps} if label in by_label else {}
        for label in labels
    }
    model_labels = _labels(raw.get("models"))
    figures = references.read_references(check, raw, model_labels, radii)
    is_known = all(label in by_label for label in labels) and len(attacks) > 0
    attacked = [(entry.goal, entry.norm, eps.value) for entry in attacks for eps in entry.eps]
    together = unions.read_unions(check, raw, attacked if is_known else None)
    families = {entry.family: radii[entry.label] for entry in attacks}
    budgets = _list_budgets(attacks)
    limits = thresholds.read_thresholds(check, raw, model_labels, {**radii, **families}, budgets)
    if is_known and not any(entry.attack.unavailable for entry in attacks):
        _check_budgets_are_used(check, top, attacks, limits.covers_metric(query_budgets.METRIC))
    if attacks and all(entry.attack.unavailable for entry in attacks):
        for reason in dict.fromkeys(entry.attack.unavailable for entry in attacks):
            check.say("attacks", reason)
    for key, entries in (("models", models), ("attacks", attacks)):
        if not entries and not check.problems:
            check.say(key, f"expected at least one [[{key}]] entry, got none")
    certified = certificates.read_certificates(
        check,
        raw.get("certify", False),
        {(norm, eps) for _, norm, eps in attacked} if is_known else None,
    )
    attacks = skipped_certificates.resolve_skips(
        check, tables, certified, default=top is not None and top.skip_certified
    )
    if top is None or data is None:
        return None
    check_label(check, "corruption_baseline", "model", top.corruption_baseline, model_labels)
    if top.corruption_baseline and is_known and not any(e.norm == "corruption" for e in attacks):
        expected = 'expected an attack with norm = "corruption", whose errors it normalises'
        check.say("corruption_baseline", f"{expected}, got none; take the key out")
    return Suite(
        name=top.name,
        title=top.title or top.name,
        seed=top.seed,
        stop=top.stop,
        sweep=top.sweep,
        data=data,
        models=tuple(models),
        attacks=tuple(attacks),
        crosschecks=crosschecks,
        published=figures,
        unions=together,
        certify=certified,
        corruption_baseline=top.corruption_baseline or "",
        base=base,
        text=text,
    )


def _expand_attacks(
    check: Validator,
    raw: dict[str, Any],
    top: SuiteTable | None,
    models: Sequence[str],
    base: Path,
) -> list[ExpandedTable]:
    """Expand all [[attacks]] tables."""
    defaults = (
        SuiteDefaults(top.stop, top.precision, tuple(top.budgets)) if top else SuiteDefaults()
    )

    def expand(table: Any, key: str) -> ExpandedTable:
        return attack_tables.expand_table(check, table, key, base, defaults, models)

    return list(check.each(raw, "attacks", expand))


def _read_data(check: Validator, raw: Any, base: Path) -> DataEntry | None:
    """Read the [data] table."""
    if raw is None:
        return None
    entry: DataEntry | None = check.fill(DataEntry, raw, "data")
    extension = find_extension(check, "datasets", raw, "data", base)
    if isinstance(extension, Dataset) or callable(extension):
        load = extension.load if isinstance(extension, Dataset) else extension
        passed = {"split", "limit", "data_dir"}
        check.arguments(load, raw.get("params"), "data.params", passed)
    elif extension is not None:
        got = type(extension).__name__
        check.say("data.name", f"expected a Dataset or a factory, got {got}")
    return entry


def _read_model(check: Validator, raw: Any, key: str, base: Path) -> ModelEntry | None:
    """Read a [[models]] table."""
    table = dict(raw) if isinstance(raw, dict) else raw
    detector: Detector | None = None
    if isinstance(raw, dict) and "detector" in raw:
        detector = check.fill(Detector, table.pop("detector"), f"{key}.detector")
    entry: ModelEntry | None = check.fill(ModelEntry, table, key)
    if entry is not None and detector is not None:
        try:
            entry = dataclasses.replace(entry, detector=detector)
        except ValueError as error:  # fields that do not go together
            check.say(key, str(error))
    extension = find_extension(check, "models", raw, key, base)
    if isinstance(extension, Model) or callable(extension):
        build = extension.build if isinstance(extension, Model) else extension
        check.arguments(build, raw.get("params"), f"{key}.params", set())
    elif extension is not None:
        got = type(extension).__name__
        check.say(f"{key}.name", f"expected a Model or a factory, got {got}")
    for name in entry.allow if entry else ():
        if name not in FINDINGS:
            problem = f"preflight finds nothing called '{name}'; {nearest(name, FINDINGS)}"
            check.say(f"{key}.allow", problem)
    return entry and dataclasses.replace(entry, label=entry.label or entry.name)


def _read_crosscheck(
    check: Validator,
    raw: Any,
    key: str,
    attacks: Mapping[str, AttackEntry],
    labels: Sequence[str],
) -> Crosscheck | None:
    """Read a [[crosschecks]] table; `labels` include those of attacks with mistakes."""
    entry: Crosscheck | None = check.fill(Crosscheck, raw, key)
    if entry is None:
        return None
    check_label(check, f"{key}.ours", "attack", entry.ours, labels)
    check_label(check, f"{key}.reference", "attack", entry.reference, labels)
    if entry.ours not in attacks or entry.reference not in attacks:
        return entry
    ours, reference = attacks[entry.ours], attacks[entry.reference]
    if (ours.norm, ours.goal, ours.target) != (reference.norm, reference.goal, reference.target):
        check.say(key, "expected the same norm, goal and target on both sides")
    elif ours.source != reference.source:
        check.say(key, "expected both sides crafted on the same source model")
    elif ours.eps and reference.eps and not _values(ours.eps) & _values(reference.eps):
        check.say(key, "expected an eps that both sides have, got none")
    return entry


def _labels(raw: Any) -> list[str]:
    """Return the labels in a list of tables as written, those with mistakes included."""
    tables = [each for each in raw if isinstance(each, dict)] if isinstance(raw, list) else []
    return [str(each.get("label") or each.get("name")) for each in tables]


def _list_budgets(entries: Sequence[AttackEntry]) -> dict[str, list[int]]:
    """List the budgets of queries of each label and table: those set, else those of a search."""
    budgets: dict[str, list[int]] = {}
    for entry in entries:
        own = entry.budgets or query_budgets.list_recorded(
            (), entry.attack, entry.norm, entry.params
        )
        for name in {entry.label, entry.family}:
            budgets[name] = [*budgets.get(name, ()), *own]
    return budgets


def _check_budgets_are_used(
    check: Validator, top: SuiteTable | None, entries: Sequence[AttackEntry], gated: bool
) -> None:
    """Say where budgets of queries, or a threshold within them, apply to no attack."""
    found = "expected an attack in a norm that asks the model for scores or labels"
    if top and top.budgets and not any(entry.budgets for entry in entries):
        often = f"at least {min(top.budgets)} times and whose queries can be counted"
        check.say("budgets", f"{found} {often}, got none; take the key out")
    elif gated and not any(_list_budgets(entries).values()):
        check.say("gate", f"{query_budgets.METRIC}: {found} and has budgets, got none")


def _values(eps: tuple[Eps, ...]) -> set[float]:
    return {each.value for each in eps}
