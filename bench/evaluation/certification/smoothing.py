"""Certify the smoothed classifier of a model by randomised smoothing.

The smoothed classifier g maps an image x to the class that the model f most probably predicts of
x + N(0, sigma^2 I). If f predicts class A of the noisy image with probability p_A > 1/2, g predicts
A of every image closer to x than R = sigma Phi^-1(p_A) in L2. The algorithm CERTIFY of the paper:
n0 draws select a class; of n further draws those of that class are counted, and the exact lower
confidence bound of p_A (Clopper and Pearson, one-sided, level 1 - alpha) takes the place of p_A. If
it is not above 1/2, g abstains. Each radius is wrong with probability alpha at most.

Source: Cohen, Rosenfeld and Kolter 2019, sections 3.1 and 3.2.2, https://arxiv.org/abs/1902.02918

The certificate is of g, not of f: f may be wrong of x itself, and an attack on f contradicts no
radius of g. It is of g without a box: noisy images are not clipped to [0, 1]. Noise is drawn in
float32 and taken to be Gaussian exactly, as in the paper. A draw of which f has no finite logits
counts as none of the class.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.core import rng
from bench.suite.schema import SmoothingSettings


class SmoothedPredictions(NamedTuple):
    """What CERTIFY finds of n examples; every field is (n,)."""

    predicted: np.ndarray
    """The class that most of the first draws are of, the smaller one on a tie; -1 if none has
    finite logits."""
    successes: np.ndarray
    """How many of the further draws are of that class."""
    probability_low: np.ndarray
    """Lower confidence bound of its probability."""
    radius: np.ndarray
    """Certified L2 radius; 0 where g abstains."""
    abstained: np.ndarray


def certify_smoothed(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    ids: Tensor,
    settings: SmoothingSettings,
    seed: int,
    rows: int,
) -> SmoothedPredictions:
    """Certify the smoothed classifier at some images.

    Noise is keyed by seed, example and number of the draw, so that a result does not depend on
    `rows` or on the other images.

    Args:
        predict: Maps images (rows, c, h, w) to classes (rows,); -1 where it predicts none.
        x: Images (n, c, h, w).
        ids: Ids of the examples (n,).
        settings: Sigma, numbers of draws and alpha.
        seed: Seed of the noise.
        rows: Most images per call.

    Returns:
        Class, count, bound and radius of each image.
    """
    first = _count_predictions(predict, x, ids, settings, range(settings.n0), seed, rows)
    last = settings.n0 + settings.n
    further = _count_predictions(predict, x, ids, settings, range(settings.n0, last), seed, rows)
    predicted = np.where(first.any(1), first.argmax(1), -1)
    classes = max(first.shape[1], further.shape[1])
    further = np.pad(further, ((0, 0), (0, classes - further.shape[1])))
    count = np.where(predicted < 0, 0, further[np.arange(len(predicted)), predicted])
    low = lower_confidence_bound(count, settings.n, settings.alpha)
    radius = certified_radius(low, settings.sigma)
    return SmoothedPredictions(predicted, count, low, radius, low <= 0.5)


def _count_predictions(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    ids: Tensor,
    settings: SmoothingSettings,
    draws: range,
    seed: int,
    rows: int,
) -> np.ndarray:
    """Count the classes predicted of noisy copies of each image, (n, classes)."""
    pairs = len(x) * len(draws)
    counts = np.zeros((len(x), 1), dtype=np.int64)
    for start in range(0, pairs, rows):
        at = torch.arange(start, min(start + rows, pairs))
        example, draw = at // len(draws), at % len(draws) + draws.start
        images = x[example.to(x.device)]
        noise = rng.Noise(seed, "smoothing", ids.cpu()[example], draw)
        found = predict(images + settings.sigma * noise.normal(images)).cpu().numpy()
        classes = int(found.max()) + 1
        if classes > counts.shape[1]:
            counts = np.pad(counts, ((0, 0), (0, classes - counts.shape[1])))
        valid = found >= 0
        np.add.at(counts, (example.numpy()[valid], found[valid]), 1)
    return counts


def lower_confidence_bound(count: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Bound the probability behind counts from below, exactly.

    Source: Clopper and Pearson 1934; the paper's LowerConfBound.

    Args:
        count: Numbers of successes, each in 0..n.
        n: Number of trials.
        alpha: Largest probability that a bound is wrong.

    Returns:
        One-sided lower bounds of level 1 - alpha.
    """
    from scipy import stats  # 0.5 s to import, and most runs smooth nothing

    bound = stats.beta.ppf(alpha, np.maximum(count, 1), n - np.maximum(count, 1) + 1)
    return np.where(count > 0, bound, 0.0)


def certified_radius(probability_low: np.ndarray, sigma: float) -> np.ndarray:
    """Compute the certified L2 radius, sigma Phi^-1(p).

    Source: Cohen et al. 2019, theorem 1, with the other classes' probability at most 1 - p.

    Args:
        probability_low: Lower bounds p of the class's probability.
        sigma: Standard deviation of the noise.

    Returns:
        Radii, in units of pixel values; 0 where p is not above 1/2.
    """
    from scipy import stats

    return np.where(probability_low > 0.5, sigma * stats.norm.ppf(probability_low), 0.0)
