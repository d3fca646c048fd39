"""Compute the identity of a cell: a hash of everything that can change its number.

Of bench's own code it contains versions, which are raised when outcomes change, so that code may
change without invalidating results; of a user's attack, its syntax and that of what it imports.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

from bench.core import registry
from bench.core.contracts.attack import (
    Attack,
    AttackSpec,
    EnsembleAttack,
    ExternalAttack,
    IterativeAttack,
)
from bench.core.contracts.detector import Detector
from bench.core.contracts.parameters import UNLESS_DEFAULT
from bench.core.contracts.types import ACCESS_RANK, BALLS, Access, Shape
from bench.core.errors import SuiteError
from bench.core.versions import CERTIFICATION_VERSION, JUDGE_VERSION, NUMERICS_VERSION
from bench.engine.rejection import attacks_classifier_too
from bench.engine.threats.registry import find_threat
from bench.models.fingerprint import describe_value
from bench.suite.adaptations import describe_adaptation
from bench.suite.query_budgets import asks
from bench.suite.schema import AttackEntry
from bench.suite.targets import find_named_classes


class ModelFacts(NamedTuple):
    """Properties of a model that the planner needs; those of its record before it is loaded."""

    classes: int | None
    shape: Shape | None
    rows: int = 0
    """Images in one pass."""
    model_fingerprint: str = ""
    """Empty until the model is loaded."""
    data_fingerprint: str = ""
    predictions: int = 1
    """Predictions that vote on one verdict."""
    random: bool = False
    """Whether its answers are random."""
    access: Access = "gradient"
    """What it exposes."""
    detector: Detector | None = None
    """How it rejects images; None if it does not."""
    sketch: str = ""
    """Coarse description of its answers to the first images; empty if they are random."""
    modules: tuple[str, ...] | None = None
    """Names of its modules; None if unknown, as before it is loaded and of several models."""
    class_names: tuple[str, ...] = ()
    """Names of the data's classes in index order; may be empty."""
    batch_dependent: bool = False
    """Whether its answers depend on the other images of a batch."""


def find_source_facts(
    entry: AttackEntry, facts: Mapping[str, ModelFacts], judged: ModelFacts
) -> ModelFacts | None:
    """Find the facts of what the examples of an entry are crafted on.

    Args:
        entry: The attack's entry.
        facts: Label of each model -> its facts.
        judged: Facts of the judged model.

    Returns:
        Those of the source; None if the examples are crafted on the judged model.
    """
    if entry.ensemble is None:
        return facts[entry.source] if entry.source else None
    members = [facts[label] for label in entry.ensemble.models]
    loaded = all(each.model_fingerprint for each in members)
    about = [[each.model_fingerprint, each.sketch] for each in members]
    settings = [entry.ensemble.combine, entry.ensemble.weights]
    others = (each.classes for each in members if each.classes not in (None, judged.classes))
    return members[0]._replace(
        classes=next(others, judged.classes),
        rows=min(each.rows for each in members),
        model_fingerprint=_hash([about, settings]) if loaded else "",
        predictions=1,
        random=any(each.random for each in members),
        batch_dependent=any(each.batch_dependent for each in members),
        access=min((each.access for each in members), key=ACCESS_RANK.__getitem__),
        sketch="",
        detector=None,
        modules=None,
    )


def hash_cell(
    spec: AttackSpec,
    entry: AttackEntry,
    eps: float,
    facts: ModelFacts,
    source: ModelFacts | None = None,
) -> str:
    """Hash everything that can change the number of a cell.

    Args:
        spec: The attack as it runs.
        entry: The attack's entry in the suite.
        eps: Radius of the cell.
        facts: The judged model, loaded.
        source: The model that the examples are crafted on; None for the judged one.

    Returns:
        The identity, 16 hexadecimal digits.
    """
    attack, rows = spec.attack, _attacked_rows(entry, facts, source)
    return _hash(
        {
            "model": [facts.model_fingerprint, facts.sketch],
            "data": facts.data_fingerprint,
            "attack": spec.name,
            "code": _describe_code(spec.name, attack),
            "norm": spec.norm,
            # Where cells are linked, the list of eps is part of each one's number.
            "eps": [*sorted(spec.eps), eps] if are_linked(spec) else eps,
            "goal": spec.goal,
            "target": entry.target,
            **describe_target(entry, facts),
            "params": _plain_params(spec.params),
            "stop": spec.stop,
            "sweep": spec.sweep,
            "seed": spec.seed,
            "rows": rows if attack.batch_dependent else None,
            **_describe_query_batch(spec, entry),
            **({"threat": find_threat(spec.norm).version} if spec.norm not in BALLS else {}),
            **({"files": files} if (files := _hash_files(spec)) else {}),
            **({"precision": spec.precision} if spec.precision != "float32" else {}),
            **({"samples": spec.samples} if spec.samples > 1 else {}),
            **_describe_transforms(spec),
            **(
                {"adaptation": describe_adaptation(spec.adaptation)}
                if spec.adaptation is not None
                else {}
            ),
            **({"random": _random_draws(spec, entry, facts, source)} if spec.random else {}),
            # Those of any other attack are read from where its examples fell.
            **({"budgets": list(spec.budgets)} if entry.budgets and spec.budgets else {}),
            **_describe_victim_queries(spec),
            **_describe_skipped(entry),
            **({"classifier": "too"} if repeats_on_classifier(spec, facts, source) else {}),
            **({"parts": _describe_parts(spec)} if isinstance(attack, EnsembleAttack) else {}),
            # An example crafted on the judged model is that of the white-box attack.
            **(
                {"source": _describe_source(source)}
                if source is not None and source != facts
                else {}
            ),
        }
    )


def collect_settings(spec: AttackSpec, entry: AttackEntry) -> dict[str, Any]:
    """Collect what is asked of a model, independent of its weights and of the seed.

    Args:
        spec: The attack as it runs.
        entry: The attack's entry in the suite.

    Returns:
        Plain values by name, defaults included; equal for comparable cells of two runs.
    """
    settings = {
        "attack": spec.name,
        "code": _describe_code(spec.name, spec.attack),
        "norm": spec.norm,
        "goal": spec.goal,
        "target": entry.target,
        "stop": spec.stop,
        "sweep": spec.sweep,
        "precision": spec.precision,
        "samples": spec.samples,
        "predictions": spec.predictions,
        "source": entry.source,
        **{f"params.{name}": value for name, value in _plain_params(spec.params).items()},
        **({} if spec.adaptation is None else describe_adaptation(spec.adaptation)),
        **{f"file {at}": content for at, content in enumerate(_hash_files(spec), start=1)},
        # An eps inherits the successes of smaller ones, so all of them belong to the settings.
        **({"eps": sorted(spec.eps)} if spec.sweep == "nested" else {}),
        **({"ensemble": dataclasses.asdict(entry.ensemble)} if entry.ensemble else {}),
        **_describe_transforms(spec),
        **_describe_victim_queries(spec),
        **_describe_skipped(entry),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings, sort_keys=True, default=str))
    return plain


def are_linked(spec: AttackSpec) -> bool:
    """Return whether the outcome at one eps depends on which other eps run.

    Args:
        spec: The attack as it runs.

    Returns:
        True if one gradient, one search or inherited successes serve several eps.
    """
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    one_gradient = rule is not None and rule.one_gradient
    nested = spec.sweep == "nested"
    # A random model draws for all rows of a batch at once, across eps.
    return spec.attack.budget == "minimum" or nested or one_gradient or spec.random


def describe_target(entry: AttackEntry, facts: ModelFacts) -> dict[str, int]:
    """Describe the target class where the names of the data's classes decide or hide its index.

    Args:
        entry: The attack's entry.
        facts: The judged model, loaded.

    Returns:
        The index as "class"; empty for a rule, and where a number can be nothing but an index.
    """
    named = find_named_classes(str(entry.target), facts.class_names)
    if not named or str(named[0]) == str(entry.target):
        return {}
    return {"class": named[0] if isinstance(entry.target, str) else int(entry.target or 0)}


def repeats_on_classifier(spec: AttackSpec, facts: ModelFacts, source: ModelFacts | None) -> bool:
    """Return whether what resists an attack is attacked again without the model's detector.

    Args:
        spec: The attack as it runs.
        facts: The judged model.
        source: The model that the examples are crafted on; None for the judged one.

    Returns:
        True where a rejection counts as an error and the attack knows the detector.
    """
    errs = facts.detector is not None and facts.detector.rejected == "error"
    return errs and source in (None, facts) and attacks_classifier_too(spec)


def _random_draws(
    spec: AttackSpec, entry: AttackEntry, facts: ModelFacts, source: ModelFacts | None
) -> dict[str, int]:
    """Return what, besides the seed, decides the draws of a random model.

    These are the number of predictions and the rows of a batch, attacked and judged.
    """
    attacked = _attacked_rows(entry, facts, source)
    return {"predictions": spec.predictions, "attacked": attacked, "judged": facts.rows}


def _attacked_rows(entry: AttackEntry, facts: ModelFacts, source: ModelFacts | None) -> int:
    """Return the rows per pass of the attack: those of its entry, else those of its model."""
    return entry.batch_size or (source or facts).rows


def _describe_query_batch(spec: AttackSpec, entry: AttackEntry) -> dict[str, int]:
    """Return the entry's batch size where it decides whether queries are counted.

    An attack with a loop of its own is counted on one example at a time alone.
    """
    counts = isinstance(spec.attack, ExternalAttack) and asks(spec.attack, spec.norm)
    return {"counted": 1} if counts and entry.batch_size == 1 else {}


def _describe_source(source: ModelFacts) -> list[str]:
    """Describe the model that is crafted on; of one with a detector, the classifier is."""
    about = [source.model_fingerprint, source.sketch]
    return about if source.detector is None else [*about, "classifier"]


def _describe_transforms(spec: AttackSpec) -> dict[str, Any]:
    """Return the transformations at every gradient, if there are any."""
    return {} if spec.transforms is None else {"transforms": dataclasses.asdict(spec.transforms)}


def _describe_victim_queries(spec: AttackSpec) -> dict[str, int]:
    """Return the budget of queries of the victim, if there is one."""
    return {"victim_queries": spec.victim_queries} if spec.victim_queries else {}


def _describe_skipped(entry: AttackEntry) -> dict[str, list[Any]]:
    """Return whose certified examples are not attacked, if any are skipped."""
    methods = sorted(entry.skip_certified)
    return {"skip_certified": [*methods, CERTIFICATION_VERSION]} if methods else {}


def _hash_files(spec: AttackSpec) -> list[str]:
    """Return the SHA-256 of each file that the attack reads."""
    return [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in spec.attack.reads(spec.params)
    ]


def _plain_params(params: Any) -> dict[str, Any]:
    """Return the type name and the fields of a params dataclass."""
    fields = {
        field.name: getattr(params, field.name)
        for field in dataclasses.fields(params)
        if not (field.metadata.get(UNLESS_DEFAULT) and getattr(params, field.name) == field.default)
    }
    return {"type": type(params).__qualname__, **fields}


def _describe_parts(spec: AttackSpec) -> list[dict[str, Any]]:
    """Return name, code and params of each attack of an ensemble."""
    assert isinstance(spec.attack, EnsembleAttack)
    return [
        {
            "name": part.name,
            "code": _describe_code(part.name, part.attack),
            "params": _plain_params(part.params),
        }
        for part in spec.attack.parts(spec.params, spec.norm)
    ]


def _describe_code(name: str, attack: Attack) -> str:
    """Return the versions of bench's code and of the attack's library, and a user's code hash."""
    text = f"version {attack.version}, numerics {NUMERICS_VERSION}, judge {JUDGE_VERSION}"
    if attack.implementation != "bench":
        library = attack.distribution or attack.implementation
        with contextlib.suppress(metadata.PackageNotFoundError):
            text += f", {library} {metadata.version(library)}"
    if _is_built_in(name, attack):
        return text
    run = attack.run if isinstance(attack, ExternalAttack) else None
    parts = attack.parts if isinstance(attack, EnsembleAttack) else None
    rule = attack.rule if isinstance(attack, IterativeAttack) else None
    functions = [attack.params, run, parts, rule]
    if origin := registry.origin("attacks", name):
        text += f", {origin}"
    return f"{text}, code {_hash([describe_value(each) for each in functions])}"


def _is_built_in(name: str, attack: Attack) -> bool:
    """Return whether this is the attack that bench itself registers under the name."""
    if not registry.built_in("attacks", name):
        return False
    if ":" in name:  # an adapter makes a library's attack anew each time
        return True
    with contextlib.suppress(SuiteError):
        return registry.find("attacks", name) is attack
    return False


def _hash(value: Any) -> str:
    """Hash plain values; the same content has the same hash on every machine."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
