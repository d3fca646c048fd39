"""Craft adversarial images and verify them: is each within the threat model, is it a success.

No attack is trusted, bench's own included, and nothing is repaired: what an attack returns is
checked for box and ball, and the judged model is asked in evaluation mode and full precision.

An accelerated model is not trusted either. Examples that it took for successes and the attacked
model does not are attacked again on the model itself (`_recheck_claims`); SPOT_CHECKS of those that
survive, per eps and chunk, are shown to both models (`_spot_check`), which costs two passes of
SPOT_CHECKS rows. Where they disagree, all of the chunk is attacked on the model itself and the
accelerated model is dropped for the rest of the run. An external attack, alone or as a part of an
ensemble, attacks the model itself, so that its images are not compared.
"""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core import rng
from bench.core.contracts.attack import AttackSpec, IterativeAttack
from bench.core.contracts.threat import VerifierInput
from bench.core.contracts.types import BALLS, Norm
from bench.engine import timing
from bench.engine.acceleration import agreement
from bench.engine.device import synchronize
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional import norms
from bench.engine.threats.registry import find_threat
from bench.evaluation.classifier_attack import attack_classifier_too
from bench.evaluation.crafting import (
    AttackOutput,
    Examples,
    allowed_distance,
    craft,
    final_images,
    is_single_search,
)
from bench.evaluation.judge import Prediction, judge, vote_for
from bench.evaluation.victim import CountedVictim

SPOT_CHECKS = 8
"""Surviving examples per eps and SPOT_EXAMPLES of a chunk, on which an accelerated model is
compared with its model; all, if no more survive. They are drawn by the seed and their ids."""
SPOT_EXAMPLES = 1000
GRADIENT_TOLERANCE = 0.5
"""Share of them whose gradients may differ: attacked images lie where values tie."""


class VerifiedOutput(NamedTuple):
    """What an attack returned after all checks, with the judged model's predictions."""

    output: AttackOutput
    predictions: list[Prediction]
    """For each eps, of n examples."""
    judge_seconds: float
    """Time of the judge's first pass over all eps."""
    busy: float
    """Processor seconds per second of crafting, as `timing.busy_seconds` counts them."""


def craft_and_verify(
    model: nn.Module,
    spec: AttackSpec,
    chosen: Examples,
    rows: int,
    *,
    source: nn.Module | None = None,
    accelerated: nn.Module | None = None,
    judge_rows: int | None = None,
    recheck_all: bool = False,
) -> VerifiedOutput:
    """Attack examples, predict what was returned and check the accelerated model's claims.

    Args:
        model: The judged model.
        spec: A rule or an external attack; no ensemble.
        chosen: Examples to attack, n > 0.
        rows: Most rows per pass of the attack.
        source: The attacked model; the judged one by default.
        accelerated: Model to differentiate in place of the attacked one.
        judge_rows: Rows per pass of the judge; `rows` by default.
        recheck_all: Recheck claims also of a rule that goes on after its first success, as an
            ensemble needs: there a success of any part is final.

    Returns:
        The output with costs of all repetitions, and the predictions at each eps.

    Raises:
        ContractError: As `craft`.
    """
    attacked = model if source is None else source
    judge_rows = judge_rows or rows
    victim = None
    if spec.victim_queries:
        y = chosen.label if spec.goal == "untargeted" else chosen.target
        victim = CountedVictim(model, y, spec.goal, spec.victim_queries, len(spec.eps), judge_rows)

    def predict(output: AttackOutput) -> list[Prediction]:
        return predict_output(model, spec, chosen, output, judge_rows)

    output, busy = measure_busy(
        lambda: craft(attacked, spec, chosen, rows, accelerated, victim), chosen.x.device
    )
    predictions, seconds = timing.time_call(lambda: predict(output), chosen.x.device)
    rule = spec.attack.rule if isinstance(spec.attack, IterativeAttack) else None
    if rule is None:
        return VerifiedOutput(output, predictions, seconds, busy)
    checked = _spot_check(attacked, accelerated, spec, chosen, output, predictions)
    if checked is not output:
        output, predictions = checked, predict(checked)
    accelerates = accelerated not in (None, attacked) or spec.precision != "float32"
    final = recheck_all or spec.stop == "first-success" or rule.seeks
    if accelerates and final and not output.dropped:
        own = predictions
        if attacked is not model:
            own = predict_output(attacked, spec, chosen, output, rows)
        checked = _recheck_claims(attacked, spec, chosen, output, own)
        if checked is not output:
            output, predictions = checked, predict(checked)

    def is_won(examples: Examples, images: AttackOutput) -> Tensor:
        answers = predict_output(model, spec, examples, images, judge_rows)
        return torch.stack([is_success(spec, examples, each) for each in answers])

    checked = attack_classifier_too(attacked, spec, chosen, output, is_won)
    if checked is not output:
        output, predictions = checked, predict(checked)
    return VerifiedOutput(output, predictions, seconds, busy)


def measure_busy(
    attack: Callable[[], AttackOutput], device: torch.device
) -> tuple[AttackOutput, float]:
    """Run an attack and measure which share of the time this process computed.

    Args:
        attack: Crafts the images.
        device: Where it computes.

    Returns:
        Its output, and processor seconds per second as `timing.busy_seconds` counts them.
    """
    started, worked = time.perf_counter(), timing.busy_seconds(device)
    output = attack()
    synchronize(device)
    worked = timing.busy_seconds(device) - worked
    return output, worked / (time.perf_counter() - started)


def predict_output(
    model: nn.Module, spec: AttackSpec, chosen: Examples, output: AttackOutput, rows: int
) -> list[Prediction]:
    """Predict the images that an attack returned.

    Args:
        model: The model that is asked.
        spec: The attack as run.
        chosen: The n attacked examples.
        output: What the attack returned for them.
        rows: Rows per pass.

    Returns:
        Predictions (n,) for each eps.
    """
    vote = vote_for(spec, chosen.id)
    return [
        judge(model, final_images(spec, eps, chosen.x, output, at), rows, vote)
        for at, eps in enumerate(spec.eps)
    ]


def is_success(spec: AttackSpec, examples: Examples, predicted: Prediction) -> Tensor:
    """Check which predictions are what the attack aims at.

    Args:
        spec: The attack, for its goal.
        examples: The n examples with labels and targets.
        predicted: Predictions (n,) of their images.

    Returns:
        Bool (n,): another class than the label, or when targeted the target. A rejection is no
        success where it counts as robust.
    """
    pred = predicted.pred
    if spec.goal == "targeted":
        return pred == examples.target
    left = pred != examples.label
    return left & (pred != predicted.rejection) if predicted.spares_rejected else left


def find_violations(x_adv: Tensor, x: Tensor, eps: float, norm: Norm, pred: Tensor) -> list[str]:
    """Describe how returned images break the threat model.

    Args:
        x_adv: Returned images (n, c, h, w).
        x: Clean images (n, c, h, w).
        eps: The radius in `norm`.
        norm: The norm of the threat model.
        pred: Predicted classes (n,), -1 where the model's output is not finite.

    Returns:
        For each image the violated promise, measured and allowed; "" if there is none.
    """
    finite = x_adv.flatten(1).isfinite().all(1)
    low, high = x_adv.flatten(1).amin(1), x_adv.flatten(1).amax(1)
    distance = norms.distance_float64(x_adv, x, norm)
    allowed = allowed_distance(eps)
    violations = [""] * len(x)
    suspect = ~finite | (low < 0) | (high > 1) | (distance > allowed) | (pred < 0)
    for row in suspect.nonzero()[:, 0].tolist():
        if not finite[row]:
            violations[row] = "image is not finite"
        elif low[row] < 0 or high[row] > 1:
            violations[row] = f"pixels in [{low[row]:.6g}, {high[row]:.6g}], allowed [0, 1]"
        elif distance[row] > allowed:
            violations[row] = f"{norm} distance {distance[row]:.8g}, allowed {allowed:.8g}"
        else:
            violations[row] = "the model's output is not finite"
    return violations


def find_output_violations(
    spec: AttackSpec,
    eps: float,
    chosen_ids: Tensor,
    x: Tensor,
    output: AttackOutput,
    at: int,
    pred: Tensor,
) -> list[str]:
    """Describe how the images that an attack returned at one eps break its threat model.

    Args:
        spec: The attack as run.
        eps: The radius or level.
        chosen_ids: Ids of the n attacked examples.
        x: Their clean images (n, c, h, w).
        output: What the attack returned.
        at: Index of the eps in `output`.
        pred: Predicted classes (n,), -1 where the model's output is not finite.

    Returns:
        For each image the violated promise, measured and allowed; "" if there is none.
    """
    x_adv = final_images(spec, eps, x, output, at)
    if spec.norm in BALLS:
        verify, parameters = spec.attack.verify, torch.zeros(len(spec.eps), len(x), 0)
        violations = find_violations(x_adv, x, eps, spec.norm, pred)
    else:
        assert output.parameters is not None
        verify, parameters = find_threat(spec.norm).verify, output.parameters
        violations = find_violations(x_adv, x, torch.inf, "linf", pred)
    if verify is None:
        return violations
    rows = torch.tensor([row for row, text in enumerate(violations) if not text], dtype=torch.long)
    if len(rows):
        there = rows.to(x.device)
        zeros = torch.zeros_like(chosen_ids[there])
        noise = rng.Noise(spec.seed, spec.name, chosen_ids[there], zeros)
        given = VerifierInput(
            x_adv[there], parameters[at, rows], x[there], spec.norm, eps, spec.params, noise
        )
        for row, text in zip(rows.tolist(), verify(given), strict=True):
            violations[row] = text
    return violations


# --------------------------------------------------------------- checks of the accelerated model


def _spot_check(
    model: nn.Module,
    accelerated: nn.Module | None,
    spec: AttackSpec,
    chosen: Examples,
    output: AttackOutput,
    predictions: list[Prediction],
) -> AttackOutput:
    """Attack all examples again on the model if the accelerated one disagrees about survivors.

    At each eps SPOT_CHECKS examples are drawn among those that neither the attack nor the
    predictions take for successes; both models compute logits and gradients on their images.
    """
    if accelerated in (None, model) or output.dropped:
        return output
    assert accelerated is not None
    difference = _find_disagreement(model, accelerated, spec, chosen, output, predictions)
    if not difference:
        return output
    repeated = craft(model, replace(spec, precision="float32"), chosen, output.rows)
    return repeated._replace(
        forwards=output.forwards + repeated.forwards,
        backwards=output.backwards + repeated.backwards,
        seconds=[a + b for a, b in zip(output.seconds, repeated.seconds, strict=True)],
        dropped=f"on images that it left standing {difference}",
    )


def _find_disagreement(
    model: nn.Module,
    accelerated: nn.Module,
    spec: AttackSpec,
    chosen: Examples,
    output: AttackOutput,
    predictions: list[Prediction],
) -> str:
    """Describe how the accelerated model differs on survivors; "" if it does not."""
    keys = chosen.id + rng.fold(spec.seed, "spots", spec.name) % 2**31
    most = SPOT_CHECKS * math.ceil(len(chosen.id) / SPOT_EXAMPLES)
    images, labels = [], []
    for at, prediction in enumerate(predictions):
        won = is_success(spec, chosen, prediction) | (output.first_success[at] >= 0)
        survivors = (~won).nonzero()[:, 0]
        draws = rng.hash_uniform(keys[survivors], torch.full_like(survivors, at), 1)[:, 0]
        drawn = survivors[draws.argsort()[:most]]
        images.append(output.x_adv[at, drawn])
        labels.append(chosen.label[drawn])
    x, y = torch.cat(images), torch.cat(labels)
    finite = x.flatten(1).isfinite().all(1)
    gradients = spec.attack.needs not in ("scores", "labels")
    batches = zip(x[finite].split(output.rows), y[finite].split(output.rows), strict=True)
    with allow_tf32(spec.precision == "tf32"):
        for batch, batch_labels in batches:
            if not len(batch):
                continue
            wanted = agreement.probe_pass(model, batch, batch_labels, gradients)
            try:
                got = agreement.probe_pass(accelerated, batch, batch_labels, gradients)
            except Exception as error:  # of the user's forward, in a copy of it
                return f"it raised {type(error).__name__}"
            if why := agreement.describe_difference(
                wanted, got, spec.precision, GRADIENT_TOLERANCE
            ):
                return why
    return ""


def _recheck_claims(
    model: nn.Module,
    spec: AttackSpec,
    chosen: Examples,
    output: AttackOutput,
    predictions: list[Prediction],
) -> AttackOutput:
    """Attack examples again, on the model itself, whose claimed success it does not confirm.

    `predictions` are those of the attacked model. In float32 the model's second claim needs no
    check: it is its prediction.
    """
    claimed = output.first_success >= 0
    won = torch.stack([is_success(spec, chosen, each) for each in predictions])
    again = (claimed & ~won).any(0)
    if is_single_search(spec):  # what it found beyond the largest eps counts, too
        predicted = judge(model, output.x_adv[0], output.rows, vote_for(spec, chosen.id))
        moved = (output.x_adv[0] != chosen.x).flatten(1).any(1)
        again |= moved & ~is_success(spec, chosen, predicted)
    if not again.any():
        return output
    subset = Examples(*(field[again] for field in chosen))
    repeated = craft(model, replace(spec, precision="float32"), subset, output.rows)
    x_adv, first_success = output.x_adv.clone(), output.first_success.clone()
    x_adv[:, again], first_success[:, again] = repeated.x_adv, repeated.first_success
    forwards, backwards = output.forwards.clone(), output.backwards.clone()
    forwards[:, again] += repeated.forwards
    backwards[:, again] += repeated.backwards
    nonfinite = output.nonfinite
    if nonfinite is not None and repeated.nonfinite is not None:
        nonfinite = nonfinite.clone()
        nonfinite[:, again] += repeated.nonfinite
    queries, nearest = output.queries, output.nearest
    if queries is not None and repeated.queries is not None:
        queries = queries.clone()
        queries[:, again] = repeated.queries
    if nearest is not None and repeated.nearest is not None:
        nearest = nearest.clone()
        nearest[again] = repeated.nearest
    return output._replace(
        x_adv=x_adv,
        forwards=forwards,
        backwards=backwards,
        first_success=first_success,
        seconds=[a + b for a, b in zip(output.seconds, repeated.seconds, strict=True)],
        rows=repeated.rows,
        nonfinite=nonfinite,
        queries=queries,
        nearest=nearest,
    )
