"""The judge: what a model itself, in evaluation mode and float32, says of images.

Attacks may lead with a copy of a model and in lower precision; the verdict is always this one.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench import engine
from bench.guard import evaluating, tensor_cores


class Verdict(NamedTuple):
    """What a model says of images; every field is (n,)."""

    pred: Tensor
    """-1 where the logits are not finite."""
    confidence: Tensor
    """Softmax probability of the prediction, NaN where the logits are not finite."""
    least_likely: Tensor


def judge(model: nn.Module, x: Tensor, rows: int) -> Verdict:
    """What `model`, in evaluation mode and full precision, says of x (n, c, h, w), n > 0.

    Where memory runs out, it is asked about half as many rows at a time.
    """
    try:
        with evaluating(model), torch.no_grad(), tensor_cores(False):
            logits = torch.cat([model(part).float() for part in x.split(rows)])
    except RuntimeError as error:
        if rows == 1 or not engine.out_of_memory(error):
            raise
        return judge(model, x, rows // 2)
    confidence, pred = logits.softmax(1).max(1)
    finite = logits.isfinite().all(1)
    return Verdict(torch.where(finite, pred, -1), confidence, logits.argmin(1))
