"""Why two attacks may disagree: each suspicion is a change of one side towards the other, to be
tried.

What is known to differ comes first: what both sides declare (params, traits, stop), and what the
reference was seen to do: where it first asked for a gradient, how far its first step went, how
many it made. Where nothing tells, what ours could do otherwise is guessed: each other value of a
choice, and models that return something else than logits. Every change is a function from one
setup to the next, so that changes can be joined.

Success itself is no suspect: both sides attack the same examples, all of which the model gets right
without attack, and one judge counts; what is left of counting are images that break the threat
model, or that are rounded to 8 bits.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pandas as pd
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from bench.analysis.crosscheck import SAME_PIXEL, TRAITS
from bench.core.contracts.attack import AttackSpec
from bench.core.contracts.parameters import step_size
from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine.functional.norms import per_row
from bench.engine.tensor_tree import map_tensors
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.workflows.explain.setups import Observed, Setup

FIRST = ("loss", "alpha", "steps", "restarts")
"""Parameters that are tried in this order, before any others."""
SAME_STEP = 1e-4
"""Two step sizes are the same if they differ by less than this share: traits round to six digits,
and so does a step that is measured on float32 images."""


class Change(NamedTuple):
    """One suspicion."""

    trait: str
    text: str
    apply: Callable[[Setup], Setup]


class Untried(NamedTuple):
    """A difference that ours has no way to take on."""

    text: str


def known(setup: Setup, ours: Observed, reference: Observed) -> Iterator[Change | Untried]:
    """What is declared or was seen to differ, in the order of trying."""
    yield from _start(setup, ours, reference)
    yield from _settings(setup, reference)
    yield from _untold(setup)
    yield from _stop(setup)
    yield from _precision(setup)
    yield from _counting(ours, reference)


def guesses(setup: Setup, reference: Observed) -> Iterator[Change]:
    """What ours could do otherwise where nothing says what the reference does."""
    curve = setup.ours.spec
    for name, hint in _fields(curve.params):
        current = getattr(curve.params, name)
        if _wanted(name, setup, reference) is None:
            yield from (
                _set(name, value, f"{value} instead of {current}")
                for value in _choices(hint)
                if value != current
            )
    if _has_stop(curve) and _stop_of(setup.reference.spec) is None:
        yield _stopping("first-success" if curve.stop == "never" else "never", curve.stop)
    yield Change("outputs", "outputs: ours loses on probabilities, not logits", _softmax)
    yield Change("outputs", "outputs: the reference is given log-probabilities", _log_softmax)
    yield Change("outputs", "outputs: the reference is given logits above 0", _raised)


# -------------------------------------------------------------------------------- where it starts


def _start(setup: Setup, ours: Observed, reference: Observed) -> Iterator[Change | Untried]:
    if ours.start is None or reference.start is None:
        return
    if ours.start.shape != reference.start.shape:
        return
    if float((ours.start - reference.start).abs().max()) <= SAME_PIXEL:
        return
    told = declared(setup.reference.spec).get("start", "as it was seen to start")
    yield Change("start", f"start: the reference's own points ({told})", _from(reference.start))


def _from(start: Tensor) -> Callable[[Setup], Setup]:
    """Ours begins at `start` (n, c, h, w), by example; its restarts begin where they did."""

    def apply(setup: Setup) -> Setup:
        attack = setup.ours.spec.attack
        rule = attack.rule
        assert rule is not None

        def init(items: AttackBatch, noise: Noise, params: Any, norm: Norm) -> Any:
            state = rule.init(items, noise, params, norm)
            given = start[noise.examples.to(start.device)].to(state.x)
            x = torch.where(per_row(items.restart == 0, state.x), given, state.x)
            # What is still the start itself, such as the best iterate so far, moves with it.
            return map_tensors(lambda field: x if field is state.x else field, state)

        moved = dataclasses.replace(rule, init=init, one_gradient=False)
        return _curve(setup, attack=dataclasses.replace(attack, rule=moved))

    return apply


# --------------------------------------------------------------------------------- its parameters


def _settings(setup: Setup, reference: Observed) -> Iterator[Change | Untried]:
    """One change for each parameter of ours whose value the reference is known not to share."""
    params = setup.ours.spec.params
    for name, hint in _fields(params):
        raw = _wanted(name, setup, reference)
        if raw is None:
            continue
        mine = _absolute(setup.ours.spec) if name == "alpha" else getattr(params, name)
        value = _parsed(raw, mine, hint)
        if value is None:
            yield Untried(f"{_word(name)}: {raw}, which ours cannot take on")
        elif not _same(value, mine):
            shown = (f"{each:.6g}" if isinstance(each, float) else each for each in (value, mine))
            text = "{} instead of {}".format(*shown)
            grows = name != "alpha" or not _fixed(setup)
            yield _set(name, value, text if grows else f"{text}; it does not grow with eps")


def _fields(params: Any) -> list[tuple[str, Any]]:
    """Name and annotation of each parameter, in the order of trying."""
    hints = get_type_hints(type(params), include_extras=True)
    names = [field.name for field in dataclasses.fields(params)]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return [(name, hints[name]) for name in names]


def _wanted(name: str, setup: Setup, reference: Observed) -> Any:
    """The reference's value of a parameter of ours: declared as a trait, its own parameter of that
    name, or as it was seen; None if nothing tells."""
    curve = setup.reference.spec
    hint = dict(_fields(setup.ours.spec.params))[name]
    told = declared(curve).get(name)
    if told is not None and (not _choices(hint) or told in _choices(hint)):
        return told
    if name == "alpha":
        return _absolute(curve) if hasattr(curve.params, name) else reference.alpha
    own = getattr(curve.params, name, None)
    if own is not None and (not _choices(hint) or own in _choices(hint)):
        return own
    return reference.steps if name == "steps" else None


def declared(curve: AttackSpec, times: float = 1.0) -> Mapping[str, str]:
    """The traits of the curve's attack at its eps, or so many times it."""
    return curve.attack.traits(curve.params, curve.norm, times * curve.eps[0])


def _absolute(curve: AttackSpec) -> float:
    return float(step_size(curve.params.alpha, curve.eps[0], getattr(curve.params, "steps", 1)))


def _fixed(setup: Setup) -> bool:
    """Whether the reference's step size is the same at twice the eps, and ours is not."""
    ours, reference = (
        [declared(side.spec, times).get("alpha") for times in (1.0, 2.0)]
        for side in (setup.ours, setup.reference)
    )
    return reference[0] is not None and reference[0] == reference[1] and ours[0] != ours[1]


def _parsed(raw: Any, mine: Any, hint: Any) -> Any:
    """`raw` as a value of ours, whose own is `mine`; None if it can be none."""
    try:
        if isinstance(raw, str) and isinstance(mine, int | float):
            raw = type(mine)(raw)
        return TypeAdapter(hint).validate_python(raw, strict=True)
    except (ValidationError, ValueError):
        return None


def _same(value: Any, mine: Any) -> bool:
    if isinstance(value, float) and isinstance(mine, float):
        return math.isclose(value, mine, rel_tol=SAME_STEP)
    return bool(value == mine)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The values of a parameter that has but a few."""
    if hint is bool:
        return (True, False)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _word(name: str) -> str:
    return TRAITS.get(name, name)


def _set(name: str, value: Any, text: str) -> Change:
    def apply(setup: Setup) -> Setup:
        return _curve(setup, params=dataclasses.replace(setup.ours.spec.params, **{name: value}))

    return Change(name, f"{_word(name)}: {text}", apply)


def _curve(setup: Setup, **values: Any) -> Setup:
    curve = dataclasses.replace(setup.ours.spec, **values)
    return setup._replace(ours=setup.ours._replace(spec=curve))


def _untold(setup: Setup) -> Iterator[Untried]:
    """Traits that differ and are no parameter of ours."""
    mine, theirs = declared(setup.ours.spec), declared(setup.reference.spec)
    names = {name for name, _ in _fields(setup.ours.spec.params)} | {"start", "stop"}
    for name, told in theirs.items():
        if name not in names and mine.get(name, told) != told:
            yield Untried(f"{_word(name)}: {told}, for which ours has no parameter")


# ------------------------------------------------------------------------------ stop and precision


def _has_stop(curve: AttackSpec) -> bool:
    return curve.attack.run is None and curve.attack.budget == "fixed"


def _stop_of(curve: AttackSpec) -> str | None:
    return curve.stop if _has_stop(curve) else declared(curve).get("stop")


def _stop(setup: Setup) -> Iterator[Change]:
    mine, theirs = setup.ours.spec.stop, _stop_of(setup.reference.spec)
    if _has_stop(setup.ours.spec) and theirs in ("first-success", "never") and theirs != mine:
        yield _stopping(theirs, mine)


def _stopping(rule: str, instead: str) -> Change:
    text = f"{TRAITS['stop']}: {rule} instead of {instead}"
    return Change("stop", text, lambda setup: _curve(setup, stop=rule))


def _precision(setup: Setup) -> Iterator[Change]:
    precision = setup.ours.spec.precision
    if precision != "float32":
        text = f"{TRAITS['precision']}: float32 instead of {precision}"
        yield Change("precision", text, lambda setup: _curve(setup, precision="float32"))


def _in_double(setup: Setup) -> Setup:
    """Our gradients in float64; iterates and verdicts stay in float32."""
    setup = _curve(setup, precision="float32")
    return setup._replace(ours=setup.ours._replace(double=True))


DOUBLE = Change("precision", f"{TRAITS['precision']}: float64 on our side", _in_double)
"""Tried always: nobody declares what float32 rounds away."""


# ----------------------------------------------------------------------- what the model hands out


def _softmax(setup: Setup) -> Setup:
    """What a loss on logits makes of probabilities: it flattens."""
    return setup._replace(ours=setup.ours._replace(then=_probabilities))


def _log_softmax(setup: Setup) -> Setup:
    """For a reference whose loss is the negative log-likelihood of what it is given."""
    return setup._replace(reference=setup.reference._replace(then=_log_probabilities))


def _raised(setup: Setup) -> Setup:
    """For a reference that masks a logit with 0 to leave it out of a maximum, which fails where the
    others lie below 0, as log-probabilities do; a sound loss does not notice."""
    return setup._replace(reference=setup.reference._replace(then=_above_zero))


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(1)


def _above_zero(logits: Tensor) -> Tensor:
    return logits - logits.amin(1, keepdim=True).detach()


# ---------------------------------------------------------------------------------- how it counts


def _unverified(records: pd.DataFrame) -> Outcomes:
    """Robust if the prediction stood, whether or not the image kept the attack's promise."""
    return metrics.robust_examples(records.assign(violation=""))


def _counting(ours: Observed, reference: Observed) -> Iterator[Change]:
    if ours.violations or reference.violations:
        yield Change(
            "counting",
            "counting: images that break the threat model count as they fall",
            lambda setup: setup._replace(count_ours=_unverified, count_reference=_unverified),
        )
    if reference.levels and not ours.levels:
        yield Change(
            "counting",
            "counting: our images, too, rounded to 8 bits",
            lambda setup: setup._replace(count_ours=metrics.robust_examples_8bit),
        )
