"""What a model's logits say, read once and in one way: the class, and how sure.

The class is the largest logit's, compared in the type in which the model answered: float64 logits
that float32 cannot tell apart are not tied, and neither are small ones whose probabilities are. On
a tie it is the lowest class. Probabilities are for people alone; no verdict is read off them.
"""

import torch
from torch import Tensor


def widen(logits: Tensor) -> Tensor:
    """Logits in float32 where they are in half precision, which changes no value; as they are in
    float32 and float64."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def predict_class(logits: Tensor) -> Tensor:
    """The class of the largest logit along the last axis, the lowest on a tie."""
    return logits.argmax(-1)


def probabilities(logits: Tensor) -> Tensor:
    """Softmax along the last axis, computed in float32, or in float64 from float64 logits; stable,
    because torch subtracts the largest logit first. Returned in float32."""
    return widen(logits).softmax(-1).float()


def is_tied(logits: Tensor) -> Tensor:
    """Whether several classes share the largest logit exactly, along the last axis."""
    return (logits == logits.amax(-1, keepdim=True)).sum(-1) > 1
