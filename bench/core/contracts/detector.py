"""How a model with a detector rejects images, and how a rejection is counted."""

import math
from dataclasses import dataclass
from typing import Literal

RejectedSide = Literal["above", "below"]
RejectionCounting = Literal["robust", "error"]


@dataclass(frozen=True, kw_only=True)
class Detector:
    """The detector of a model that returns a score beside its logits.

    A clean image that is rejected is not classified correctly, in either counting.
    """

    output: str | int
    """Which part of the model's output is the score, (n,) or (n, 1): an index, key or attribute."""
    threshold: float
    """A score of exactly the threshold is accepted."""
    rejects: RejectedSide = "above"
    """On which side of the threshold an image is rejected."""
    rejected: RejectionCounting
    """How an adversarial image that is rejected counts: "robust", since the attack was noticed, or
    "error", since the image was not classified."""

    def __post_init__(self) -> None:
        """Check the threshold.

        Raises:
            ValueError: It is not finite.
        """
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold: expected a finite number, got {self.threshold}")

    def describe(self) -> str:
        """Describe the detector.

        Returns:
            A clause without its subject, which is the model.
        """
        counted = "as robust" if self.rejected == "robust" else "as an error"
        return (
            f"rejects images whose score (output {self.output!r}) is {self.rejects} "
            f"{self.threshold:g}; an adversarial image that is rejected counts {counted}, a clean "
            "one as not classified correctly"
        )
