"""Recognise a model that expects other pixels, channels or labels than the data have.

A model that is right more often once the channels are reversed, the pixels rescaled, normalised or
not, or the labels shifted by one was probably trained for that. Each such change is tried on the
same images, so the comparison is paired: an exact McNemar test (McNemar 1947,
https://doi.org/10.1007/BF02295996). In addition, unrelated predictions with the same frequencies
must be unlikely to be right so often. Both probabilities must be below MAX_CHANCE: with at most ten
changes, a sound model is suspected at most once in a thousand. A model that is nearly always right
is not tested, since no change could pass.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.core.contracts.dataset import Data
from bench.engine.functional.logits import predict_class
from bench.engine.model_state import InputWriteError, call_model
from bench.models.preflight.findings import Finding
from bench.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, MNIST_MEAN, MNIST_STD

N_IMAGES = 32
"""Images, spread over the data set, which may be sorted by class."""
MIN_IMAGES = 16
"""With fewer images a change of all answers is no evidence: 2**-13 is above SURE."""
MAX_CHANCE = 1e-4
"""Probability below which an improvement is not luck."""
NEAR_CHANCE = 0.01
"""Probability above which the clean accuracy counts as chance."""
GOOD_ACCURACY = 0.75
"""Clean accuracy that is not near chance, however unequal the classes are."""
MIN_CORRECTED = math.ceil(-math.log2(MAX_CHANCE))
"""Fewest wrong predictions that a change must correct to pass the test."""


class InputChange(NamedTuple):
    """A preprocessing that a model may expect."""

    name: str
    """Name of the finding."""
    description: str
    remedy: str
    apply: Callable[[Tensor], Tensor]
    """Images (n, c, h, w) in [0, 1] -> input that the model may expect."""


def list_changes(channels: int) -> list[InputChange]:
    """List the preprocessings to try.

    Args:
        channels: Channels of the images.

    Returns:
        Pixel ranges; normalisations for 1 or 3 channels; reversed channels for 3.
    """
    scale = "scale the images in the model's first layer"
    changes = [
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
        changes += [
            InputChange("normalisation", f"normalised by {named}", add,
                   lambda x: (x - mean.to(x)) / std.to(x)),
            InputChange("normalisation", f"with {named} undone", drop,
                   lambda x: x * std.to(x) + mean.to(x)),
        ]  # fmt: skip
    if channels == 3:
        turn = "it seems to expect BGR: reverse the channels in its first layer (x.flip(1))"
        changes.append(InputChange("channel-order", "with the channels reversed", turn,
                            lambda x: x.flip(1)))  # fmt: skip
    return changes


def find_wrong_preprocessing(
    where: str,
    model: nn.Module,
    data: Data,
    device: torch.device,
    first: Tensor | None = None,
) -> Iterator[Finding]:
    """Find the preprocessing or shift of labels that a model seems to expect.

    Args:
        where: Start of the sentence, such as "model 'net'".
        model: The model in evaluation mode, on `device`.
        data: The data set; without labels or with fewer than MIN_IMAGES nothing is tested.
        device: Device of the test.
        first: Predicted classes of the first images, (k,), where the model was asked before and
            its answers do not depend on the batch.

    Yields:
        At most one finding: the change that corrects most, or else an accuracy near chance.
    """
    if data.labels is None or data.n < MIN_IMAGES:
        return
    at = _choose_images(data.n)
    x = torch.cat([data.read(k, k + 1) for k in at]).to(device)
    y = data.labels[at].to(device)
    pred = _predict_others(model, x, at, first)
    if pred is None:
        return
    n, right = len(y), int((pred == y).sum())
    if n - right < MIN_CORRECTED:
        return
    better: list[tuple[int, Finding]] = []
    for change in list_changes(data.shape[0]):
        other = _predictions(model, change.apply(x))
        if other is not None and is_improvement(pred, y, other, y):
            k = int((other == y).sum())
            seen = (
                f"{where} is right about {right} of {n} clean images, "
                f"and about {k} {change.description}"
            )
            better.append((k, Finding(change.name, f"{seen}; {change.remedy}.")))
    for shift, how in ((1, "one more"), (-1, "one less")):
        if is_improvement(pred, y, pred, y + shift):
            k = int((pred == y + shift).sum())
            seen = f"{where} is right about {right} of {n} clean images, and about {k}"
            remedy = "shift the labels, or drop a background class from the model's outputs"
            sentence = f"{seen} if every label is {how}: they seem to be off by one; {remedy}."
            better.append((k, Finding("labels-off-by-one", sentence)))
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
            "weights (random unless its entry or its own code loads some), its normalisation (done "
            "twice, or not at all), its channels and its labels.",
        )


def _choose_images(n: int) -> list[int]:
    """Choose images spread over a data set of n, in ascending order."""
    return [k * n // N_IMAGES for k in range(N_IMAGES)] if n > N_IMAGES else [*range(n)]


def count_other_images(n: int, first: int) -> int:
    """Count the images of the test beyond the first ones.

    Args:
        n: Images of the data set.
        first: Images that the model was asked about before.

    Returns:
        Their number.
    """
    return 0 if n < MIN_IMAGES else sum(k >= first for k in _choose_images(n))


def _predict_others(
    model: nn.Module, x: Tensor, at: list[int], first: Tensor | None
) -> Tensor | None:
    """Return the predicted classes of x, which are images `at`; of the first ones as known."""
    known = 0 if first is None else sum(k < len(first) for k in at)  # `at` ascends
    if first is None or not known:
        return _predictions(model, x)
    others = _predictions(model, x[known:]) if known < len(at) else first[:0]
    return None if others is None else torch.cat([first[at[:known]], others])


def _predictions(model: nn.Module, x: Tensor) -> Tensor | None:
    """Return the predicted classes of x, (n,); None if the model rejects such images."""
    try:
        with torch.no_grad():
            logits: Tensor = call_model(model, x)
    except (KeyboardInterrupt, InputWriteError):
        raise
    except BaseException:  # foreign code may reject pixels outside [0, 1]
        return None
    return predict_class(logits)


def is_improvement(pred: Tensor, y: Tensor, other: Tensor, z: Tensor) -> bool:
    """Return whether other predictions fit significantly better, as the module states.

    Args:
        pred: Predictions, (n,).
        y: Their labels, (n,).
        other: Predictions after a change, (n,).
        z: Labels after a change, (n,).

    Returns:
        True if `other` agrees with `z` more often than `pred` with `y`, and not by chance.
    """
    before, after = pred == y, other == z
    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    lucky = binomial_tail(int(after.sum()), len(y), _chance(other, z))
    return binomial_tail(won, won + lost, 0.5) < MAX_CHANCE and lucky < MAX_CHANCE


def _chance(pred: Tensor, y: Tensor) -> float:
    """Return the probability that independent predictions and labels agree."""
    return sum(
        float((pred == each).double().mean() * (y == each).double().mean()) for each in y.unique()
    )


def binomial_tail(k: int, n: int, p: float) -> float:
    """Compute the probability of k or more successes among n of probability p each.

    >>> binomial_tail(0, 5, 0.1), binomial_tail(1, 2, 0.5)
    (1.0, 0.75)

    Args:
        k: Least number of successes.
        n: Number of trials.
        p: Probability of each success.

    Returns:
        The upper tail of the binomial distribution.
    """
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
