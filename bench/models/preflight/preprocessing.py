"""What a model's clean accuracy gives away: labels or pixels that it does not expect.

A model that is right more often once the channels are reversed, the pixels rescaled, normalised or
not, or the labels shifted by one was probably made for that. Each such change is tried on the same
few images, so the comparison is paired: an exact McNemar test (McNemar 1947,
https://doi.org/10.1007/BF02295996), and beside it the chance that unrelated predictions with the
same frequencies would be right so often. Both must be below SURE: with ten changes at most, a sound
model is suspected once in a thousand at worst. A model that is right about nearly everything is
asked for nothing more, since no change could pass the test.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.dataset import Data
from bench.engine.functional.logits import predicted
from bench.engine.model_state import WrittenError, ask
from bench.models.preflight.findings import Finding
from bench.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, MNIST_MEAN, MNIST_STD

N_IMAGES = 32
"""Images, spread over the data set, for it may be sorted by class."""
MIN_IMAGES = 16
"""With fewer images a change of all answers is no evidence: 2**-13 is above SURE."""
MAX_CHANCE = 1e-4
"""Probability below which an improvement is not luck."""
NEAR_CHANCE = 0.01
"""Probability from which the clean accuracy is not told from chance."""
GOOD_ACCURACY = 0.75
"""Clean accuracy that is near chance nowhere, however unequal the classes are."""
MIN_CORRECTED = math.ceil(-math.log2(MAX_CHANCE))
"""Wrong answers that a change must put right, at least, to pass the test."""


class InputChange(NamedTuple):
    """One way in which a model may have been meant to be shown its images."""

    name: str
    how: str
    remedy: str
    of: Callable[[Tensor], Tensor]
    """images (n, c, h, w) in [0, 1] -> what the model may expect."""


def list_changes(channels: int) -> list[InputChange]:
    """What is tried on images of so many channels."""
    scale = "scale the images in the model's first layer"
    found = [
        InputChange(
            "input-range", "with pixels times 255", f"{scale} (255 * x)", lambda x: 255 * x
        ),
        InputChange(
            "input-range", "with pixels in [-1, 1]", f"{scale} (2 * x - 1)", lambda x: 2 * x - 1
        ),
    ]
    known = {1: ("MNIST", MNIST_MEAN, MNIST_STD), 3: ("ImageNet", IMAGENET_MEAN, IMAGENET_STD)}
    if channels in known:
        whose, *moments = known[channels]
        mean, std = (torch.tensor(value)[:, None, None] for value in moments)
        add = "it seems not to normalise: make that its first layer (bench.models.Normalise)"
        drop = "it seems to normalise twice: take one of the two away"
        named = f"{whose}'s mean and standard deviation"
        found += [
            InputChange("normalisation", f"normalised by {named}", add,
                   lambda x: (x - mean.to(x)) / std.to(x)),
            InputChange("normalisation", f"with {named} undone", drop,
                   lambda x: x * std.to(x) + mean.to(x)),
        ]  # fmt: skip
    if channels == 3:
        turn = "it seems to expect BGR: reverse the channels in its first layer (x.flip(1))"
        found.append(InputChange("channel-order", "with the channels reversed", turn,
                            lambda x: x.flip(1)))  # fmt: skip
    return found


def find_wrong_preprocessing(
    where: str, model: nn.Module, data: Data, device: torch.device
) -> Iterator[Finding]:
    """At most one finding: the change that puts most right, or else an accuracy near chance.

    None where the data have no labels of their own or too few images. The model is in evaluation
    mode.
    """
    if data.labels is None or data.n < MIN_IMAGES:
        return
    at = (
        [k * data.n // N_IMAGES for k in range(N_IMAGES)] if data.n > N_IMAGES else [*range(data.n)]
    )
    x = torch.cat([data.read(k, k + 1) for k in at]).to(device)
    y = data.labels[at].to(device)
    pred = _predictions(model, x)
    if pred is None:
        return
    n, right = len(y), int((pred == y).sum())
    if n - right < MIN_CORRECTED:
        return
    better: list[tuple[int, Finding]] = []
    for change in list_changes(data.shape[0]):
        other = _predictions(model, change.of(x))
        if other is not None and is_improvement(pred, y, other, y):
            k = int((other == y).sum())
            seen = f"{where} is right about {right} of {n} clean images, and about {k} {change.how}"
            better.append((k, Finding(change.name, f"{seen}; {change.remedy}.")))
    for shift, how in ((1, "one more"), (-1, "one less")):
        if is_improvement(pred, y, pred, y + shift):
            k = int((pred == y + shift).sum())
            seen = f"{where} is right about {right} of {n} clean images, and about {k}"
            remedy = "shift the labels, or drop a background class from the model's outputs"
            told = f"{seen} if every label is {how}: they seem to be off by one; {remedy}."
            better.append((k, Finding("labels-off-by-one", told)))
    if better:
        yield max(better, key=lambda pair: pair[0])[1]
    elif (
        right < GOOD_ACCURACY * n
        and binomial_tail(right, n, _chance(pred, y)) > NEAR_CHANCE
        and len(y.unique()) > 1
    ):
        yield Finding(
            "near-chance",
            f"{where} is right about {right} of {n} clean images, which chance explains: check its "
            "weights, its normalisation (done twice, or not at all), its channels and its labels.",
        )


def _predictions(model: nn.Module, x: Tensor) -> Tensor | None:
    """The predicted classes of x, (n,); None of a model that refuses such images."""
    try:
        with torch.no_grad():
            logits: Tensor = ask(model, x)
    except (KeyboardInterrupt, WrittenError):
        raise
    except BaseException:  # a stranger's forward may refuse what is outside [0, 1]
        return None
    return predicted(logits)


def is_improvement(pred: Tensor, y: Tensor, other: Tensor, z: Tensor) -> bool:
    """Whether `other` is right about labels z surely more often than `pred` about y; all (n,)."""
    before, after = pred == y, other == z
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    lucky = binomial_tail(int(after.sum()), len(y), _chance(other, z))
    return binomial_tail(won, won + lost, 0.5) < MAX_CHANCE and lucky < MAX_CHANCE


def _chance(pred: Tensor, y: Tensor) -> float:
    """Probability that a prediction and a label agree that have nothing to do with each other."""
    return sum(
        float((pred == each).double().mean() * (y == each).double().mean()) for each in y.unique()
    )


def binomial_tail(k: int, n: int, p: float) -> float:
    """Probability of k or more successes among n of probability p each.

    >>> binomial_tail(0, 5, 0.1), binomial_tail(1, 2, 0.5)
    (1.0, 0.75)
    """
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
