"""List what preflight looks for in a model; a suite may allow each finding by its name."""

import re
from typing import NamedTuple

FINDINGS = {
    "checkpoint": "a file of weights that holds more than the model's state",
    "output": "an output that holds more than the logits",
    "score-gradient": "a score whose gradient is zero or none on clean images",
    "fixed-batch": "a model that takes one number of images alone",
    "not-float32": "parameters in half or double precision, or logits in half",
    "not-finite": "NaN or infinity on clean images",
    "probabilities": "probabilities instead of logits",
    "log-probabilities": "log-probabilities instead of logits",
    "binary-probabilities": "one score an image from 0 to 1, read as a binary classifier's logit",
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
"""Name -> meaning. A wrong output shape or too few classes are errors instead, since nothing can be
computed with such a model."""


class Finding(NamedTuple):
    """A property of a model that makes its results wrong or doubtful."""

    name: str
    """One of FINDINGS."""
    sentence: str
    """Names the model, what was observed and what to do; ends in a full stop."""
    refuses: bool = False
    """Whether all results would be wrong, so that the run stops unless the suite allows it."""

    def format_note(self, allowed: bool) -> str:
        """Format the finding for a report.

        Args:
            allowed: Whether the suite allows it.

        Returns:
            The sentence and the name.
        """
        return f"{self.sentence} ({self.name}{', allowed by the suite' if allowed else ''})"

    def format_error(self) -> str:
        """Format the finding as an error, with the setting that allows it.

        Returns:
            The sentence.
        """
        return f'{self.sentence[:-1]}; or, if that is meant, allow = ["{self.name}"] in its entry'


def read_name(note: str) -> str:
    """Read the name of a finding from its note, as a manifest stores it.

    Args:
        note: A sentence of `Finding.format_note`, or any other.

    Returns:
        The name; "" of a sentence that ends without one.

    >>> read_name("model 'a' answers otherwise (if asked twice). (random, allowed by the suite)")
    'random'
    """
    found = re.search(r"\((?P<name>[a-z0-9-]+)(, allowed by the suite)?\)$", note)
    return found["name"] if found else ""
