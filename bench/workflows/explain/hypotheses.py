"""List hypotheses why two attacks disagree: changes of one side towards the other.

Known differences come first: those that both sides declare (params, traits, stop), and those
observed of the reference (start, first step, number of gradients). Where neither is known, other
values of a choice and models that return something other than logits are guessed. Each change is a
function from setup to setup, so that changes can be combined.

The definition of success is no hypothesis: both sides attack the same correctly classified examples
and are judged alike. Counting can differ only by images that break the threat model or are rounded
to 8 bits.
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
from bench.core.contracts.attack import AttackSpec, ExternalAttack, IterativeAttack
from bench.core.contracts.parameters import step_size
from bench.core.contracts.rule import AttackBatch
from bench.core.contracts.types import Norm
from bench.core.rng import Noise
from bench.engine.functional.norms import per_row
from bench.engine.tensor_tree import map_tensors
from bench.evaluation import metrics
from bench.evaluation.metrics import Outcomes
from bench.workflows.explain.experiments import ExperimentSetup, ObservedBehaviour

FIRST = ("loss", "alpha", "steps", "restarts")
"""Parameters tried first, in this order."""
SAME_STEP = 1e-4
"""Relative tolerance of equal step sizes: traits, and steps measured on float32 images, are rounded
to about six digits."""


class Hypothesis(NamedTuple):
    """A change that may explain the disagreement."""

    trait: str
    text: str
    apply: Callable[[ExperimentSetup], ExperimentSetup]


class UntestedDifference(NamedTuple):
    """A difference that our side cannot adopt."""

    text: str


def list_known_differences(
    setup: ExperimentSetup, ours: ObservedBehaviour, reference: ObservedBehaviour
) -> Iterator[Hypothesis | UntestedDifference]:
    """List declared and observed differences, in the order of testing.

    Args:
        setup: Both sides.
        ours: Observations of our side.
        reference: Observations of the reference.

    Yields:
        Hypotheses, and differences that cannot be tested.
    """
    yield from _start(setup, ours, reference)
    yield from _settings(setup, reference)
    yield from _list_unmatched_traits(setup)
    yield from _stop(setup)
    yield from _precision(setup)
    yield from _counting(ours, reference)


def list_guesses(setup: ExperimentSetup, reference: ObservedBehaviour) -> Iterator[Hypothesis]:
    """List possible differences where the reference's behaviour is unknown.

    Args:
        setup: Both sides.
        reference: Observations of the reference.

    Yields:
        Hypotheses.
    """
    spec = setup.ours.spec
    for name, hint in _fields(spec.params):
        current = getattr(spec.params, name)
        if _reference_value(name, setup, reference) is None:
            yield from (
                _set(name, value, f"{value} instead of {current}")
                for value in _choices(hint)
                if value != current
            )
    if _has_stop(spec) and _stop_of(setup.reference.spec) is None:
        yield _set_stop("first-success" if spec.stop == "never" else "never", spec.stop)
    yield Hypothesis("outputs", "outputs: ours loses on probabilities, not logits", _softmax)
    yield Hypothesis("outputs", "outputs: the reference is given log-probabilities", _log_softmax)
    yield Hypothesis("outputs", "outputs: the reference is given logits above 0", _shift_above_zero)


# -------------------------------------------------------------------------------- start


def _start(
    setup: ExperimentSetup, ours: ObservedBehaviour, reference: ObservedBehaviour
) -> Iterator[Hypothesis | UntestedDifference]:
    if ours.start is None or reference.start is None:
        return
    if ours.start.shape != reference.start.shape:
        return
    if float((ours.start - reference.start).abs().max()) <= SAME_PIXEL:
        return
    trait = declared_traits(setup.reference.spec).get("start", "as observed")
    yield Hypothesis(
        "start", f"start: the reference's own points ({trait})", _start_at(reference.start)
    )


def _start_at(start: Tensor) -> Callable[[ExperimentSetup], ExperimentSetup]:
    """Start ours at `start` (n, c, h, w), indexed by example; further restarts are unchanged."""

    def apply(setup: ExperimentSetup) -> ExperimentSetup:
        attack = setup.ours.spec.attack
        assert isinstance(attack, IterativeAttack)
        rule = attack.rule

        def init(items: AttackBatch, noise: Noise, params: Any, norm: Norm) -> Any:
            state = rule.init(items, noise, params, norm)
            given = start[noise.examples.to(start.device)].to(state.x)
            x = torch.where(per_row(items.restart == 0, state.x), given, state.x)
            # State that aliases the start, such as the best iterate, is replaced as well.
            return map_tensors(lambda field: x if field is state.x else field, state)

        moved = dataclasses.replace(rule, init=init, one_gradient=False)
        return _change_spec(setup, attack=dataclasses.replace(attack, rule=moved))

    return apply


# --------------------------------------------------------------------------------- parameters


def _settings(
    setup: ExperimentSetup, reference: ObservedBehaviour
) -> Iterator[Hypothesis | UntestedDifference]:
    """List a change for each parameter of ours that is known to differ."""
    params = setup.ours.spec.params
    for name, hint in _fields(params):
        raw = _reference_value(name, setup, reference)
        if raw is None:
            continue
        mine = _absolute_step(setup.ours.spec) if name == "alpha" else getattr(params, name)
        value = _convert(raw, mine, hint)
        if value is None:
            yield UntestedDifference(f"{_word(name)}: {raw}, which ours cannot adopt")
        elif not _same(value, mine):
            shown = (f"{each:.6g}" if isinstance(each, float) else each for each in (value, mine))
            text = "{} instead of {}".format(*shown)
            grows = name != "alpha" or not _has_fixed_step(setup)
            yield _set(name, value, text if grows else f"{text}; it does not grow with eps")


def _fields(params: Any) -> list[tuple[str, Any]]:
    """Return name and annotation of each parameter, in the order of testing."""
    hints = get_type_hints(type(params), include_extras=True)
    names = [field.name for field in dataclasses.fields(params)]
    names.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return [(name, hints[name]) for name in names]


def _reference_value(name: str, setup: ExperimentSetup, reference: ObservedBehaviour) -> Any:
    """Return the reference's value of a parameter: a trait, its own parameter, or observed."""
    spec = setup.reference.spec
    hint = dict(_fields(setup.ours.spec.params))[name]
    trait = declared_traits(spec).get(name)
    if trait is not None and (not _choices(hint) or trait in _choices(hint)):
        return trait
    if name == "alpha":
        return _absolute_step(spec) if hasattr(spec.params, name) else reference.alpha
    own = getattr(spec.params, name, None)
    if own is not None and (not _choices(hint) or own in _choices(hint)):
        return own
    return reference.steps if name == "steps" else None


def declared_traits(spec: AttackSpec, times: float = 1.0) -> Mapping[str, str]:
    """Return the traits that an attack declares.

    Args:
        spec: Attack at one eps.
        times: Factor on the eps.

    Returns:
        Trait -> value.
    """
    return spec.attack.traits(spec.params, spec.norm, times * spec.eps[0])


def _absolute_step(spec: AttackSpec) -> float:
    return float(step_size(spec.params.alpha, spec.eps[0], getattr(spec.params, "steps", 1)))


def _has_fixed_step(setup: ExperimentSetup) -> bool:
    """Return whether only the reference's step size is independent of eps."""
    ours, reference = (
        [declared_traits(side.spec, times).get("alpha") for times in (1.0, 2.0)]
        for side in (setup.ours, setup.reference)
    )
    return reference[0] is not None and reference[0] == reference[1] and ours[0] != ours[1]


def _convert(raw: Any, mine: Any, hint: Any) -> Any:
    """Convert `raw` to a value of our parameter; None if that is impossible."""
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
    """Return the values of an enumerated parameter; empty for others."""
    if hint is bool:
        return (True, False)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _word(name: str) -> str:
    return TRAITS.get(name, name)


def _set(name: str, value: Any, text: str) -> Hypothesis:
    def apply(setup: ExperimentSetup) -> ExperimentSetup:
        return _change_spec(
            setup, params=dataclasses.replace(setup.ours.spec.params, **{name: value})
        )

    return Hypothesis(name, f"{_word(name)}: {text}", apply)


def _change_spec(setup: ExperimentSetup, **values: Any) -> ExperimentSetup:
    spec = dataclasses.replace(setup.ours.spec, **values)
    return setup._replace(ours=setup.ours._replace(spec=spec))


def _list_unmatched_traits(setup: ExperimentSetup) -> Iterator[UntestedDifference]:
    """List traits that differ and are no parameter of ours."""
    mine, theirs = declared_traits(setup.ours.spec), declared_traits(setup.reference.spec)
    names = {name for name, _ in _fields(setup.ours.spec.params)} | {"start", "stop"}
    for name, value in theirs.items():
        if name not in names and mine.get(name, value) != value:
            yield UntestedDifference(f"{_word(name)}: {value}, for which ours has no parameter")


# ------------------------------------------------------------------------------ stop and precision


def _has_stop(spec: AttackSpec) -> bool:
    return not isinstance(spec.attack, ExternalAttack) and spec.attack.budget == "fixed"


def _stop_of(spec: AttackSpec) -> str | None:
    return spec.stop if _has_stop(spec) else declared_traits(spec).get("stop")


def _stop(setup: ExperimentSetup) -> Iterator[Hypothesis]:
    mine, theirs = setup.ours.spec.stop, _stop_of(setup.reference.spec)
    if _has_stop(setup.ours.spec) and theirs in ("first-success", "never") and theirs != mine:
        yield _set_stop(theirs, mine)


def _set_stop(rule: str, instead: str) -> Hypothesis:
    text = f"{TRAITS['stop']}: {rule} instead of {instead}"
    return Hypothesis("stop", text, lambda setup: _change_spec(setup, stop=rule))


def _precision(setup: ExperimentSetup) -> Iterator[Hypothesis]:
    precision = setup.ours.spec.precision
    if precision != "float32":
        text = f"{TRAITS['precision']}: float32 instead of {precision}"
        yield Hypothesis("precision", text, lambda setup: _change_spec(setup, precision="float32"))


def _use_double(setup: ExperimentSetup) -> ExperimentSetup:
    """Compute our gradients in float64; iterates and outcomes stay float32."""
    setup = _change_spec(setup, precision="float32")
    return setup._replace(ours=setup.ours._replace(double=True))


DOUBLE = Hypothesis("precision", f"{TRAITS['precision']}: float64 on our side", _use_double)
"""Tested always: no attack declares its rounding errors."""


# ----------------------------------------------------------------------- outputs of the model


def _softmax(setup: ExperimentSetup) -> ExperimentSetup:
    """Apply our loss to probabilities, which flattens it."""
    return setup._replace(ours=setup.ours._replace(then=_probabilities))


def _log_softmax(setup: ExperimentSetup) -> ExperimentSetup:
    """Give log-probabilities to a reference whose loss is a negative log-likelihood."""
    return setup._replace(reference=setup.reference._replace(then=_log_probabilities))


def _shift_above_zero(setup: ExperimentSetup) -> ExperimentSetup:
    """Give logits above 0 to a reference that masks a logit with 0 to exclude it from a maximum.

    Such a mask fails if the other logits are below 0; a correct loss is invariant to the shift.
    """
    return setup._replace(reference=setup.reference._replace(then=_above_zero))


def _probabilities(logits: Tensor) -> Tensor:
    return logits.softmax(1)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(1)


def _above_zero(logits: Tensor) -> Tensor:
    return logits - logits.amin(1, keepdim=True).detach()


# ---------------------------------------------------------------------------------- counting


def _unverified(records: pd.DataFrame) -> Outcomes:
    """Count by the prediction alone, including images that break the threat model."""
    return metrics.robust_examples(records.assign(violation=""))


def _counting(ours: ObservedBehaviour, reference: ObservedBehaviour) -> Iterator[Hypothesis]:
    if ours.violations or reference.violations:
        yield Hypothesis(
            "counting",
            "counting: images that break the threat model count as they fall",
            lambda setup: setup._replace(count_ours=_unverified, count_reference=_unverified),
        )
    if reference.levels and not ours.levels:
        yield Hypothesis(
            "counting",
            "counting: our images, too, rounded to 8 bits",
            lambda setup: setup._replace(count_ours=metrics.robust_examples_8bit),
        )
