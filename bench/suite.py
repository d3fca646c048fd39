"""A suite: which models meet which attacks on which data, read from TOML and checked as a whole.

Every mistake is found before anything runs, all of them at once, each one sentence with file, key,
what was expected, what was got and the nearest known name. What can only be known once a model is
built (its classes, its channels) is the planner's to skip.
"""

import dataclasses
import hashlib
import inspect
import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from bench import registry
from bench.contracts import Attack, Dataset, Goal, Model, Norm, Stop, Sweep
from bench.errors import SuiteError, nearest

_PACKAGE = Path(__file__).parent
SHIPPED = next(
    (folder for folder in (_PACKAGE / "suites", _PACKAGE.parent / "suites") if folder.is_dir()),
    _PACKAGE / "suites",
)
"""Inside the installed package the suites lie beside this file, in a checkout one folder above."""

_NAME = re.compile(r"\w[\w.-]*")
TARGETS = ("next", "complement", "random", "least-likely")


@dataclasses.dataclass(frozen=True)
class Eps:
    """A radius as a number and as the suite wrote it ("8/255")."""

    value: float
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataEntry:
    name: str
    split: str = "test"
    limit: int | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelEntry:
    name: str
    label: str
    weights: str | None = None
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttackEntry:
    name: str
    label: str
    norm: Norm
    eps: tuple[Eps, ...]
    goal: Goal
    target: str | int | None
    params: Any
    """The attack's params dataclass, defaults written out."""
    attack: Attack
    stop: Stop
    batch_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Crosscheck:
    ours: str
    reference: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A checked suite; `base` is the folder that file names in it start from."""

    name: str
    title: str
    seed: int
    stop: Stop
    sweep: Sweep
    data: DataEntry
    models: tuple[ModelEntry, ...]
    attacks: tuple[AttackEntry, ...]
    crosschecks: tuple[Crosscheck, ...]
    base: Path
    text: str
    """The TOML as read; kept with the run, so that a report needs nothing else."""


# --------------------------------------------------------------- the shape of the file, key by key


@dataclasses.dataclass
class _Data:
    name: str
    split: str = "test"
    limit: int | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Model:
    name: str
    label: str | None = None
    weights: str | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Attack:
    name: str
    norm: Norm
    eps: list[float | str]
    label: str | None = None
    goal: Goal = "untargeted"
    target: str | int | None = None
    stop: Stop | None = None
    batch_size: int | None = None
    params: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Top:
    schema: Literal[1]
    name: str
    data: Any
    models: list[Any]
    attacks: list[Any]
    title: str = ""
    seed: int = 0
    stop: Stop = "first-success"
    sweep: Sweep = "independent"
    crosschecks: list[Any] = dataclasses.field(default_factory=list)


# ----------------------------------------------------------------------------------------- reading


def shipped() -> list[str]:
    """Names of the suites that travel with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def read(name: str) -> Suite:
    """The suite of a path, or of a bare name looked up among the shipped ones.

    Raises: SuiteError with one sentence for each mistake in the file.
    """
    path = Path(name)
    if not path.is_file() and path.name == name and name in shipped():
        path = SHIPPED / f"{name}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SuiteError(
            f"suite '{name}' is neither a file nor shipped; {nearest(name, shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{name}: could not be read as a suite: {error}") from error
    return parse(text, str(path), path.resolve().parent)


def parse(text: str, where: str, base: Path) -> Suite:
    """The suite in `text`; `where` names it in messages, `base` is where file names start."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{where}: not valid TOML: {error}") from error
    check = _Checker(where, base)
    suite = check.suite(raw, text)
    if check.problems:
        raise SuiteError(*check.problems)
    assert suite is not None
    return suite


def attack_entry(raw: dict[str, Any], where: str) -> AttackEntry:
    """One attack from the keys of an [[attacks]] table, outside any suite.

    Raises: SuiteError with one sentence for each mistake.
    """
    check = _Checker(where, Path())
    entry = check.attack(raw, "", "first-success")
    if check.problems or entry is None:
        raise SuiteError(*check.problems)
    return entry


class _Checker:
    """Reads one file and gathers what is wrong with it."""

    def __init__(self, where: str, base: Path) -> None:
        self.where, self.base = where, base
        self.problems: list[str] = []
        self.labels: set[str] = set()
        """Labels of all attack entries, those with mistakes included."""

    def suite(self, raw: dict[str, Any], text: str) -> Suite | None:
        top = self.fill(_Top, raw, "")
        # Sections are checked even where the top is not right, so that one run tells everything.
        data = self.data(raw.get("data"))
        models = list(self.each(raw, "models", self.model))
        stop: Stop = top.stop if top else "first-success"
        attacks = list(self.each(raw, "attacks", lambda entry, key: self.attack(entry, key, stop)))
        self.unique("models", [m.label for m in models])
        self.unique("attacks", [a.label for a in attacks])
        labels = {a.label: a for a in attacks}
        self.labels |= labels.keys()
        crosschecks = list(
            self.each(raw, "crosschecks", lambda e, k: self.crosscheck(e, k, labels))
        )
        for key, entries in (("models", models), ("attacks", attacks)):
            if not entries and not self.problems:
                self.say(key, f"expected at least one [[{key}]] entry, got none")
        if top is not None and not _NAME.fullmatch(top.name):
            self.say(
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
            base=self.base,
            text=text,
        )

    # --- sections

    def data(self, raw: Any) -> DataEntry | None:
        entry = self.fill(_Data, raw, "data") if raw is not None else None
        if entry is None:
            return None
        if entry.limit is not None and entry.limit < 1:
            self.say("data.limit", f"expected at least 1, got {entry.limit}")
        found = self.find("datasets", entry.name, "data.name")
        if isinstance(found, Dataset) or callable(found):
            load = found.load if isinstance(found, Dataset) else found
            self.arguments(load, entry.params, "data.params", {"split", "limit", "data_dir"})
        elif found is not None:
            self.say("data.name", f"expected a Dataset or a factory, got {type(found).__name__}")
        return DataEntry(**vars(entry))

    def model(self, raw: Any, key: str) -> ModelEntry | None:
        entry = self.fill(_Model, raw, key)
        if entry is None:
            return None
        found = self.find("models", entry.name, f"{key}.name")
        if isinstance(found, Model) or callable(found):
            build = found.build if isinstance(found, Model) else found
            self.arguments(build, entry.params, f"{key}.params", set())
        elif found is not None:
            self.say(f"{key}.name", f"expected a Model or a factory, got {type(found).__name__}")
        return ModelEntry(**{**vars(entry), "label": entry.label or entry.name})

    def attack(self, raw: Any, key: str, stop: Stop) -> AttackEntry | None:
        entry = self.fill(_Attack, raw, key)
        name = raw.get("name") if isinstance(raw, dict) else None
        self.labels |= {str(raw.get("label", name))} if name else set()
        found = self.find("attacks", name, f"{key}.name") if isinstance(name, str) else None
        if found is not None and not isinstance(found, Attack):
            self.say(f"{key}.name", f"expected a bench Attack, got {type(found).__name__}")
        if not isinstance(found, Attack):
            return None
        params = self.fill(found.params, raw.get("params", {}), f"{key}.params")
        if entry is None:
            return None
        for what, value, known in (
            ("norm", entry.norm, found.norms),
            ("goal", entry.goal, found.goals),
        ):
            if value not in known:
                self.say(
                    f"{key}.{what}",
                    f"attack '{entry.name}' has no {what} '{value}'; it has {', '.join(known)}",
                )
        if entry.batch_size is not None and entry.batch_size < 1:
            self.say(f"{key}.batch_size", f"expected at least 1, got {entry.batch_size}")
        self.target(entry, key)
        eps = tuple(self.radii(entry, key))
        if params is None:
            return None
        return AttackEntry(
            name=entry.name,
            label=entry.label or entry.name,
            norm=entry.norm,
            eps=eps,
            goal=entry.goal,
            target=entry.target,
            params=params,
            attack=found,
            stop=entry.stop or stop,
            batch_size=entry.batch_size,
        )

    def target(self, entry: _Attack, key: str) -> None:
        if entry.goal == "untargeted" and entry.target is not None:
            self.say(f"{key}.target", "expected goal = 'targeted' beside a target, got untargeted")
        if entry.goal == "targeted" and entry.target is None:
            self.say(
                f"{key}.target",
                f"expected one of {', '.join(TARGETS)}, a class index or a class name, got nothing",
            )

    def radii(self, entry: _Attack, key: str) -> Iterator[Eps]:
        if not entry.eps:
            self.say(f"{key}.eps", "expected at least one eps, got an empty list")
        seen: set[float] = set()
        for index, written in enumerate(entry.eps):
            at = f"{key}.eps[{index}]"
            try:
                value = _number(written)
            except (ValueError, ZeroDivisionError):
                self.say(at, f"expected a number or a fraction such as '8/255', got {written!r}")
                continue
            most = 1.0 if entry.norm == "linf" else float("inf")
            if not 0 <= value <= most or value == float("inf"):
                bound = "in [0, 1]" if entry.norm == "linf" else "at least 0"
                self.say(at, f"expected an eps {bound} for {entry.norm}, got {written}")
            elif value in seen:
                self.say(at, f"expected each eps once, got {written} again")
            else:
                seen.add(value)
                yield Eps(value, written if isinstance(written, str) else f"{written:g}")

    def crosscheck(
        self, raw: Any, key: str, labels: Mapping[str, AttackEntry]
    ) -> Crosscheck | None:
        entry: Crosscheck | None = self.fill(Crosscheck, raw, key)
        if entry is None:
            return None
        sides = []
        for side in ("ours", "reference"):
            label = getattr(entry, side)
            if label in labels:
                sides.append(labels[label])
            elif label not in self.labels:
                known = nearest(label, self.labels)
                self.say(f"{key}.{side}", f"no attack has the label '{label}'; {known}")
        if len(sides) == 2:
            ours, reference = sides
            if (ours.norm, ours.goal, ours.target) != (
                reference.norm,
                reference.goal,
                reference.target,
            ):
                self.say(key, "expected the same norm, goal and target on both sides")
            elif ours.eps and reference.eps and not _values(ours.eps) & _values(reference.eps):
                self.say(key, "expected an eps that both sides have, got none")
        return entry

    # --- tools

    def say(self, key: str, sentence: str) -> None:
        self.problems.append(
            ": ".join(part for part in (self.where, key.strip("."), sentence) if part)
        )

    def each(self, raw: dict[str, Any], key: str, read: Callable[[Any, str], Any]) -> Iterator[Any]:
        entries = raw.get(key, [])
        for index, entry in enumerate(entries if isinstance(entries, list) else []):
            found = read(entry, f"{key}[{index}]")
            if found is not None:
                yield found

    def fill(self, kind: type, raw: Any, key: str) -> Any:
        """An instance of the dataclass `kind` from a TOML table; None, with reasons, if it fails.

        Keys that are unknown are told and left out, so that the rest is still checked.
        """
        if not isinstance(raw, dict):
            self.say(key, f"expected a table, got {raw!r}")
            return None
        known = [field.name for field in dataclasses.fields(kind)]
        for name in (name for name in raw if name not in known):
            self.say(_dot(key, name), f"unknown key; {nearest(name, known)}")
        hints = get_type_hints(kind, include_extras=True)
        values, before = {}, len(self.problems)
        for field in dataclasses.fields(kind):
            at = _dot(key, field.name)
            if field.name in raw:
                values[field.name] = self.value(hints[field.name], raw[field.name], at)
            elif _required(field):
                self.say(at, "expected a value, got nothing")
        if len(self.problems) > before:
            return None
        try:
            return kind(**values)
        except ValueError as error:  # fields that do not go together
            self.say(key, str(error))
            return None

    def value(self, hint: Any, raw: Any, key: str) -> Any:
        """`raw` if it is what the annotation `hint` says; else the first reason why it is not."""
        try:
            return TypeAdapter(hint).validate_python(raw, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            self.say(key, f"{message[0].lower()}{message[1:]}, got {raw!r}")
            return None
        except ArithmeticError as error:  # a number such as "eps/0" that a checker computed with
            self.say(key, f"{error}, got {raw!r}")
            return None

    def find(self, kind: str, name: str, key: str) -> Any:
        try:
            return registry.find(kind, name, self.base)
        except SuiteError as error:
            for problem in error.problems:
                self.say(key, problem)
            return None

    def arguments(
        self, factory: Callable[..., Any], params: Mapping[str, Any], key: str, given: set[str]
    ) -> None:
        """Parameters of a factory by its signature: unknown and missing ones are mistakes."""
        try:
            signature = inspect.signature(factory).parameters.values()
        except ValueError:  # some callables written in C have none
            return
        if any(p.kind is p.VAR_KEYWORD for p in signature):
            known = None
        else:
            known = [p.name for p in signature if p.name not in given]
        for name in params:
            if known is not None and name not in known:
                self.say(_dot(key, name), f"unknown parameter; {nearest(name, known)}")
        for p in signature:
            required = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            if required and p.name not in params and p.name not in given:
                self.say(_dot(key, p.name), "expected a value, got nothing")

    def unique(self, key: str, labels: list[str]) -> None:
        for label, count in Counter(labels).items():
            if count > 1:
                self.say(key, f"expected each label once, got '{label}' {count} times")


def _number(written: float | str) -> float:
    """A number, or a fraction written as text; its parts may have decimals ("0.5/255").

    >>> _number("8/255") == 8 / 255 and _number("0.5/255") == 0.5 / 255 and _number("0.1") == 0.1
    True
    """
    if not isinstance(written, str):
        return float(written)
    above, slash, below = written.partition("/")
    return float(above) / float(below) if slash else float(above)


def _values(eps: tuple[Eps, ...]) -> set[float]:
    return {each.value for each in eps}


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _dot(key: str, name: str) -> str:
    return ".".join(part for part in (key, name) if part)


def identity(value: Any) -> str:
    """A short hash of plain values; the same text for the same content on every machine."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
