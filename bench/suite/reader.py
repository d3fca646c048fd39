"""A suite: which models meet which attacks on which data, read from TOML and checked as a whole.

Every mistake is found before anything runs, all of them at once, each one sentence with file, key,
what was expected, what was got and the nearest known name. What can only be known once a model is
built (its classes, its channels) is the planner's to skip.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge

from bench.core import registry
from bench.core.contracts.attack import Attack, Count
from bench.core.contracts.dataset import Dataset
from bench.core.contracts.model import Model
from bench.core.contracts.types import CertificationMethod, Goal, Norm, Precision, Stop, Sweep
from bench.core.errors import SuiteError, nearest
from bench.core.validation import Validator, text_of, toml
from bench.models.preflight.findings import FINDINGS
from bench.suite import catalog, references, thresholds
from bench.suite.schema import (
    TARGET_RULES,
    AttackEntry,
    Crosscheck,
    DataEntry,
    Eps,
    ModelEntry,
    Suite,
)

_NAME = re.compile(r"\w[\w.-]*")
_Seed = Annotated[int, Ge(0)]
MOST_SEEDS = 1000
"""Of one attack: every seed is an entry with cells of its own."""


# --------------------------------------------------- what the file holds where it is not a value


@dataclasses.dataclass
class _Attack:
    """An [[attacks]] table as written: eps as text, params not yet the attack's own; it stands for
    one entry, or for one per source model, per value of a parameter, per seed."""

    name: str
    norm: Norm
    eps: list[float | str]
    label: str | None = None
    goal: Goal = "untargeted"
    target: str | int | None = None
    stop: Stop | None = None
    precision: Precision | None = None
    samples: Count = 1
    batch_size: Count | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str | list[str] | None = None
    vary: dict[str, list[int | float]] = dataclasses.field(default_factory=dict)
    seeds: Count | list[_Seed] | None = None
    fail: list[str] = dataclasses.field(default_factory=list)
    """Thresholds of `bench check`, read by `thresholds`."""


@dataclasses.dataclass
class _Top:
    """The file's own keys; its sections are read one by one."""

    schema: Literal[1]
    name: str
    data: Any
    models: list[Any]
    attacks: list[Any]
    title: str = ""
    seed: int = 0
    stop: Stop = "first-success"
    sweep: Sweep = "independent"
    precision: Precision = "float32"
    crosschecks: list[Any] = dataclasses.field(default_factory=list)
    published: list[Any] = dataclasses.field(default_factory=list)
    gate: Any = None
    certify: bool | list[CertificationMethod] = False
    """Bounds beside the attacks: true for every method."""


@dataclasses.dataclass(frozen=True)
class _Inherited:
    """What an attack takes from the top of the file where it does not say it itself."""

    stop: Stop = "first-success"
    precision: Precision = "float32"


# ----------------------------------------------------------------------------------------- reading


def read_suite(name: str) -> Suite:
    """The suite of a path, or of a bare name looked up among the shipped ones.

    Raises: SuiteError with one sentence for each mistake in the file.
    """
    path = catalog.find_suite(name)
    return parse_suite(text_of(path, "a suite"), str(path), path.resolve().parent)


def parse_suite(text: str, where: str, base: Path) -> Suite:
    """The suite in `text`; `where` names it in messages, `base` is where file names start."""
    reader = _Reader(Validator(where), base)
    suite = reader.suite(toml(text, where), text)
    reader.check.stop_if_wrong()
    assert suite is not None
    return suite


def parse_attack(raw: dict[str, Any], where: str) -> AttackEntry:
    """One attack from the keys of an [[attacks]] table, outside any suite.

    Raises: SuiteError with one sentence for each mistake.
    """
    reader = _Reader(Validator(where), Path())
    entries = reader.attack(raw, "", _Inherited(), [])
    reader.check.stop_if_wrong()
    assert entries is not None
    if entries[0].attack.unavailable:
        raise SuiteError(entries[0].attack.unavailable)
    return entries[0]


class _Reader:
    """Reads the sections of one suite; what is wrong with them gathers in `check`."""

    def __init__(self, check: Validator, base: Path) -> None:
        self.check, self.base = check, base
        self.labels: list[str] = []
        """Labels of all attack entries, those with mistakes included."""

    def suite(self, raw: dict[str, Any], text: str) -> Suite | None:
        top = self.check.fill(_Top, raw, "")
        # Sections are checked even where the top is not right, so that one run tells everything.
        data = self.data(raw.get("data"))
        models = list(self.check.each(raw, "models", self.model))
        above = _Inherited(top.stop, top.precision) if top else _Inherited()
        known = [model.label for model in models]
        found = self.check.each(raw, "attacks", lambda e, key: self.attack(e, key, above, known))
        attacks = [entry for entries in found for entry in entries]
        self.check.unique("models", [m.label for m in models])
        self.check.unique("attacks", self.labels)
        labels = {a.label: a for a in attacks}
        crosschecks = list(
            self.check.each(raw, "crosschecks", lambda e, k: self.crosscheck(e, k, labels))
        )
        # Attacks and models with mistakes have labels too, and those are known.
        radii = {name: {e.value: e.text for e in labels[name].eps} if name in labels else {}
                 for name in self.labels}  # fmt: skip
        elsewhere = references.read_references(self.check, raw, _labels(raw.get("models")), radii)
        families = {entry.family: radii[entry.label] for entry in attacks}
        thresholds.read_thresholds(
            self.check, raw, _labels(raw.get("models")), {**radii, **families}
        )
        if attacks and all(entry.attack.unavailable for entry in attacks):
            for told in dict.fromkeys(entry.attack.unavailable for entry in attacks):
                self.check.say("attacks", told)
        for key, entries in (("models", models), ("attacks", attacks)):
            if not entries and not self.check.problems:
                self.check.say(key, f"expected at least one [[{key}]] entry, got none")
        if top is not None and not _NAME.fullmatch(top.name):
            self.check.say(
                "name",
                "expected letters, digits, '-', '_' and '.', since it names the run's folder, "
                f"got {top.name!r}",
            )
        if top is None or data is None:
            return None
        return Suite(
            name=top.name,
            title=top.title or top.name,
            seed=top.seed,
            stop=top.stop,
            sweep=top.sweep,
            data=data,
            models=tuple(models),
            attacks=tuple(attacks),
            crosschecks=tuple(crosschecks),
            published=elsewhere,
            certify=_methods(top.certify),
            base=self.base,
            text=text,
        )

    # --- sections

    def data(self, raw: Any) -> DataEntry | None:
        if raw is None:
            return None
        entry: DataEntry | None = self.check.fill(DataEntry, raw, "data")
        found = self.find("datasets", raw, "data")
        if isinstance(found, Dataset) or callable(found):
            load = found.load if isinstance(found, Dataset) else found
            given = {"split", "limit", "data_dir"}
            self.check.arguments(load, raw.get("params"), "data.params", given)
        elif found is not None:
            got = type(found).__name__
            self.check.say("data.name", f"expected a Dataset or a factory, got {got}")
        return entry

    def model(self, raw: Any, key: str) -> ModelEntry | None:
        entry: ModelEntry | None = self.check.fill(ModelEntry, raw, key)
        found = self.find("models", raw, key)
        if isinstance(found, Model) or callable(found):
            build = found.build if isinstance(found, Model) else found
            self.check.arguments(build, raw.get("params"), f"{key}.params", set())
        elif found is not None:
            got = type(found).__name__
            self.check.say(f"{key}.name", f"expected a Model or a factory, got {got}")
        for name in entry.allow if entry else ():
            if name not in FINDINGS:
                told = f"preflight finds nothing called '{name}'; {nearest(name, FINDINGS)}"
                self.check.say(f"{key}.allow", told)
        return entry and dataclasses.replace(entry, label=entry.label or entry.name)

    def attack(
        self, raw: Any, key: str, above: _Inherited, models: Sequence[str]
    ) -> list[AttackEntry] | None:
        """The entries that one [[attacks]] table stands for; `models` are labels to craft on."""
        entry = self.check.fill(_Attack, raw, key)
        found = self.find("attacks", raw, key)
        if not isinstance(raw, dict):
            return None
        label = str(raw.get("label", raw.get("name")))
        sources = self.sources(entry, key, models) if entry else [None]
        self.target(raw, key)
        if found is not None and not isinstance(found, Attack):
            self.check.say(f"{key}.name", f"expected a bench Attack, got {type(found).__name__}")
        if not isinstance(found, Attack):
            self.labels.append(label)
            return None
        variants = self.variants(entry, found, raw, key)
        seeds = self.seeds(entry, found, key)
        names = [
            label
            + (f" from {source}" if source is not None else "")
            + (f", {varied} {value:g}" if varied else "")
            + (f", seed {seed}" if seed is not None else "")
            for source in sources
            for varied, value, _ in variants
            for seed in seeds
        ]
        self.labels.extend(names)
        if entry is None:
            return None
        for what, value, known in (
            ("norm", entry.norm, found.norms),
            ("goal", entry.goal, found.goals),
        ):
            if value not in known:
                self.check.say(
                    f"{key}.{what}",
                    f"attack '{entry.name}' has no {what} '{value}'; it has {', '.join(known)}",
                )
        eps = tuple(self.radii(entry, key))
        if found.run is not None and entry.precision not in (None, "float32"):
            told = "expected float32: an attack with a loop of its own computes as the model does"
            self.check.say(f"{key}.precision", f"{told}, got {entry.precision}")
        if found.run is not None and entry.samples > 1:
            told = "expected 1: an attack with a loop of its own decides itself how often it looks"
            self.check.say(f"{key}.samples", f"{told}, got {entry.samples}")
        if any(params is None for _, _, params in variants):
            return None
        return [
            AttackEntry(
                name=entry.name,
                label=name,
                norm=entry.norm,
                eps=eps,
                goal=entry.goal,
                target=entry.target,
                params=params,
                attack=found,
                # An attack that stopped once its own model was fooled would hardly transfer.
                stop=entry.stop or (above.stop if source is None else "never"),
                precision=self.precision(entry, found, above),
                samples=entry.samples,
                batch_size=entry.batch_size,
                family=label,
                source=source,
                varied=varied,
                value=value if varied else None,
                seed=seed,
            )
            for name, (source, (varied, value, params), seed) in zip(
                names, itertools.product(sources, variants, seeds), strict=True
            )
        ]

    def precision(self, entry: _Attack, found: Attack, above: _Inherited) -> Precision:
        return "float32" if found.run is not None else entry.precision or above.precision

    def sources(self, entry: _Attack, key: str, models: Sequence[str]) -> list[str | None]:
        """The models to craft on, by label; "each" is every model of the suite."""
        if entry.source is None:
            return [None]
        if entry.source == "each":
            return list(models)
        wanted = [entry.source] if isinstance(entry.source, str) else entry.source
        for label in wanted:
            if label not in models:
                known = nearest(label, [*models, "each"])
                self.check.say(f"{key}.source", f"no model has the label '{label}'; {known}")
        if not wanted:
            self.check.say(f"{key}.source", "expected at least one model, got an empty list")
        return list(wanted)

    def variants(
        self, entry: _Attack | None, found: Attack, raw: dict[str, Any], key: str
    ) -> list[tuple[str, float, Any]]:
        """(varied parameter, its value, params) of each entry that the table stands for."""
        vary = entry.vary if entry else {}
        given = raw.get("params", {})
        if found.unavailable:  # only the library itself knows what it takes
            return [("", 0.0, found.params())]
        if not vary:
            return [("", 0.0, self.check.fill(found.params, given, f"{key}.params"))]
        if len(vary) > 1 or not all(vary.values()):
            told = "expected one parameter with a list of values"
            self.check.say(f"{key}.vary", f"{told}, got {vary}")
            return []
        ((name, values),) = vary.items()
        return [
            (name, value, self.check.fill(found.params, {**given, name: value}, f"{key}.vary"))
            for value in values
        ]

    def seeds(self, entry: _Attack | None, found: Attack, key: str) -> list[int | None]:
        """What the entries that the table stands for draw by; a number N means 0 to N - 1."""
        if entry is None or entry.seeds is None:
            return [None]
        if not found.stochastic:
            told = f"attack '{entry.name}' draws nothing at random, so seeds make no difference"
            self.check.say(f"{key}.seeds", told)
        if isinstance(entry.seeds, int) and entry.seeds > MOST_SEEDS:
            self.check.say(f"{key}.seeds", f"expected at most {MOST_SEEDS}, got {entry.seeds}")
            return [None]
        wanted = [*range(entry.seeds)] if isinstance(entry.seeds, int) else entry.seeds
        if not wanted or len(set(wanted)) < len(wanted):
            told = "expected how many seeds, or a list with each seed once"
            self.check.say(f"{key}.seeds", f"{told}, got {entry.seeds}")
        return [*dict.fromkeys(wanted)]

    def target(self, raw: dict[str, Any], key: str) -> None:
        goal, target = raw.get("goal", "untargeted"), raw.get("target")
        if goal == "untargeted" and target is not None:
            told = "expected goal = 'targeted' beside a target, got untargeted"
            self.check.say(f"{key}.target", told)
        if goal == "targeted" and target is None:
            rules = ", ".join(TARGET_RULES)
            told = f"expected one of {rules}, a class index or a class name, got nothing"
            self.check.say(f"{key}.target", told)

    def radii(self, entry: _Attack, key: str) -> Iterator[Eps]:
        if not entry.eps:
            self.check.say(f"{key}.eps", "expected at least one eps, got an empty list")
        seen: set[float] = set()
        for index, written in enumerate(entry.eps):
            at = f"{key}.eps[{index}]"
            value = self.check.radius(written, at)
            if value is None:
                continue
            most = 1.0 if entry.norm == "linf" else float("inf")
            if not 0 <= value <= most or value == float("inf"):
                bound = "in [0, 1]" if entry.norm == "linf" else "at least 0"
                self.check.say(at, f"expected an eps {bound} for {entry.norm}, got {written}")
            elif value in seen:
                self.check.say(at, f"expected each eps once, got {written} again")
            else:
                seen.add(value)
                yield Eps(value, written if isinstance(written, str) else f"{written:g}")

    def crosscheck(
        self, raw: Any, key: str, labels: Mapping[str, AttackEntry]
    ) -> Crosscheck | None:
        entry: Crosscheck | None = self.check.fill(Crosscheck, raw, key)
        if entry is None:
            return None
        sides = []
        for side in ("ours", "reference"):
            label = getattr(entry, side)
            if label in labels:
                sides.append(labels[label])
            elif label not in self.labels:
                known = nearest(label, self.labels)
                self.check.say(f"{key}.{side}", f"no attack has the label '{label}'; {known}")
        if len(sides) == 2:
            ours, reference = sides
            if (ours.norm, ours.goal, ours.target) != (
                reference.norm,
                reference.goal,
                reference.target,
            ):
                self.check.say(key, "expected the same norm, goal and target on both sides")
            elif ours.source != reference.source:
                self.check.say(key, "expected both sides crafted on the same source model")
            elif ours.eps and reference.eps and not _values(ours.eps) & _values(reference.eps):
                self.check.say(key, "expected an eps that both sides have, got none")
        return entry

    def find(self, kind: str, raw: Any, key: str) -> Any:
        """The thing that the table `raw` names; None, with the reason, if there is none."""
        name = raw.get("name") if isinstance(raw, dict) else None
        if not isinstance(name, str):
            return None
        try:
            return registry.find(kind, name, self.base)
        except SuiteError as error:
            for problem in error.problems:
                self.check.say(f"{key}.name", problem)
            return None


def _methods(certify: bool | list[CertificationMethod]) -> tuple[CertificationMethod, ...]:
    if isinstance(certify, bool):
        return get_args(CertificationMethod) if certify else ()
    return tuple(dict.fromkeys(certify))


def _labels(raw: Any) -> list[str]:
    """The labels in a list of tables as written."""
    tables = [each for each in raw if isinstance(each, dict)] if isinstance(raw, list) else []
    return [str(each.get("label") or each.get("name")) for each in tables]


def _values(eps: tuple[Eps, ...]) -> set[float]:
    return {each.value for each in eps}
