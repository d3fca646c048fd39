"""Plan a suite: every model with every attack at every eps, before anything runs.

A cell is one number of the results; `identity` says which changes make it another number. Records
of another identity are never resumed or compared. A pairing that is impossible, such as a two-class
model with an attack that needs four classes, is skipped with its reason.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.core import registry
from bench.core.contracts.attack import AttackSpec, EnsembleAttack, ExternalAttack, IterativeAttack
from bench.core.contracts.model import Model
from bench.core.contracts.types import ACCESS_RANK, CertificationMethod, Sweep
from bench.core.errors import SuiteError, nearest
from bench.engine.functional.losses import min_classes
from bench.suite import identity
from bench.suite.identity import ModelFacts
from bench.suite.schema import TARGET_RULES, AttackEntry, Suite

THREAT_MODELS = {
    "gradient": "white-box",
    "scores": "black-box, score-based",
    "labels": "black-box, decision-based",
    "nothing": "no query",
}
"""What an attack needs -> threat model."""
NEED_NAMES = {"gradient": "gradients", "scores": "scores", "labels": "labels"}
"""What an attack needs -> plural for sentences."""


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
    """Ascending."""
    eps_texts: tuple[str, ...]
    identity: str
    """Hash of everything that can change an outcome."""
    reason: str = ""
    """Why it is skipped; empty if it is not."""


def collect_declared_facts(suite: Suite) -> dict[str, ModelFacts]:
    """Collect the facts that models' records declare, without building any model.

    Args:
        suite: The suite.

    Returns:
        Label of each model -> its facts.
    """
    facts = {}
    for entry in suite.models:
        found = registry.find("models", entry.name, suite.base)
        built_in = isinstance(found, Model)
        facts[entry.label] = ModelFacts(
            classes=found.classes if built_in else None,
            shape=found.shape if built_in else None,
            predictions=entry.predictions,
            random=entry.predictions > 1,
            access=entry.access,
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
            source=facts[entry.source] if entry.source else None,
        )
        for model in suite.models
        for entry in suite.attacks
    ]


def resolve_target(entry: AttackEntry, classes: int, names: Sequence[str]) -> int | str:
    """Resolve the target of a targeted attack.

    Args:
        entry: The attack's entry, which has a target.
        classes: Number of classes of the model.
        names: Names of the data's classes in index order; may be empty.

    Returns:
        The class index, or one of TARGET_RULES.

    Raises:
        SuiteError: There is no such class, or several have that name.
    """
    target = entry.target
    assert target is not None
    if isinstance(target, str) and target in TARGET_RULES:
        return target
    matches = [k for k, name in enumerate(names) if name.casefold() == str(target).casefold()]
    if len(matches) > 1:  # ImageNet has two cranes
        both = " and ".join(map(str, matches))
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' names the classes {both}; give the index"
        )
    if matches:
        return matches[0]
    index = int(target) if str(target).isdecimal() else -1
    if not 0 <= index < classes:
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' is no class; expected an index below "
            f"{classes} or a class name; {nearest(str(target), [*TARGET_RULES, *names])}"
        )
    return index


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
    seeks = entry.attack.budget == "minimum"  # the first success is not the nearest one
    external = isinstance(entry.attack, ExternalAttack)
    random = facts.random or crafting.random or entry.samples > 1  # nor more than one lucky draw
    spec = AttackSpec(
        name=entry.name,
        attack=entry.attack,
        params=entry.params,
        norm=entry.norm,
        eps=tuple(eps.value for eps in entry.eps),
        goal=entry.goal,
        stop="never" if seeks or random else entry.stop,
        sweep="independent" if external or seeks or random else sweep,
        seed=seed if entry.seed is None else entry.seed,
        precision=entry.precision,
        samples=entry.samples,
        predictions=facts.predictions,
        random=random,
    )
    reason = _skip_reason(entry, facts, crafting)
    passes, gradients = _passes(spec)
    settings = identity.collect_settings(spec, entry) if facts.model_fingerprint else {}
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
            traits={
                **entry.attack.traits(entry.params, entry.norm, eps.value),
                **({"samples": str(spec.samples)} if spec.samples > 1 else {}),
            },
            caveats=(
                *_caveats(entry, eps.value, sweep),
                *_random_caveats(entry, eps.value, facts, crafting),
            ),
            threat_model=_threat_model(model, entry),
            source=entry.source or "",
            family=entry.family,
            name=entry.name,
            varied=entry.varied,
            value=entry.value,
            seed=entry.seed,
            budget=entry.attack.budget,
            settings=settings,
        )
        for eps in entry.eps
    )
    return AttackTask(model, entry, spec, cells)


def _stop(spec: AttackSpec) -> str:
    """Return the stop rule as tables show it."""
    if not isinstance(spec.attack, ExternalAttack):
        return spec.stop
    return "the attack's own" if spec.attack.implementation == "bench" else "the library's own"


def _implementation(entry: AttackEntry) -> str:
    """Return the library's name, the user's file or module, or "bench"."""
    where, _, _ = entry.name.rpartition(":")
    return (
        where if where and entry.attack.implementation == "bench" else entry.attack.implementation
    )


def _caveats(entry: AttackEntry, eps: float, sweep: Sweep) -> tuple[str, ...]:
    """Return what a reader must know of the attack at one eps."""
    if eps == 0:
        return ()
    own = tuple(entry.attack.caveats(entry.params, entry.norm, eps))
    if entry.precision != "float32":
        own = (*own, f"Gradients in {entry.precision}: may be weaker than in float32.")
    external = isinstance(entry.attack, ExternalAttack)
    if sweep == "nested" and external and entry.attack.budget == "fixed":
        return (*own, "The sweep is independent: only the engine's own attacks inherit successes.")
    return own


def _random_caveats(
    entry: AttackEntry, eps: float, facts: ModelFacts, crafting: ModelFacts
) -> tuple[str, ...]:
    """Return what a reader must know where the judged or the source model is random."""
    caveats = []
    if facts.predictions > 1:
        caveats.append(
            f"A verdict is the class that most of {facts.predictions} predictions give, the "
            "smaller class on a tie."
        )
    elif facts.random:
        caveats.append("The model answers at random, and a verdict is a single prediction.")
    if facts.random or crafting.random:
        caveats.append("What the model draws depends on the batch, so results depend on its rows.")
    if crafting.random and entry.attack.budget == "minimum" and eps > 0:
        caveats.append(
            "The nearest image that fooled the model in one look lies where its answers vary from "
            "draw to draw, and seldom fools it again: an attack of fixed budget breaks more."
        )
    if crafting.random and not isinstance(entry.attack, ExternalAttack) and eps > 0:
        if entry.attack.budget == "fixed":
            caveats.append("Every eps gets every step: one lucky draw is no success.")
        if entry.samples == 1:
            caveats.append(
                "A step follows a single draw of the model; `samples` averages over more."
            )
    return tuple(caveats)


def _threat_model(model: str, entry: AttackEntry) -> str:
    """Return what the attacker sees of the judged model."""
    if entry.source not in (None, model):
        return "black-box, transfer"
    return THREAT_MODELS[entry.attack.needs]


def _skip_reason(entry: AttackEntry, victim: ModelFacts, facts: ModelFacts) -> str:
    """Return why the pairing is impossible; empty if it is possible.

    `victim` is the judged model, `facts` are those of the model that examples are crafted on.
    """
    attack, loss = entry.attack, getattr(entry.params, "loss", "")
    if attack.unavailable:
        return attack.unavailable
    if ACCESS_RANK[attack.needs] > ACCESS_RANK[facts.access]:
        return f"the attack needs {NEED_NAMES[attack.needs]}, the model shows {facts.access} alone"
    if None not in (victim.classes, facts.classes) and victim.classes != facts.classes:
        return f"the source has {facts.classes} classes, the model has {victim.classes}"
    if facts.classes is not None and facts.classes < attack.min_classes:
        return (
            f"the attack needs at least {attack.min_classes} classes, the model has {facts.classes}"
        )
    if facts.classes is not None and facts.classes < (least := min_classes(loss, entry.goal)):
        return f"loss '{loss}' needs at least {least} classes, the model has {facts.classes}"
    if facts.shape is not None and attack.channels and facts.shape[0] not in attack.channels:
        wanted = " or ".join(map(str, attack.channels))
        return f"the attack needs {wanted} channels, the images have {facts.shape[0]}"
    return ""


def _passes(spec: AttackSpec) -> tuple[float | None, float | None]:
    """Return the most forward passes and input gradients per example and eps; None if unknown."""
    attack = spec.attack
    if attack.needs == "nothing":
        return 0.0, 0.0
    if isinstance(attack, EnsembleAttack):
        parts = attack.parts(spec.params, spec.norm)
        one = dataclasses.replace(spec, eps=(1.0,), sweep="independent")
        each = [
            _passes(dataclasses.replace(one, attack=part.attack, params=part.params))
            for part in parts
        ]
        return sum(there or 0.0 for there, _ in each), sum(back or 0.0 for _, back in each)
    iterates = _count_iterates(spec)
    return iterates, iterates if attack.needs == "gradient" else 0.0


def _count_iterates(spec: AttackSpec) -> float | None:
    """Return the most iterates per example and eps; None if unknown."""
    positive = sum(eps > 0 for eps in spec.eps) or 1
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    if rule is not None and rule.one_gradient and spec.sweep == "independent":
        return spec.samples / positive
    steps = getattr(spec.params, "steps", None)
    if not isinstance(steps, int) or not spec.attack.counts_steps:
        return None
    restarts = getattr(spec.params, "restarts", 1)
    rounds = restarts if isinstance(restarts, int) else 1
    if rule is not None and rule.aims is not None:
        rounds *= rule.aims(spec.params)
    iterates = float(steps * rounds * spec.samples)
    return iterates / positive if spec.attack.budget == "minimum" else iterates
