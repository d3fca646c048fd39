"""Probe a model: look for symptoms in a few gradients at a few examples.

Each model of a run is probed once, on its first correct examples, after the cells are done; the
result is stored in provenance.json, so that a report needs no model. The thresholds are chosen so
that a net without a defence shows no symptom.
Source: stated with each symptom of `bench.evaluation.audit.symptoms`.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from statistics import median_low
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bench.core import rng
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.parameters import step_size
from bench.core.contracts.types import Loss, Threat
from bench.engine import stream, tensor_tree
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional import gradients, norms, projections
from bench.engine.functional.logits import predict_class, widen
from bench.engine.functional.losses import make_objective
from bench.engine.model_state import frozen
from bench.engine.rejection import merge_rejection, spare_rejected, spares_rejected
from bench.evaluation.audit import gradient_check, symptoms
from bench.evaluation.audit.symptoms import ObservedSymptom, Symptom
from bench.models.preflight.logit_checks import BATCH, RANDOM, are_probabilities

MIN_EXAMPLES, MAX_EXAMPLES, EXAMPLES_PER_PROBE = 16, 64, 32
"""One of EXAMPLES_PER_PROBE examples is probed, within these limits; of a thousand images of MNIST
this takes 1/150 of the run's time. Of sixteen, eight can still differ from the rest."""
STEPS, REACH = 10, 2.5
"""Steps of the probes' own ascent, and the sum of their lengths, in eps."""
CUBE_STEPS, CUBE_STEP_SIZE = 40, 0.1
"""Steps in the unit cube and their length: together four times its width."""
GRADIENTS_PER_EXAMPLE = 2 + STEPS + CUBE_STEPS
"""Gradients that the probes of one example take, besides the traces."""
REPETITIONS = 3
"""Times that the same images are predicted again."""
SIGNIFICANCE_LEVEL = 0.01
"""p-value of the exact paired test below which two outcomes differ: eight to none."""
MIN_AFFECTED, MIN_AFFECTED_SHARE = 3, 0.1
"""Effects that single examples show by chance are a symptom from so many and this share on."""

MODEL_SYMPTOMS = (
    symptoms.PROBABILITY_OUTPUT, symptoms.INFERENCE_OPTIMISATION, symptoms.UNSTABLE_PREDICTIONS,
    symptoms.BATCH_DEPENDENCE, symptoms.NO_GRADIENT, symptoms.SATURATED_LOSS,
    symptoms.UNCONSTRAINED_FAILURE, symptoms.WRONG_GRADIENT,
)  # fmt: skip
"""What every model is probed for."""
NOISY_OUTPUTS = {symptoms.UNSTABLE_PREDICTIONS.name, symptoms.BATCH_DEPENDENCE.name}
"""Symptoms of outputs that depend on chance or the batch, whose slope cannot be measured."""
TRACE_SYMPTOMS = (symptoms.FLAT_LOSS, symptoms.INCOMPLETE_OPTIMISATION)
"""What each of bench's own iterated gradient attacks is probed for."""


class ProbedModel(NamedTuple):
    """A model and the examples that it is probed on, all classified correctly."""

    label: str
    model: nn.Module
    id: Tensor
    """(n,), int64"""
    x: Tensor
    """(n, c, h, w) in [0, 1]"""
    y: Tensor
    """(n,), int64"""
    rows: int
    """Rows per pass."""


class _Ascent(NamedTuple):
    """The result of a steepest ascent; every field is per row."""

    x: Tensor
    blind: Tensor
    """Whether the gradient of an unsuccessful iterate was zero or not finite."""
    fooled: Tensor


def probe_model(
    probed: ProbedModel, threat: Threat, specs: Mapping[str, AttackSpec]
) -> list[ObservedSymptom]:
    """Look for symptoms in a model's predictions, gradients and traces; the model is not changed.

    Args:
        probed: The model and its examples.
        threat: Threat model of the probes.
        specs: Attacks by label to be traced, for which `is_traceable` holds.

    Returns:
        The symptoms found.
    """
    with frozen(probed.model), allow_tf32(False), rng.seed_global("probes", probed.label):
        found = [*_check_predictions(probed), *_check_ascents(probed, threat)]
        if not NOISY_OUTPUTS & {symptom.name for symptom in found}:
            found += check_gradients(probed)
        for label, spec in specs.items():
            found += _check_trace(probed, label, spec)
    return found


def is_traceable(spec: AttackSpec) -> bool:
    """Check whether `probe_model` can trace an attack.

    Args:
        spec: The attack as planned.

    Returns:
        True for an untargeted iterated gradient attack of fixed budget that is a rule.
    """
    attack, steps = spec.attack, getattr(spec.params, "steps", 1)
    rule = attack.rule if isinstance(attack, IterativeAttack) else None
    own = rule is not None and not rule.seeks and rule.aims is None
    several = "steps" in _fields(spec.params) and steps > 1 and max(spec.eps) > 0
    return own and several and spec.attack.needs == "gradient" and spec.goal == "untargeted"


def count_examples(n: int) -> int:
    """Choose how many examples are probed.

    Args:
        n: Examples of the data set.

    Returns:
        Their number.
    """
    return min(n, MAX_EXAMPLES, max(MIN_EXAMPLES, n // EXAMPLES_PER_PROBE))


# ---------------------------------------------------------------------------------- what it answers


class _GradientWatch(TorchFunctionMode):
    """Records whether a gradient is computed inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.computed = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asking = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        self.computed |= func in asking
        return func(*args, **(kwargs or {}))


def _check_predictions(probed: ProbedModel) -> Iterator[ObservedSymptom]:
    """Look for symptoms in the logits of clean images."""
    with _GradientWatch() as watch:
        logits = _logits(probed, probed.x)
    everything = torch.ones_like(probed.y, dtype=torch.bool)
    if watch.computed:
        evidence = "torch was asked for a gradient while the model predicted"
        yield _observe(
            probed, symptoms.INFERENCE_OPTIMISATION, everything, evidence, "any gradient"
        )
    if are_probabilities(logits):
        evidence = "each row of the output is positive and sums to 1"
        yield _observe(probed, symptoms.PROBABILITY_OUTPUT, everything, evidence, "all rows")
    scale = logits.abs().max()
    again = torch.stack([_logits(probed, probed.x) for _ in range(REPETITIONS)])
    differs = (again - logits).abs().amax((0, 2)) > RANDOM * scale
    if differs.any():
        other = (predict_class(again) != predict_class(logits)).any(0)
        evidence = f"asked {REPETITIONS + 1} times, {int(other.sum())} images get another label"
        limit = f"a logit that differs by more than {RANDOM:g} of the largest"
        yield _observe(probed, symptoms.UNSTABLE_PREDICTIONS, differs, evidence, limit)
        return
    alone = torch.cat([_logits(probed, row[None]) for row in probed.x])
    differs = (alone - logits).abs().amax(1) > BATCH * scale
    if differs.any():
        other = predict_class(alone) != predict_class(logits)
        evidence = f"asked one by one, {int(other.sum())} images get another label"
        limit = f"a logit that differs by more than {BATCH:g} of the largest"
        yield _observe(probed, symptoms.BATCH_DEPENDENCE, differs, evidence, limit)


def _logits(probed: ProbedModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([widen(probed.model(part)) for part in x.split(probed.rows)])


# ----------------------------------------------------------------------------- where gradients lead


def _check_ascents(probed: ProbedModel, threat: Threat) -> Iterator[ObservedSymptom]:
    """Look for symptoms in gradients at clean images and along short ascents from them."""
    rounded = _ascend(probed, threat, 1, threat.eps, "cross-entropy")
    exact = _ascend(probed, threat, 1, threat.eps, "margin")
    many = _ascend(probed, threat, STEPS, REACH * threat.eps / STEPS, "margin")
    blind = exact.blind | many.blind
    if blind.any():
        evidence = f"the margin's gradient vanishes or is not finite on the way of {STEPS} steps"
        yield _observe(probed, symptoms.NO_GRADIENT, blind, evidence, "1 example", threat)
    yield from _check_saturation(probed, threat, rounded, exact)
    if len(probed.y.unique()) > 1:  # else no ball need hold an image of another class
        cube = Threat(norm="linf", eps=1.0)
        left = ~_ascend(probed, cube, CUBE_STEPS, CUBE_STEP_SIZE, "margin").fooled
        if _are_many(left):
            evidence = f"{CUBE_STEPS} steps along the margin's gradient leave them correct at eps 1"
            yield _observe(
                probed, symptoms.UNCONSTRAINED_FAILURE, left, evidence, _threshold(), cube
            )


def _check_saturation(
    probed: ProbedModel, threat: Threat, rounded: _Ascent, exact: _Ascent
) -> Iterator[ObservedSymptom]:
    """Compare one step along cross-entropy (`rounded`) with one along the margin (`exact`)."""
    vanished = rounded.blind & ~exact.blind
    gained, lost = exact.fooled & ~rounded.fooled, rounded.fooled & ~exact.fooled
    if not vanished.any() and not _holds_more_often(exact.fooled, rounded.fooled):
        return
    evidence = (
        f"the gradient vanishes under cross-entropy alone on {int(vanished.sum())}; one step along "
        f"the margin breaks {int(gained.sum())} that one along cross-entropy does not, the other "
        f"way round {int(lost.sum())}"
    )
    limit = f"1 vanished gradient, or exact paired test p < {SIGNIFICANCE_LEVEL:g}"
    yield _observe(probed, symptoms.SATURATED_LOSS, vanished | gained, evidence, limit, threat)


def _ascend(probed: ProbedModel, threat: Threat, steps: int, length: float, loss: Loss) -> _Ascent:
    """Ascend the loss steepest from each example until the model is fooled."""
    found: _Ascent | None = None
    for x, y in zip(probed.x.split(probed.rows), probed.y.split(probed.rows), strict=True):
        found = tensor_tree.join_rows(
            found, _climb(probed.model, x, y, threat, steps, length, loss)
        )
    assert found is not None
    return found


def _climb(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, length: float, loss: Loss
) -> _Ascent:
    model = spare_rejected(model, y)
    objective, eps = make_objective(loss, "untargeted"), torch.full_like(x[:, 0, 0, 0], threat.eps)
    at, blind = x, torch.zeros_like(y, dtype=torch.bool)
    fooled = blind
    for _ in range(steps):
        look = gradients.gradient_pass(model, objective, at, y, y)
        fooled = predict_class(look.logits) != y
        if fooled.all():
            return _Ascent(at, blind, fooled)
        flat = look.gradient.flatten(1)
        blind = blind | (~fooled & (~flat.isfinite().all(1) | (flat == 0).all(1)))
        moved = at + length * projections.steepest_direction(
            look.gradient.nan_to_num(), threat.norm
        )
        moved = projections.project(moved, x, eps, threat.norm)
        at = torch.where(norms.per_row(fooled, x), at, moved)
    with torch.no_grad():
        return _Ascent(at, blind, predict_class(model(at)) != y)


def check_gradients(probed: ProbedModel) -> list[ObservedSymptom]:
    """Compare a few gradients of a deterministic model with finite differences.

    Args:
        probed: The model and its examples.

    Returns:
        The symptom of a wrong gradient, or nothing.
    """
    few = min(len(probed.y), gradient_check.MAX_IMAGES)
    with frozen(probed.model), allow_tf32(False):
        rows = torch.arange(few, device=probed.x.device).split(probed.rows)
        which = torch.cat(
            [
                gradient_check.find_wrong_gradients(
                    probed.model, probed.x[k], probed.y[k], probed.id[k]
                )
                for k in rows
            ]
        )
    if int(which.sum()) < min(MIN_AFFECTED, few):
        return []
    evidence = (
        f"on {int(which.sum())} of {few} images central differences of the margin along the "
        "gradient or along a random direction do not agree with it"
    )
    compared = probed._replace(id=probed.id[:few])
    return [_observe(compared, symptoms.WRONG_GRADIENT, which, evidence, f"{MIN_AFFECTED} images")]


# -------------------------------------------------------------------------- the suite's own attacks


def _check_trace(probed: ProbedModel, label: str, spec: AttackSpec) -> Iterator[ObservedSymptom]:
    """Look for symptoms in the loss of one attack along its steps, and along as many again.

    The attack runs once from its own start, with twice the steps of the same length, and stops at
    its first success: examples that are broken in the second half needed more steps.
    """
    eps, steps = median_low([each for each in spec.eps if each > 0]), spec.params.steps
    longer = dataclasses.replace(
        spec, eps=(eps,), params=_double_steps(spec.params, eps), stop="first-success",
        sweep="independent", precision="float32", trace=True,
    )  # fmt: skip
    got = stream.run_attack(probed.model, longer, probed.x, probed.y, probed.id, probed.rows)
    assert got.losses is not None
    first, losses = got.first_success[0], got.losses[0]
    early = (first >= 0) & (first <= steps)
    logits = _logits(probed, got.x_adv[0])
    if spares_rejected(probed.model):
        logits = merge_rejection(logits, probed.y)
    late = ~early & ((first >= 0) | (predict_class(logits) != probed.y))
    flat = ~early & ~(losses[:, steps] > losses[:, 0])
    threat = Threat(norm=spec.norm, eps=eps)
    if _are_many(flat):
        evidence = (
            f"after {steps} steps the loss of examples that stand is no larger than at the start"
        )
        yield _observe(probed, symptoms.FLAT_LOSS, flat, evidence, _threshold(), threat, label)
    if _holds_more_often(early | late, early):
        evidence = f"{steps} steps break {int(early.sum())}, twice as many {int(late.sum())} more"
        limit = f"exact paired test p < {SIGNIFICANCE_LEVEL:g}"
        yield _observe(
            probed, symptoms.INCOMPLETE_OPTIMISATION, late, evidence, limit, threat, label
        )


def _double_steps(params: Any, eps: float) -> Any:
    """Double the steps of the params at the same length, without restarts."""
    fields: dict[str, Any] = {"steps": 2 * params.steps}
    if "alpha" in _fields(params):
        fields["alpha"] = step_size(params.alpha, eps, params.steps)
    if "restarts" in _fields(params):
        fields["restarts"] = 1
    return dataclasses.replace(params, **fields)


def _fields(params: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(params)}


# -------------------------------------------------------------------------------------- thresholds


def _are_many(which: Tensor) -> bool:
    return int(which.sum()) >= max(MIN_AFFECTED, MIN_AFFECTED_SHARE * len(which))


def _threshold() -> str:
    return f"{MIN_AFFECTED} examples and {MIN_AFFECTED_SHARE:.0%} of those probed"


def _holds_more_often(first: Tensor, second: Tensor) -> bool:
    """Check whether one outcome (n,) holds for more examples than another beyond chance."""
    from bench.evaluation.metrics import mcnemar_test  # with scipy, which no cell needs

    split = mcnemar_test(pd.Series(first.cpu().numpy()), pd.Series(second.cpu().numpy()))
    return split.only_first > split.only_second and split.p_value < SIGNIFICANCE_LEVEL


def _observe(
    probed: ProbedModel,
    kind: Symptom,
    which: Tensor,
    evidence: str,
    threshold: str,
    threat: Threat | None = None,
    attack: str = "",
) -> ObservedSymptom:
    return ObservedSymptom(
        name=kind.name,
        model=probed.label,
        attack=attack,
        norm="" if threat is None else threat.norm,
        eps=math.nan if threat is None else threat.eps,
        count=int(which.sum()),
        n=len(which),
        evidence=evidence,
        examples=tuple(probed.id[which].tolist()),
        threshold=threshold,
    )
