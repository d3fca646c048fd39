"""Types that attacks, models and data sets share: norms, goals, precision, access, threats."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Norm = Literal["linf", "l2", "l1", "l0", "rotation-translation", "corruption", "patch"]
"""What bounds the attacker: a norm, or a family of images in `bench.engine.threats`."""
GPUS = ("cuda", "xpu")
"""Types of GPUs with a queue, memory, generators and float64 of their own."""
BALLS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
"""The norms; for them eps is a radius. For a family it is the level of the family."""
Goal = Literal["untargeted", "targeted"]
Stop = Literal["first-success", "never"]
Sweep = Literal["independent", "nested"]
Loss = Literal["cross-entropy", "margin", "logit-difference", "label-and-target", "dlr", "pma"]
Combination = Literal["logits", "losses", "gradients"]
"""What a step averages over the models of a source: their logits (Dong et al. 2018, section 3.3,
https://arxiv.org/abs/1710.06081), their losses (Liu et al. 2017,
https://arxiv.org/abs/1611.02770), or their gradients, each divided by its own L1 norm, so that no
model leads by the size of its gradient."""
Precision = Literal["float32", "tf32", "bfloat16"]
"""Arithmetic of an attack's gradients; predictions are always in float32."""
Shape = tuple[int, int, int]
"""Channels, height, width of one image."""


@dataclass(frozen=True, kw_only=True)
class Threat:
    """What the attacker may do, inside the box [0, 1].

    In a norm: stay within eps of x. In a family of images: show one of its images of level eps.
    """

    norm: Norm
    eps: float
    goal: Goal = "untargeted"


Access = Literal["gradient", "scores", "labels"]
"""What a model lets an attack read."""
ACCESS_RANK = {"nothing": 0, "labels": 1, "scores": 2, "gradient": 3}
"""Rank of what an attack needs of a model; each includes those of lower rank."""
BoundMethod: TypeAlias = Literal["ibp", "crown"]
"""Bound propagation that certifies an example: intervals, or CROWN's linear bounds."""
CertificationMethod: TypeAlias = Literal["ibp", "crown", "smoothing"]
"""Bound propagation of the model, or randomised smoothing, which certifies another classifier."""
BallNorm: TypeAlias = Literal["linf", "l2"]
"""Norm of the balls that bounds hold in."""
