"""Probes of a model: what a few gradients at a few examples tell of the attacks that need them.

Each model of a run is probed once, on its first correct examples, after the cells are done; what
was found lies in provenance.json, so that a report can tell it without the model. The thresholds
are such that a net which hides nothing shows no sign.
Source: the signs of `bench.evaluation.audit.symptoms`, each with its own.
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
from bench.core.contracts.attack import AttackSpec, step_size
from bench.core.contracts.types import Loss, Threat
from bench.engine import stream, tensor_tree
from bench.engine.functional import gradients, norms
from bench.engine.functional.logits import predicted, wide
from bench.engine.functional.losses import to_ascend
from bench.engine.model_state import allow_tf32, frozen
from bench.evaluation.audit import gradient_check, symptoms
from bench.evaluation.audit.symptoms import ObservedSymptom, Symptom
from bench.models.preflight.checks import BATCH, RANDOM, are_probabilities

MIN_EXAMPLES, MAX_EXAMPLES, EXAMPLES_PER_PROBE = 16, 64, 32
"""Examples probed: one of so many, but so many at least and at most; of a thousand images of MNIST
this takes a hundred-and-fiftieth of the run. Of sixteen, eight can still differ from the rest."""
STEPS, REACH = 10, 2.5
"""Steps of the probes' own ascent, and how far together they reach, in eps."""
CUBE_STEPS, CUBE_STEP_SIZE = 40, 0.1
"""Steps through the whole cube and their length: four times across it."""
GRADIENTS_PER_EXAMPLE = 2 + STEPS + CUBE_STEPS
"""Gradients that the probes of one example take, beside the traces."""
REPETITIONS = 3
"""Times that the same images are shown once more."""
SIGNIFICANCE_LEVEL = 0.01
"""Two outcomes differ if a fair coin splits so unevenly no more often: eight to none."""
MIN_AFFECTED, MIN_AFFECTED_SHARE = 3, 0.1
"""What happens to single examples by bad luck is a sign from so many and this share on."""

MODEL_SYMPTOMS = (
    symptoms.PROBABILITY_OUTPUT, symptoms.INFERENCE_OPTIMISATION, symptoms.UNSTABLE_PREDICTIONS,
    symptoms.BATCH_DEPENDENCE, symptoms.NO_GRADIENT, symptoms.SATURATED_LOSS,
    symptoms.UNCONSTRAINED_FAILURE, symptoms.WRONG_GRADIENT,
)  # fmt: skip
"""What every model is probed for."""
NOISY_OUTPUTS = {symptoms.UNSTABLE_PREDICTIONS.name, symptoms.BATCH_DEPENDENCE.name}
"""Models that show these have no output of their own whose slope could be measured."""
TRACE_SYMPTOMS = (symptoms.FLAT_LOSS, symptoms.INCOMPLETE_OPTIMISATION)
"""What each of bench's own iterated gradient attacks is probed for."""


class ProbedModel(NamedTuple):
    """A model and the examples that it is probed on, all of which it gets right."""

    label: str
    model: nn.Module
    id: Tensor
    """(n,), int64"""
    x: Tensor
    """(n, c, h, w) in [0, 1]"""
    y: Tensor
    """(n,), int64"""
    rows: int
    """Rows a pass holds."""


class _Ascent(NamedTuple):
    """Where steepest ascent came to; every field is per row."""

    x: Tensor
    blind: Tensor
    """Whether an iterate that had not fooled the model had no gradient, or none that is finite."""
    fooled: Tensor


def probe_model(
    subject: ProbedModel, threat: Threat, curves: Mapping[str, AttackSpec]
) -> list[ObservedSymptom]:
    """The signs that a model shows when asked, and when attacked within `threat`.

    `curves` are the attacks, by label, of which a trace is read: untargeted ones whose rule takes
    several gradient steps. The model comes back as it was.
    """
    with frozen(subject.model), allow_tf32(False), rng.seeded("probes", subject.label):
        found = [*_answers(subject), *_gradients(subject, threat)]
        if not NOISY_OUTPUTS & {sign.name for sign in found}:
            found += check_gradients(subject)
        for label, curve in curves.items():
            found += _trace(subject, label, curve)
    return found


def is_traceable(curve: AttackSpec) -> bool:
    """Whether `probe` can read a trace of this attack."""
    rule, steps = curve.attack.rule, getattr(curve.params, "steps", 1)
    own = rule is not None and not rule.seeks and rule.aims is None
    several = "steps" in _fields(curve.params) and steps > 1 and max(curve.eps) > 0
    return own and several and curve.attack.needs == "gradient" and curve.goal == "untargeted"


def count_examples(n: int) -> int:
    """How many examples of n are probed."""
    return min(n, MAX_EXAMPLES, max(MIN_EXAMPLES, n // EXAMPLES_PER_PROBE))


# ---------------------------------------------------------------------------------- what it answers


class _Watch(TorchFunctionMode):
    """Notes whether anything inside asks torch for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        asking = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        self.seen |= func in asking
        return func(*args, **(kwargs or {}))


def _answers(subject: ProbedModel) -> Iterator[ObservedSymptom]:
    """Signs in what the model says of clean images."""
    with _Watch() as watch:
        logits = _logits(subject, subject.x)
    everything = torch.ones_like(subject.y, dtype=torch.bool)
    if watch.seen:
        told = "torch was asked for a gradient while the model predicted"
        yield _sign(subject, symptoms.INFERENCE_OPTIMISATION, everything, told, "any gradient")
    if are_probabilities(logits):
        told = "each row of the output is positive and sums to 1"
        yield _sign(subject, symptoms.PROBABILITY_OUTPUT, everything, told, "all rows")
    scale = logits.abs().max()
    again = torch.stack([_logits(subject, subject.x) for _ in range(REPETITIONS)])
    differs = (again - logits).abs().amax((0, 2)) > RANDOM * scale
    if differs.any():
        other = (predicted(again) != predicted(logits)).any(0)
        told = f"asked {REPETITIONS + 1} times, {int(other.sum())} images get another label"
        limit = f"a logit that differs by more than {RANDOM:g} of the largest"
        yield _sign(subject, symptoms.UNSTABLE_PREDICTIONS, differs, told, limit)
        return
    alone = torch.cat([_logits(subject, row[None]) for row in subject.x])
    differs = (alone - logits).abs().amax(1) > BATCH * scale
    if differs.any():
        other = predicted(alone) != predicted(logits)
        told = f"asked one by one, {int(other.sum())} images get another label"
        limit = f"a logit that differs by more than {BATCH:g} of the largest"
        yield _sign(subject, symptoms.BATCH_DEPENDENCE, differs, told, limit)


def _logits(subject: ProbedModel, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([wide(subject.model(part)) for part in x.split(subject.rows)])


# ----------------------------------------------------------------------------- where gradients lead


def _gradients(subject: ProbedModel, threat: Threat) -> Iterator[ObservedSymptom]:
    """Signs in the gradients at clean images and along short ascents from them."""
    rounded = _ascend(subject, threat, 1, threat.eps, "cross-entropy")
    exact = _ascend(subject, threat, 1, threat.eps, "margin")
    many = _ascend(subject, threat, STEPS, REACH * threat.eps / STEPS, "margin")
    blind = exact.blind | many.blind
    if blind.any():
        told = f"the margin's gradient vanishes or is not finite on the way of {STEPS} steps"
        yield _sign(subject, symptoms.NO_GRADIENT, blind, told, "1 example", threat)
    yield from _saturation(subject, threat, rounded, exact)
    if len(subject.y.unique()) > 1:  # else no ball need hold an image of another class
        cube = Threat(norm="linf", eps=1.0)
        left = ~_ascend(subject, cube, CUBE_STEPS, CUBE_STEP_SIZE, "margin").fooled
        if _many(left):
            told = f"{CUBE_STEPS} steps along the margin's gradient leave them correct at eps 1"
            yield _sign(subject, symptoms.UNCONSTRAINED_FAILURE, left, told, _limit(), cube)


def _saturation(
    subject: ProbedModel, threat: Threat, rounded: _Ascent, exact: _Ascent
) -> Iterator[ObservedSymptom]:
    """Cross-entropy (`rounded`) beside the margin (`exact`), one step from the clean image."""
    vanished = rounded.blind & ~exact.blind
    gained, lost = exact.fooled & ~rounded.fooled, rounded.fooled & ~exact.fooled
    if not vanished.any() and not _more(exact.fooled, rounded.fooled):
        return
    told = (
        f"the gradient vanishes under cross-entropy alone on {int(vanished.sum())}; one step along "
        f"the margin breaks {int(gained.sum())} that one along cross-entropy does not, the other "
        f"way round {int(lost.sum())}"
    )
    limit = f"1 vanished gradient, or exact paired test p < {SIGNIFICANCE_LEVEL:g}"
    yield _sign(subject, symptoms.SATURATED_LOSS, vanished | gained, told, limit, threat)


def _ascend(subject: ProbedModel, threat: Threat, steps: int, length: float, loss: Loss) -> _Ascent:
    """Steepest ascent of the loss from each example, which stops where the model is fooled."""
    found: _Ascent | None = None
    for x, y in zip(subject.x.split(subject.rows), subject.y.split(subject.rows), strict=True):
        found = tensor_tree.join(found, _climb(subject.model, x, y, threat, steps, length, loss))
    assert found is not None
    return found


def _climb(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, steps: int, length: float, loss: Loss
) -> _Ascent:
    objective, eps = to_ascend(loss, "untargeted"), torch.full_like(x[:, 0, 0, 0], threat.eps)
    at, blind = x, torch.zeros_like(y, dtype=torch.bool)
    fooled = blind
    for _ in range(steps):
        seen = gradients.look(model, objective, at, y, y)
        fooled = predicted(seen.logits) != y
        if fooled.all():
            return _Ascent(at, blind, fooled)
        flat = seen.gradient.flatten(1)
        blind = blind | (~fooled & (~flat.isfinite().all(1) | (flat == 0).all(1)))
        moved = at + length * norms.steepest(seen.gradient.nan_to_num(), threat.norm)
        moved = norms.project(moved, x, eps, threat.norm)
        at = torch.where(norms.per_row(fooled, x), at, moved)
    with torch.no_grad():
        return _Ascent(at, blind, predicted(model(at)) != y)


def check_gradients(subject: ProbedModel) -> list[ObservedSymptom]:
    """Compare a few gradients with finite differences of a model that answers alike each time."""
    few = min(len(subject.y), gradient_check.MAX_IMAGES)
    with frozen(subject.model), allow_tf32(False):
        rows = torch.arange(few, device=subject.x.device).split(subject.rows)
        which = torch.cat(
            [
                gradient_check.find_wrong_gradients(
                    subject.model, subject.x[k], subject.y[k], subject.id[k]
                )
                for k in rows
            ]
        )
    if int(which.sum()) < min(MIN_AFFECTED, few):
        return []
    told = (
        f"on {int(which.sum())} of {few} images central differences of the margin along the "
        "gradient or along a random direction do not agree with it"
    )
    asked = subject._replace(id=subject.id[:few])
    return [_sign(asked, symptoms.WRONG_GRADIENT, which, told, f"{MIN_AFFECTED} images")]


# -------------------------------------------------------------------------- the suite's own attacks


def _trace(subject: ProbedModel, label: str, curve: AttackSpec) -> Iterator[ObservedSymptom]:
    """Signs in the loss of one attack along its steps, and along as many again.

    The attack runs once from its own start, with twice the steps and steps as long as before, and
    each example leaves at its first success: what falls in the second half, more steps would have
    broken.
    """
    eps, steps = median_low([each for each in curve.eps if each > 0]), curve.params.steps
    longer = dataclasses.replace(
        curve, eps=(eps,), params=_longer(curve.params, eps), stop="first-success",
        sweep="independent", precision="float32", trace=True,
    )  # fmt: skip
    got = stream.attack(subject.model, longer, subject.x, subject.y, subject.id, subject.rows)
    assert got.losses is not None
    first, losses = got.first_success[0], got.losses[0]
    early = (first >= 0) & (first <= steps)
    late = ~early & ((first >= 0) | (predicted(_logits(subject, got.x_adv[0])) != subject.y))
    flat = ~early & ~(losses[:, steps] > losses[:, 0])
    threat = Threat(norm=curve.norm, eps=eps)
    if _many(flat):
        told = f"after {steps} steps the loss of examples that stand is no larger than at the start"
        yield _sign(subject, symptoms.FLAT_LOSS, flat, told, _limit(), threat, label)
    if _more(early | late, early):
        told = f"{steps} steps break {int(early.sum())}, twice as many {int(late.sum())} more"
        limit = f"exact paired test p < {SIGNIFICANCE_LEVEL:g}"
        yield _sign(subject, symptoms.INCOMPLETE_OPTIMISATION, late, told, limit, threat, label)


def _longer(params: Any, eps: float) -> Any:
    """The params with twice the steps, each as long as before, and no restart."""
    fields: dict[str, Any] = {"steps": 2 * params.steps}
    if "alpha" in _fields(params):
        fields["alpha"] = step_size(params.alpha, eps, params.steps)
    if "restarts" in _fields(params):
        fields["restarts"] = 1
    return dataclasses.replace(params, **fields)


def _fields(params: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(params)}


# ----------------------------------------------------------------------------------------- judging


def _many(which: Tensor) -> bool:
    return int(which.sum()) >= max(MIN_AFFECTED, MIN_AFFECTED_SHARE * len(which))


def _limit() -> str:
    return f"{MIN_AFFECTED} examples and {MIN_AFFECTED_SHARE:.0%} of those probed"


def _more(first: Tensor, second: Tensor) -> bool:
    """Whether the first outcome, (n,), holds for more examples than the second, beyond chance."""
    from bench.evaluation.metrics import mcnemar_test  # its scipy, for which no cell of a run waits

    split = mcnemar_test(pd.Series(first.cpu().numpy()), pd.Series(second.cpu().numpy()))
    return split.only_first > split.only_second and split.p_value < SIGNIFICANCE_LEVEL


def _sign(
    subject: ProbedModel,
    kind: Symptom,
    which: Tensor,
    evidence: str,
    threshold: str,
    threat: Threat | None = None,
    attack: str = "",
) -> ObservedSymptom:
    return ObservedSymptom(
        name=kind.name,
        model=subject.label,
        attack=attack,
        norm="" if threat is None else threat.norm,
        eps=math.nan if threat is None else threat.eps,
        count=int(which.sum()),
        n=len(which),
        evidence=evidence,
        examples=tuple(subject.id[which].tolist()),
        threshold=threshold,
    )
