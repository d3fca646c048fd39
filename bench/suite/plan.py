"""Suite -> cells: every model with every attack at every eps, before anything runs.

A cell is one number to be defended. Its identity is a hash of everything that can change that
number; records of another identity are never resumed nor compared. Of bench's own code it holds
versions, which are raised when outcomes change, so that text may change without losing results; of
the user's own, the syntax of it and of what it imports. A pairing that cannot be, such
as a two-class model with an attack that needs four, is skipped with its reason.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bench.core.contracts.types import CertificationMethod
from bench.suite.schema import Suite

if TYPE_CHECKING:
    pass

import contextlib
from importlib import metadata
from typing import NamedTuple

from bench.core import registry
from bench.core.contracts.attack import Attack, AttackSpec
from bench.core.contracts.model import Model
from bench.core.contracts.types import SHOWN, Access, Shape, Sweep
from bench.core.errors import SuiteError, nearest
from bench.core.versions import JUDGE_VERSION, NUMERICS_VERSION
from bench.engine.functional.losses import classes_needed
from bench.models.fingerprint import describe_value
from bench.suite.schema import TARGET_RULES, AttackEntry


class ModelFacts(NamedTuple):
    """What the planner must know of a model once it is loaded; identities need the hashes."""

    classes: int | None
    shape: Shape | None
    rows: int = 0
    model_fingerprint: str = ""
    data_fingerprint: str = ""
    predictions: int = 1
    """Times that the model is asked for one verdict."""
    random: bool = False
    """Whether it answers at random."""
    access: Access = "gradient"
    """What it shows of itself."""
    sketch: str = ""
    """What it answers to the first images, roughly; empty if it answers at random."""


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
    """Most forward passes per example; None if only the foreign attack knows."""
    gradients: float | None
    """Most input gradients per example, likewise."""
    traits: Mapping[str, str]
    caveats: Sequence[str]
    threat_model: str = "white-box"
    """What the attacker sees of the model that is judged."""
    source: str = ""
    """The model that the examples are crafted on, if the suite names one."""
    family: str = ""
    """The attack's label without its source, its varied parameter and its seed."""
    varied: str = ""
    value: float | None = None
    seed: int | None = None
    """Of the attack, where the suite gives it several; None: the suite's."""
    precision: str = "float32"
    """Arithmetic of the gradients; the model judges in float32."""
    samples: int = 1
    """Passes over which the attack averaged each look."""
    predictions: int = 1
    """Times that the model was asked for one verdict."""
    name: str = ""
    """The attack's registered name; empty in a run made before it was kept."""
    budget: str = "fixed"
    """"minimum" if one search for the least distance serves all eps of the entry."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What is asked of the model, whatever its weights and the seed: a later run is held against
    this one where both ask the same. Empty until the model is loaded."""


class AttackTask(NamedTuple):
    """All cells of one model and one attack: what the engine runs as one stream."""

    model: str
    entry: AttackEntry
    curve: AttackSpec
    cells: tuple[Cell, ...]

    @property
    def source(self) -> str:
        """The model that the examples are crafted on."""
        return self.entry.source or self.model

    @property
    def linked(self) -> bool:
        """Whether one gradient, one inheritance or one search serves all eps together."""
        return _linked(self.curve)

    def only(self, identities: set[str]) -> "AttackTask":
        """The task with no other cells than these."""
        kept = tuple(cell for cell in self.cells if cell.identity in identities)
        curve = dataclasses.replace(self.curve, eps=tuple(cell.eps for cell in kept))
        return self._replace(curve=curve, cells=kept)


def collect_declared_facts(suite: Suite) -> dict[str, ModelFacts]:
    """What can be known of the suite's models without building them."""
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
    """Every task of the suite, model by model, in the suite's order."""
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
    """The class index that a targeted attack wants, or the rule by which each example gets one.

    Raises: SuiteError if there is no such class.
    """
    target = entry.target
    assert target is not None
    if isinstance(target, str) and target in TARGET_RULES:
        return target
    called = [k for k, name in enumerate(names) if name.casefold() == str(target).casefold()]
    if len(called) > 1:  # ImageNet has two cranes
        both = " and ".join(map(str, called))
        raise SuiteError(
            f"attack '{entry.label}': target '{target}' names the classes {both}; give the index"
        )
    if called:
        return called[0]
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
    """All cells of the model called `model` under the attack of `entry`, crafted on `source`."""
    crafting = source or facts
    seeks = entry.attack.budget == "minimum"  # the first success is not the nearest one
    random = facts.random or crafting.random or entry.samples > 1  # nor more than one lucky draw
    curve = AttackSpec(
        name=entry.name,
        attack=entry.attack,
        params=entry.params,
        norm=entry.norm,
        eps=tuple(eps.value for eps in entry.eps),
        goal=entry.goal,
        stop="never" if seeks or random else entry.stop,
        sweep="independent" if entry.attack.run is not None or seeks or random else sweep,
        seed=seed if entry.seed is None else entry.seed,
        precision=entry.precision,
        samples=entry.samples,
        predictions=facts.predictions,
        random=random,
    )
    reason = _skip_reason(entry, facts, crafting)
    passes, gradients = _passes(curve)
    settings = _settings(curve, entry) if facts.model_fingerprint else {}
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
            stop=_stop(curve),
            precision=curve.precision,
            samples=curve.samples,
            predictions=curve.predictions,
            identity=_identity(curve, entry, eps.value, facts, source)
            if facts.model_fingerprint
            else "",
            reason=reason,
            passes=0.0 if eps.value == 0 else passes,
            gradients=0.0 if eps.value == 0 else gradients,
            traits={
                **entry.attack.traits(entry.params, entry.norm, eps.value),
                **({"samples": str(curve.samples)} if curve.samples > 1 else {}),
            },
            caveats=(
                *_caveats(entry, eps.value, sweep),
                *_of_random_answers(entry, eps.value, facts, crafting),
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
    return AttackTask(model, entry, curve, cells)


def _stop(curve: AttackSpec) -> str:
    if curve.attack.run is None:
        return curve.stop
    return "the attack's own" if curve.attack.implementation == "bench" else "the library's own"


def _implementation(entry: AttackEntry) -> str:
    """The library's name, or the user's own file or module; bench's own attacks are bench's."""
    where, _, _ = entry.name.rpartition(":")
    return (
        where if where and entry.attack.implementation == "bench" else entry.attack.implementation
    )


def _caveats(entry: AttackEntry, eps: float, sweep: Sweep) -> tuple[str, ...]:
    if eps == 0:
        return ()
    own = tuple(entry.attack.caveats(entry.params, entry.norm, eps))
    if entry.precision != "float32":
        own = (*own, f"Gradients in {entry.precision}: may be weaker than in float32.")
    if sweep == "nested" and entry.attack.run is not None and entry.attack.budget == "fixed":
        return (*own, "The sweep is independent: only the engine's own attacks inherit successes.")
    return own


def _of_random_answers(
    entry: AttackEntry, eps: float, facts: ModelFacts, crafting: ModelFacts
) -> tuple[str, ...]:
    """What to keep in mind where the model, or that which examples are crafted on, answers at
    random."""
    told = []
    if facts.predictions > 1:
        told.append(
            f"A verdict is the class that most of {facts.predictions} predictions give, the "
            "smaller class on a tie."
        )
    elif facts.random:
        told.append("The model answers at random, and a verdict is a single prediction.")
    if facts.random or crafting.random:
        told.append("What the model draws depends on the batch, so results depend on its rows.")
    if crafting.random and entry.attack.budget == "minimum" and eps > 0:
        told.append(
            "The nearest image that fooled the model in one look lies where its answers vary from "
            "draw to draw, and seldom fools it again: an attack of fixed budget breaks more."
        )
    if crafting.random and entry.attack.run is None and eps > 0:
        if entry.attack.budget == "fixed":
            told.append("Every eps gets every step: one lucky draw is no success.")
        if entry.samples == 1:
            told.append("A step follows a single draw of the model; `samples` averages over more.")
    return tuple(told)


THREAT_MODELS = {
    "gradient": "white-box",
    "scores": "black-box, score-based",
    "labels": "black-box, decision-based",
    "nothing": "no query",
}


NEED_NAMES = {"gradient": "gradients", "scores": "scores", "labels": "labels"}


def _threat_model(model: str, entry: AttackEntry) -> str:
    if entry.source not in (None, model):
        return "black-box, transfer"
    return THREAT_MODELS[entry.attack.needs]


def _skip_reason(entry: AttackEntry, victim: ModelFacts, facts: ModelFacts) -> str:
    """`facts` are those of the model that the examples are crafted on."""
    attack, loss = entry.attack, getattr(entry.params, "loss", "")
    if attack.unavailable:
        return attack.unavailable
    if SHOWN[attack.needs] > SHOWN[facts.access]:
        return f"the attack needs {NEED_NAMES[attack.needs]}, the model shows {facts.access} alone"
    if None not in (victim.classes, facts.classes) and victim.classes != facts.classes:
        return f"the source has {facts.classes} classes, the model has {victim.classes}"
    if facts.classes is not None and facts.classes < attack.min_classes:
        return (
            f"the attack needs at least {attack.min_classes} classes, the model has {facts.classes}"
        )
    if facts.classes is not None and facts.classes < (least := classes_needed(loss, entry.goal)):
        return f"loss '{loss}' needs at least {least} classes, the model has {facts.classes}"
    if facts.shape is not None and attack.channels and facts.shape[0] not in attack.channels:
        wanted = " or ".join(map(str, attack.channels))
        return f"the attack needs {wanted} channels, the images have {facts.shape[0]}"
    return ""


def _passes(curve: AttackSpec) -> tuple[float | None, float | None]:
    """Most forward passes and input gradients for one example at one eps; None if unknown."""
    attack = curve.attack
    if attack.needs == "nothing":
        return 0.0, 0.0
    if attack.parts is not None:
        parts = attack.parts(curve.params, curve.norm)
        one = dataclasses.replace(curve, eps=(1.0,), sweep="independent")
        each = [
            _passes(dataclasses.replace(one, attack=part.attack, params=part.params))
            for part in parts
        ]
        return sum(there or 0.0 for there, _ in each), sum(back or 0.0 for _, back in each)
    looks = _looks(curve)
    return looks, looks if attack.needs == "gradient" else 0.0


def _looks(curve: AttackSpec) -> float | None:
    """Most iterates that the model is shown, for one example at one eps."""
    positive = sum(eps > 0 for eps in curve.eps) or 1
    rule = curve.attack.rule
    if rule is not None and rule.one_gradient and curve.sweep == "independent":
        return curve.samples / positive
    steps = getattr(curve.params, "steps", None)
    if not isinstance(steps, int) or not curve.attack.counts_steps:
        return None
    restarts = getattr(curve.params, "restarts", 1)
    rounds = restarts if isinstance(restarts, int) else 1
    if rule is not None and rule.aims is not None:
        rounds *= rule.aims(curve.params)
    looks = float(steps * rounds * curve.samples)
    return looks / positive if curve.attack.budget == "minimum" else looks


def _identity(
    curve: AttackSpec, entry: AttackEntry, eps: float, facts: ModelFacts, source: ModelFacts | None
) -> str:
    attack = curve.attack
    files = [hashlib.sha256(path.read_bytes()).hexdigest() for path in attack.reads(curve.params)]
    return _hash(
        {
            "model": [facts.model_fingerprint, facts.sketch],
            "data": facts.data_fingerprint,
            "attack": curve.name,
            "code": _code(curve.name, attack),
            "norm": curve.norm,
            # Where cells are linked, the list of eps is part of each one's number.
            "eps": [*sorted(curve.eps), eps] if _linked(curve) else eps,
            "goal": curve.goal,
            "target": entry.target,
            "params": _plain(curve.params),
            "stop": curve.stop,
            "sweep": curve.sweep,
            "seed": curve.seed,
            "rows": (source or facts).rows if attack.batch_dependent else None,
            **({"files": files} if files else {}),
            **({"precision": curve.precision} if curve.precision != "float32" else {}),
            **({"samples": curve.samples} if curve.samples > 1 else {}),
            **({"random": _drawn_by(curve, entry, facts, source)} if curve.random else {}),
            **({"parts": _parts(curve)} if attack.parts is not None else {}),
            # Crafted on itself, an example is the white-box attack's.
            **(
                {"source": [source.model_fingerprint, source.sketch]}
                if source not in (None, facts)
                else {}
            ),
        }
    )


def _settings(curve: AttackSpec, entry: AttackEntry) -> dict[str, Any]:
    """`Cell.settings`: plain values by name, defaults written out."""
    files = [path.read_bytes() for path in curve.attack.reads(curve.params)]
    asked = {
        "attack": curve.name,
        "code": _code(curve.name, curve.attack),
        "norm": curve.norm,
        "goal": curve.goal,
        "target": entry.target,
        "stop": curve.stop,
        "sweep": curve.sweep,
        "precision": curve.precision,
        "samples": curve.samples,
        "predictions": curve.predictions,
        "source": entry.source,
        **{f"params.{name}": value for name, value in _plain(curve.params).items()},
        **{f"file {at + 1}": hashlib.sha256(files[at]).hexdigest() for at in range(len(files))},
        # An eps inherits what smaller ones found, so that all of them are part of what is asked.
        **({"eps": sorted(curve.eps)} if curve.sweep == "nested" else {}),
    }
    plain: dict[str, Any] = json.loads(json.dumps(asked, sort_keys=True, default=str))
    return plain


def _drawn_by(
    curve: AttackSpec, entry: AttackEntry, facts: ModelFacts, source: ModelFacts | None
) -> dict[str, int]:
    """What decides the draws of a model that answers at random, beside the seed: how often it is
    asked, and the rows that it is shown at once, attacked and judged."""
    attacked = entry.batch_size or (source or facts).rows
    return {"predictions": curve.predictions, "attacked": attacked, "judged": facts.rows}


def _linked(curve: AttackSpec) -> bool:
    rule = curve.attack.rule
    one_gradient = rule is not None and rule.one_gradient
    nested = curve.sweep == "nested"
    # A model that answers at random draws for all rows of a batch at once, whatever their eps.
    return curve.attack.budget == "minimum" or nested or one_gradient or curve.random


def _plain(params: Any) -> dict[str, Any]:
    fields = {field.name: getattr(params, field.name) for field in dataclasses.fields(params)}
    return {"type": type(params).__qualname__, **fields}


def _parts(curve: AttackSpec) -> list[dict[str, Any]]:
    assert curve.attack.parts is not None
    return [
        {"name": part.name, "code": _code(part.name, part.attack), "params": _plain(part.params)}
        for part in curve.attack.parts(curve.params, curve.norm)
    ]


def _code(name: str, attack: Attack) -> str:
    """What the attack's outcome depends on beyond its params: versions of bench's code, of the
    attack's library, and the code of a user's own."""
    told = f"version {attack.version}, numerics {NUMERICS_VERSION}, judge {JUDGE_VERSION}"
    if attack.implementation != "bench":
        library = attack.distribution or attack.implementation
        with contextlib.suppress(metadata.PackageNotFoundError):
            told += f", {library} {metadata.version(library)}"
    if _is_built_in(name, attack):
        return told
    functions = [attack.params, attack.run, attack.parts, attack.rule]
    return f"{told}, code {_hash([describe_value(each) for each in functions])}"


def _is_built_in(name: str, attack: Attack) -> bool:
    """Whether this is the attack that bench itself has under the name."""
    if not registry.built_in("attacks", name):
        return False
    if ":" in name:  # a library's, made anew whenever it is asked for
        return True
    with contextlib.suppress(SuiteError):
        return registry.find("attacks", name) is attack
    return False


def _hash(value: Any) -> str:
    """A short hash of plain values; the same text for the same content on every machine."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificationTask:
    """One model under one method, at all eps."""

    model: str
    method: CertificationMethod
    eps: tuple[float, ...]
    """Ascending."""
    eps_texts: tuple[str, ...]
    identity: str
    """Of everything that can change an outcome."""
    reason: str = ""
    """Why it is skipped; empty if it is not."""
