"""Check the score by which a detector rejects images, as the logits of a classifier are checked.

The score has a scale of its own: next to logits of another size its noise, or its dependence on the
batch, would be no more than rounding. It is compared by its distance from the threshold.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.core import rng
from bench.engine.functional.gradients import gradient_pass
from bench.engine.model_state import eval_mode
from bench.engine.rejection import RejectingModel, ScoreView
from bench.models.preflight.findings import Finding
from bench.models.preflight.logit_checks import (
    RANDOM,
    find_batch_dependence,
    is_random,
    logit_scale,
)


class ScoreCheck(NamedTuple):
    """What was seen of a detector's score on the first images."""

    findings: tuple[Finding, ...]
    random: bool
    """Whether a second call has other scores."""
    scores: Tensor
    """Distances beyond the threshold, (n, 1)."""


def check_score(where: str, model: RejectingModel, x: Tensor) -> ScoreCheck:
    """Check the score of a detector.

    Args:
        where: Start of a sentence, which names the model.
        model: The model.
        x: Images (n, c, h, w).

    Returns:
        Findings about batches and gradients, and the scores.

    Raises:
        SuiteError: The model does not take an image alone.
    """
    view = ScoreView(model)
    with eval_mode(model), rng.seed_global("preflight"):
        with torch.no_grad():
            scores = view(x)
        random = is_random(view, x, scores)
        findings = [] if random else [*find_batch_dependence(where, view, x, scores, "scores")]
        findings += _find_gradient_problems(where, model, x, scores, random)
    return ScoreCheck(tuple(findings), random, scores)


def _find_gradient_problems(
    where: str, model: RejectingModel, x: Tensor, scores: Tensor, random: bool
) -> Iterator[Finding]:
    """Yield what makes attacks by gradient blind to the score, or follow another one."""
    n = len(x)
    anything = torch.zeros(n, dtype=torch.int64, device=x.device)
    try:
        seen = gradient_pass(model.net, _take_score, x, anything, anything)
    except RuntimeError:  # such as of a model that answers in inference mode
        lost = n
    else:
        lost = int((seen.gradient.flatten(1).nan_to_num().abs().amax(1) == 0).sum())
        far = float((model.measure_excess(seen.logits)[:, None] - scores).abs().max())
        if not random and far > RANDOM * logit_scale(scores):
            yield Finding(
                "gradient-mode",
                f"{where} has another score where a gradient is asked for than where none is "
                f"(they differ by {far:.3g}): attacks by gradient evade another detector than the "
                "one that rejects; compute the score alike in both.",
            )
    if lost:
        yield Finding(
            "score-gradient",
            f"{where} gives no gradient of its score on {lost} of {n} clean images: attacks by "
            "gradient cannot learn what is rejected there, and its robust accuracy with rejections "
            "may be too high; let the score be differentiated, give the attack a `backward`, or "
            "attack by scores.",
        )


def _take_score(answer: Tensor, y: Tensor, label: Tensor) -> Tensor:
    return answer[:, -1]
