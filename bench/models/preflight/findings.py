"""What can be wrong with a model, by name: what preflight looks for, and a suite may allow."""

from typing import NamedTuple

FINDINGS = {
    "not-float32": "parameters in half or double precision, or logits in half",
    "not-finite": "NaN or infinity on clean images",
    "probabilities": "probabilities instead of logits",
    "log-probabilities": "log-probabilities instead of logits",
    "training-mode": "layers that evaluation mode does not reach",
    "random": "other answers each time",
    "batch-dependent": "answers that depend on the other images of a batch, or on their number",
    "writes-to-input": "a forward that writes into the images that it is given",
    "zero-gradient": "gradients of zeros on clean images, or none at all",
    "gradient-mode": "other answers where a gradient is asked for than where none is",
    "ties": "several classes with exactly the largest logit on clean images",
    "flat": "logits so small that every class is about as probable as any other",
    "non-finite-gradient": "gradients with entries that are NaN or infinite on clean images",
    "classes": "another number of classes than the data",
    "input-size": "images of another size than the model was made for",
    "labels-off-by-one": "labels that are one more or one less than the model's classes",
    "channel-order": "channels in the reverse order",
    "input-range": "pixels in another range than [0, 1]",
    "normalisation": "normalisation done twice or not at all",
    "near-chance": "as few right answers on clean images as chance gives",
}
"""Name -> meaning. What a model of another shape of output or of too few classes gives is no
finding but a mistake, since nothing could be computed with it."""


class Finding(NamedTuple):
    """One thing that is wrong with a model."""

    name: str
    """One of FINDINGS."""
    sentence: str
    """Where, what was seen and what to do; begins with the model, ends in a full stop."""
    refuses: bool = False
    """Whether every number would be wrong, so that the run stops unless the suite allows it."""

    def noted(self, allowed: bool) -> str:
        """The sentence as a report shows it."""
        return f"{self.sentence} ({self.name}{', allowed by the suite' if allowed else ''})"

    def refused(self) -> str:
        """The sentence as the user's mistake, with the way around it."""
        return f'{self.sentence[:-1]}; or, if that is meant, allow = ["{self.name}"] in its entry'
