"""The judge: what a model itself, in evaluation mode and full precision, says of images.

Attacks may lead with a copy of a model and in lower precision; the verdict is always this one. The
model is never exchanged here. What may be is the order in which an image's numbers lie in memory:
with the channels last a CPU convolves faster, and a model cannot tell.

A model that answers at random is asked several times and the majority is its answer.
Source: Cohen et al. 2019, section 3.2.1 (prediction), https://arxiv.org/abs/1902.02918
Differs from the paper: the judge never abstains; on a tie the smaller class is the answer.
"""

import contextlib
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.core import rng
from bench.engine.functional.logits import predicted, probabilities, wide
from bench.engine.model_state import allow_tf32, ask, eval_mode, out_of_memory

LAYOUT_IMAGES = 16
"""Images on which the two orders in memory are compared, once for a model."""
LOGIT_TOLERANCE = 1e-4
"""How far logits may then be apart, as a share of the largest."""
_last: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Models whose images may lie with the channels last, as far as was found out."""


class Prediction(NamedTuple):
    """What a model says of images; every field is (n,)."""

    pred: Tensor
    """The class of the largest logit, as the model returned it; of several predictions the class
    most often predicted. The smaller one on a tie; -1 where logits are not finite."""
    confidence: Tensor
    """Softmax probability of that class, the mean over the predictions; NaN where the logits are
    not finite."""
    least_likely: Tensor
    agreement: Tensor
    """Share of the predictions that are of that class: 1 where they are unanimous."""


class Vote(NamedTuple):
    """How a model that answers at random is asked."""

    predictions: int
    seed: int
    """What it draws from torch's global generator is seeded by this; it depends on `rows`, too."""


def judge(model: nn.Module, x: Tensor, rows: int, vote: Vote | None = None) -> Prediction:
    """What `model`, in evaluation mode and full precision, says of x (n, c, h, w), n > 0.

    Without a `vote` it is asked once. Where memory runs out, it is asked about half as many rows
    at a time.
    """
    times = 1 if vote is None else vote.predictions
    draws = contextlib.nullcontext() if vote is None else rng.seeded(vote.seed)
    try:
        with eval_mode(model), torch.no_grad(), allow_tf32(False), draws:
            last = vote is None and _may_lie_last(model, x[: min(rows, LAYOUT_IMAGES)])
            parts = (_laid_last(part) if last else part for part in x.split(rows))
            answers = [torch.stack([wide(ask(model, p)) for _ in range(times)]) for p in parts]
            logits = torch.cat(answers, 1)  # (predictions, n, classes)
    except RuntimeError as error:
        if rows == 1 or not out_of_memory(error):
            raise
        return judge(model, x, rows // 2, vote)
    return _majority(logits)


def _majority(logits: Tensor) -> Prediction:
    """The verdict that most predictions give; logits (predictions, n, classes)."""
    shares = probabilities(logits)
    votes = functional.one_hot(predicted(logits), logits.shape[2]).sum(0)
    pred = votes.argmax(1)  # the first of the largest counts
    confidence, agreement = (
        each.gather(1, pred[:, None])[:, 0] for each in (shares.mean(0), votes / len(logits))
    )
    finite = logits.isfinite().all(2).all(0)
    least = logits.mean(0).argmin(1)
    return Prediction(torch.where(finite, pred, -1), confidence, least, agreement)


def _may_lie_last(model: nn.Module, x: Tensor) -> bool:
    """Whether to ask with the channels last: on a CPU, of a model that convolves, answers alike and
    does not insist on the other order (as one that calls `view` does)."""
    if x.device.type != "cpu" or not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return False
    if model not in _last:
        try:
            there, here = model(_laid_last(x)), ask(model, x)
            off = float((there - here).abs().max() / here.abs().max())
            _last[model] = off <= LOGIT_TOLERANCE and torch.equal(predicted(there), predicted(here))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            _last[model] = False
    return _last[model]


def _laid_last(x: Tensor) -> Tensor:
    """x (n, c, h, w) with its channels side by side; strides say so for a single one, too."""
    _, c, h, w = x.shape
    return torch.empty_strided(x.shape, (c * h * w, 1, w * c, c), dtype=x.dtype).copy_(x)
