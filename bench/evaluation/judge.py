"""Predict what a model says of images, in evaluation mode and full precision: the judge.

Attacks may use an accelerated model and lower precision; predictions that count are always those of
the model itself. Its layers are never replaced here. Only the memory format of the images may be:
with channels last a CPU convolves faster, and a model cannot see the difference.

A model that answers at random is asked several times and the majority is its prediction.
Source: Cohen et al. 2019, section 3.2.1 (prediction), https://arxiv.org/abs/1902.02918
Differs from the paper: the judge never abstains; on a tie it predicts the smaller class.
"""

import contextlib
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core import rng
from bench.core.contracts.attack import AttackSpec
from bench.engine.float32_precision import allow_tf32
from bench.engine.functional.logits import predict_class, probabilities, widen
from bench.engine.model_state import call_model, eval_mode, is_out_of_memory
from bench.engine.rejection import find_detector

LAYOUT_IMAGES = 16
"""Images on which the two memory formats are compared, once per model."""
LOGIT_TOLERANCE = 1e-4
"""How far logits may then be apart, as a share of the largest."""
_channels_last: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether a model takes images with channels last, as far as it was tried."""


class Prediction(NamedTuple):
    """What a model predicts of images; every tensor is (n,)."""

    pred: Tensor
    """The class of the largest logit, as the model returned it; of several predictions the class
    most often predicted. The smaller one on a tie; -1 where logits are not finite."""
    confidence: Tensor
    """Softmax probability of that class, the mean over the predictions; NaN where the logits are
    not finite. Of a rejected image, the largest one of the classifier."""
    least_likely: Tensor
    agreement: Tensor
    """Share of the predictions that are of that class: 1 where they are unanimous."""
    classified: Tensor
    """`pred`, or of a rejected image the class that the classifier alone predicts."""
    rejection: int = -1
    """Number of the class of rejected images; -1 for a model without a detector."""
    spares_rejected: bool = False
    """Whether a rejected adversarial image counts as robust."""


class Vote(NamedTuple):
    """How a model that answers at random is asked."""

    predictions: int
    seed: int
    """Seeds what the model draws from torch's global generator; the draws depend on the rows per
    pass, too."""


def judge(model: nn.Module, x: Tensor, rows: int, vote: Vote | None = None) -> Prediction:
    """Predict images in evaluation mode and full precision.

    Args:
        model: Maps images to logits (n, classes).
        x: Images (n, c, h, w), n > 0.
        rows: Rows per pass; halved as often as memory runs out.
        vote: How often to ask a model that answers at random; once by default.

    Returns:
        Class, confidence, least likely class and agreement, (n,) each.
    """
    times = 1 if vote is None else vote.predictions
    draws = contextlib.nullcontext() if vote is None else rng.seed_global(vote.seed)
    try:
        with eval_mode(model), torch.no_grad(), allow_tf32(False), draws:
            last, first = (False, None) if vote is not None else _choose_layout(model, x[:rows])
            batches = list(x.split(rows))
            answers = [] if first is None else [first[None]]
            for batch in batches[len(answers) :]:
                given = _to_channels_last(batch) if last else batch
                asked = [widen(call_model(model, given)) for _ in range(times)]
                answers.append(torch.stack(asked))
            logits = torch.cat(answers, 1)  # (predictions, n, classes)
    except RuntimeError as error:
        if rows == 1 or not is_out_of_memory(error):
            raise
        return judge(model, x, rows // 2, vote)
    detector = find_detector(model)
    if detector is None:
        return _majority(logits)
    predicted = _majority(logits, detector.classes)
    return predicted._replace(rejection=detector.classes, spares_rejected=detector.spares)


def vote_for(spec: AttackSpec, ids: Tensor) -> Vote | None:
    """Derive how the judge asks a model that answers at random about some examples.

    The draws are the same under every attack and at every eps, and on the image rounded to 8 bits,
    so that two predictions differ by their images and not by chance.

    Args:
        spec: The attack, for its seed and whether the model is random.
        ids: Example ids (n,), n > 0.

    Returns:
        The vote; None for a deterministic model.
    """
    if not spec.random:
        return None
    return Vote(spec.predictions, rng.fold(spec.seed, "verdict", int(ids[0])))


def _majority(logits: Tensor, classes: int | None = None) -> Prediction:
    """Take the class that most predictions give; logits (predictions, n, classes).

    With a number of `classes`, logits beyond it are no class's.
    """
    shares = probabilities(logits[..., :classes]).mean(0)
    votes = functional.one_hot(predict_class(logits), logits.shape[2]).sum(0)
    pred = votes.argmax(1)  # the first of the largest counts
    agreement = (votes / len(logits)).gather(1, pred[:, None])[:, 0]
    shown = pred if classes is None else torch.where(pred < classes, pred, shares.argmax(1))
    confidence = shares.gather(1, shown[:, None])[:, 0]
    finite = logits.isfinite().all(2).all(0)
    least_likely = logits[..., :classes].mean(0).argmin(1)
    pred, shown = torch.where(finite, pred, -1), torch.where(finite, shown, -1)
    return Prediction(pred, confidence, least_likely, agreement, shown)


def _choose_layout(model: nn.Module, x: Tensor) -> tuple[bool, Tensor | None]:
    """Choose the memory format of the images of a model; compare the two once per model.

    Returns:
        Whether images have channels last, as a convolving model on a CPU answers alike; and the
        logits of x in the chosen format, where the comparison was of all of x.
    """
    if x.device.type != "cpu" or not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return False, None
    if model in _channels_last:
        return _channels_last[model], None
    compared = x[:LAYOUT_IMAGES]
    _channels_last[model], logits = _compare_layouts(model, compared)
    return _channels_last[model], logits if len(compared) == len(x) else None


def _compare_layouts(model: nn.Module, x: Tensor) -> tuple[bool, Tensor | None]:
    """Compare the logits of x with channels last with those of the contiguous format.

    A model that calls `view` may insist on the contiguous format.

    Returns:
        Whether they are the same up to rounding, and those of the format that is chosen; None
        where the model raised.
    """
    try:
        last, contiguous = (widen(call_model(model, each)) for each in (_to_channels_last(x), x))
        error = float((last - contiguous).abs().max() / contiguous.abs().max())
    except RuntimeError as failure:
        if is_out_of_memory(failure):
            raise
        return False, None
    same = torch.equal(predict_class(last), predict_class(contiguous)) and error <= LOGIT_TOLERANCE
    return same, last if same else contiguous


def _to_channels_last(x: Tensor) -> Tensor:
    """Copy x (n, c, h, w) to channels last, with strides that say so for one channel, too."""
    _, c, h, w = x.shape
    return torch.empty_strided(x.shape, (c * h * w, 1, w * c, c), dtype=x.dtype).copy_(x)
