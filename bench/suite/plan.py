"""Plan a suite: every model with every attack at every eps, before anything runs.

A cell is one number of the results; `identity` says which changes make it another number. Records
of another identity are never resumed or compared. A pairing that is impossible, such as a two-class
model with an attack that needs four classes, is skipped with its reason.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.core import registry
from bench.core.contracts.adaptation import Adaptation
from bench.core.contracts.attack import AttackSpec, ExternalAttack
from bench.core.contracts.model import Model
from bench.core.contracts.types import BallNorm, CertificationMethod, Sweep
from bench.suite import caveats, identity, query_budgets
from bench.suite.cost import count_passes
from bench.suite.identity import ModelFacts
from bench.suite.schema import AttackEntry, SmoothingSettings, Suite

CERTIFIED_TRAIT = "certified examples"
"""Trait of a cell whose attack leaves certified examples out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """One model under one attack at one eps."""

    model: str
    attack: str
    implementation: str
    norm: str
    eps: float
    eps_text: str
    goal: str
    target: str
    stop: str
    identity: str
    """Empty until the model and the data are loaded."""
    reason: str
    """Why the cell is skipped; empty if it is not."""
    passes: float | None
    """Most forward passes per example; None if unknown, as of a library's attack."""
    gradients: float | None
    """Most input gradients per example, likewise."""
    traits: Mapping[str, str]
    caveats: Sequence[str]
    threat_model: str = "white-box"
    """What the attacker sees of the judged model."""
    source: str = ""
    """The model that the examples are crafted on, if the suite names one."""
    family: str = ""
    """The attack's label without its source, its varied parameter and its seed."""
    varied: str = ""
    value: float | None = None
    seed: int | None = None
    """Seed of the entry where the suite sets several; None for the suite's."""
    precision: str = "float32"
    """Arithmetic of the gradients; the model judges in float32."""
    samples: int = 1
    """Forward and backward passes that each step averages."""
    predictions: int = 1
    """Predictions that vote on one verdict."""
    name: str = ""
    """The attack's registered name; empty in runs of versions that did not store it."""
    budget: str = "fixed"
    """"minimum" if one search for the least distance serves all eps of the entry."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What is asked of the model, independent of its weights and of the seed: runs are compared
    where these are equal. Empty until the model is loaded."""
    budgets: Sequence[int] = ()
    """Numbers of queries at which the result is reported; those of a search are recorded."""
    anytime: bool = False
    """Whether the result within fewer queries is that of a run with fewer steps."""
    queries: bool = False
    """Whether the attack searches by the scores or labels of the judged model."""
    victim_queries: int = 0
    """Most queries of the judged model per example by an attack on a source; 0 for none."""


class AttackTask(NamedTuple):
    """All cells of one model and one attack, which the engine runs as one stream."""

    model: str
    entry: AttackEntry
    spec: AttackSpec
    cells: tuple[Cell, ...]

    @property
    def source(self) -> str:
        """The model that the examples are crafted on."""
        return self.entry.source or self.model

    @property
    def models(self) -> tuple[str, ...]:
        """Labels of all models that are called: the judged one, and those crafted on."""
        ensemble = self.entry.ensemble
        sources = (self.source,) if ensemble is None else ensemble.models
        return tuple(dict.fromkeys((self.model, *sources)))

    @property
    def linked(self) -> bool:
        """Whether the outcome at one eps depends on which other eps run."""
        return identity.are_linked(self.spec)

    def only(self, identities: set[str]) -> "AttackTask":
        """Reduce the task to some of its cells.

        Args:
            identities: Identities of the cells to retain.

        Returns:
            A task with these cells and their eps alone.
        """
        cells = tuple(cell for cell in self.cells if cell.identity in identities)
        spec = dataclasses.replace(self.spec, eps=tuple(cell.eps for cell in cells))
        return self._replace(spec=spec, cells=cells)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificationTask:
    """One model under one certification method, at all eps."""

    model: str
    method: CertificationMethod
    eps: tuple[float, ...]
    """Ascending; for smoothing, the radii that are tabulated."""
    eps_texts: tuple[str, ...]
    identity: str
    """Hash of everything that can change an outcome."""
    reason: str = ""
    """Why it is skipped; empty if it is not."""
    norm: BallNorm = "linf"
    """Of the certified balls."""
    smoothing: SmoothingSettings | None = None
    """None for bound propagation."""

    @classmethod
    def from_manifest(cls, raw: Mapping[str, Any]) -> "CertificationTask":
        """Build a task from its entry in a manifest.

        Args:
            raw: The entry, checked; fields that a newer version added are ignored.

        Returns:
            The task.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in raw.items() if key in names}
        if (smoothing := known.get("smoothing")) is not None:
            settings = [field.name for field in dataclasses.fields(SmoothingSettings)]
            known["smoothing"] = SmoothingSettings(**{key: smoothing[key] for key in settings})
        return cls(**{**known, "eps": tuple(raw["eps"]), "eps_texts": tuple(raw["eps_texts"])})

    @property
    def name(self) -> str:
        """The method with what distinguishes it from others of the suite, for people."""
        if self.smoothing is not None:
            return f"{self.method}, sigma {self.smoothing.sigma:g}"
        return self.method if self.norm == "linf" else f"{self.method}, {self.norm}"


def collect_declared_facts(suite: Suite) -> dict[str, ModelFacts]:
    """Collect the facts that models' records declare, without building any model.

    Args:
        suite: The suite.

    Returns:
        Label of each model -> its facts.
    """
    facts = {}
    for entry in suite.models:
        model = registry.find("models", entry.name, suite.base)
        built_in = isinstance(model, Model)
        facts[entry.label] = ModelFacts(
            classes=model.classes if built_in else None,
            shape=model.shape if built_in else None,
            predictions=entry.predictions,
            random=entry.predictions > 1,
            access=entry.access,
            detector=entry.detector,
        )
    return facts


def plan_tasks(suite: Suite, facts: Mapping[str, ModelFacts]) -> list[AttackTask]:
    """Plan all tasks of a suite.

    Args:
        suite: The suite.
        facts: Label of each model -> its facts.

    Returns:
        One task for each model and attack, model by model, in the suite's order.
    """
    return [
        plan_task(
            model.label,
            entry,
            facts[model.label],
            suite.seed,
            suite.sweep,
            source=identity.find_source_facts(entry, facts, facts[model.label]),
        )
        for model in suite.models
        for entry in suite.attacks
    ]


def plan_task(
    model: str,
    entry: AttackEntry,
    facts: ModelFacts,
    seed: int,
    sweep: Sweep,
    source: ModelFacts | None = None,
) -> AttackTask:
    """Plan the cells of one model under one attack.

    Args:
        model: Label of the judged model.
        entry: The attack's entry.
        facts: Facts of the judged model.
        seed: The suite's seed, which holds where the entry has none.
        sweep: How successes pass from one eps to the next.
        source: Facts of the model that the examples are crafted on; None for the judged one.

    Returns:
        The task; identities and settings are empty unless `facts` are of a loaded model.
    """
    crafting = source or facts
    spec = _make_spec(entry, facts, crafting, seed, sweep)
    reason = caveats.find_skip_reason(entry, facts, crafting)
    passes, gradients = count_passes(spec, crafting.classes)
    if identity.repeats_on_classifier(spec, facts, source):
        passes, gradients = (None if each is None else 2 * each for each in (passes, gradients))
    settings = _collect_settings(spec, entry, facts)
    cells = tuple(
        Cell(
            model=model,
            attack=entry.label,
            implementation=_implementation(entry),
            norm=entry.norm,
            eps=eps.value,
            eps_text=eps.text,
            goal=entry.goal,
            target="" if entry.target is None else str(entry.target),
            stop=_stop(spec),
            precision=spec.precision,
            samples=spec.samples,
            predictions=spec.predictions,
            identity=identity.hash_cell(spec, entry, eps.value, facts, source)
            if facts.model_fingerprint
            else "",
            reason=reason,
            passes=0.0 if eps.value == 0 else passes,
            gradients=0.0 if eps.value == 0 else gradients,
            traits=_collect_traits(spec, entry, eps.value),
            caveats=caveats.list_caveats(entry, eps.value, sweep, facts, crafting),
            threat_model=caveats.name_threat_model(model, entry),
            source=entry.source or "",
            family=entry.family,
            name=spec.name,
            varied=entry.varied,
            value=entry.value,
            seed=entry.seed,
            budget=entry.attack.budget,
            settings=settings,
            budgets=() if spec.random else spec.budgets or entry.budgets,
            anytime=entry.attack.anytime,
            queries=query_budgets.asks(entry.attack, entry.norm)
            and not spec.random
            and not entry.source,
            victim_queries=spec.victim_queries,
        )
        for eps in entry.eps
    )
    return AttackTask(model, entry, spec, cells)


def _make_spec(
    entry: AttackEntry, facts: ModelFacts, crafting: ModelFacts, seed: int, sweep: Sweep
) -> AttackSpec:
    """Decide how an attack runs at all eps of its entry, on the model of the facts `crafting`."""
    seeks = entry.attack.budget == "minimum"  # the first success is not the nearest one
    external = isinstance(entry.attack, ExternalAttack)
    # What fools its source at a small eps may fool the judged model at a larger one alone.
    transfers = entry.source is not None
    random = facts.random or crafting.random or entry.samples > 1  # nor more than one lucky draw
    return AttackSpec(
        name=registry.portable_name("attacks", entry.name),
        attack=entry.attack,
        params=entry.params,
        norm=entry.norm,
        eps=tuple(eps.value for eps in entry.eps),
        goal=entry.goal,
        stop="never" if seeks or random else entry.stop,
        # Under "nested" an example that fell at a smaller eps makes no queries at a larger one.
        sweep="independent" if external or seeks or random or transfers or entry.budgets else sweep,
        seed=seed if entry.seed is None else entry.seed,
        precision=entry.precision,
        samples=entry.samples,
        transforms=entry.transforms,
        predictions=facts.predictions,
        random=random,
        adaptation=entry.adaptation,
        victim_queries=entry.victim_queries,
        budgets=()
        if random or entry.source
        else query_budgets.list_recorded(entry.budgets, entry.attack, entry.norm, entry.params),
    )


def _collect_settings(spec: AttackSpec, entry: AttackEntry, facts: ModelFacts) -> dict[str, Any]:
    """Return what is asked of a loaded model, see `Cell.settings`; empty before it is loaded."""
    if not facts.model_fingerprint:
        return {}
    settings = identity.collect_settings(spec, entry)
    if facts.detector is not None:  # outcomes of the two countings are not compared
        settings["rejected"] = facts.detector.rejected
    return settings | identity.describe_target(entry, facts)


def _collect_traits(spec: AttackSpec, entry: AttackEntry, eps: float) -> dict[str, str]:
    """Return what a cross-check compares of the attack's own traits and of its entry's."""
    return {
        **entry.attack.traits(entry.params, entry.norm, eps),
        **({"samples": str(spec.samples)} if spec.samples > 1 else {}),
        **({"transforms": str(spec.transforms)} if spec.transforms else {}),
        **_describe_adaptation(entry.adaptation),
        **({"victim queries": str(spec.victim_queries)} if spec.victim_queries else {}),
        **_describe_skipped(entry, eps),
    }


def _describe_adaptation(adaptation: Adaptation | None) -> dict[str, str]:
    """Return what an attack is adapted to as traits."""
    if adaptation is None:
        return {}
    replaced = ", ".join(f"{module}: {each.name}" for module, each in adaptation.backward)
    traits = {"features": ", ".join(adaptation.features), "backward": replaced}
    return {name: text for name, text in traits.items() if text}


def _describe_skipped(entry: AttackEntry, eps: float) -> dict[str, str]:
    """Return as a trait which certified examples are not attacked; at eps 0 none is."""
    if not entry.skip_certified or eps == 0:
        return {}
    return {CERTIFIED_TRAIT: f"not attacked ({' or '.join(entry.skip_certified)})"}


def _stop(spec: AttackSpec) -> str:
    """Return the stop rule as tables show it."""
    if not isinstance(spec.attack, ExternalAttack):
        return spec.stop
    return "the attack's own" if spec.attack.implementation == "bench" else "the library's own"


def _implementation(entry: AttackEntry) -> str:
    """Return the library's name, the user's file or module, or "bench"."""
    where, _, _ = registry.portable_name("attacks", entry.name).rpartition(":")
    return (
        where if where and entry.attack.implementation == "bench" else entry.attack.implementation
    )
