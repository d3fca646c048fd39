"""Randomised smoothing: exact bounds, radii that hold, and draws that depend on nothing else."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bench.evaluation.certification import smoothing
from bench.suite.schema import SmoothingSettings

TWO_PIXELS = (1, 1, 2)


def linear(weight: Tensor, bias: Tensor) -> Callable[[Tensor], Tensor]:
    """The classes that a linear classifier predicts."""
    return lambda images: (images.flatten(1) @ weight.T + bias).argmax(1)


def settings(
    sigma: float = 0.5, n0: int = 20, n: int = 200, alpha: float = 0.05
) -> SmoothingSettings:
    return SmoothingSettings(sigma=sigma, n0=n0, n=n, alpha=alpha)


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("n", [10, 1000])
def test_the_bound_is_the_exact_one_sided_interval_of_clopper_and_pearson(
    alpha: float, n: int
) -> None:
    counts = np.unique(np.linspace(0, n, 7).astype(int))
    found = smoothing.lower_confidence_bound(counts, n, alpha)
    for count, low in zip(counts.tolist(), found, strict=True):
        test = stats.binomtest(count, n, alternative="greater")
        exact = test.proportion_ci(1 - alpha, "exact").low
        assert low == pytest.approx(exact, abs=1e-12)
    assert found[0] == 0
    assert found[-1] == pytest.approx(alpha ** (1 / n))  # all draws of one class


def test_the_radius_is_that_of_the_theorem_and_0_where_no_class_has_half_the_draws() -> None:
    radii = smoothing.certified_radius(np.array([0.0, 0.5, 0.8413447460685429, 0.999]), 0.25)
    assert radii == pytest.approx([0, 0, 0.25, 0.25 * 3.090232306167813])


CLASSIFIERS = {
    "two classes": (torch.tensor([[1.0, 2.0], [-1.0, 0.5]]), torch.tensor([0.1, 0.3])),
    "three classes": (
        torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.5, -2.0]]), torch.tensor([0.1, 0.3, 0.6]),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "n"),
    [("two classes", 200), ("three classes", 100),
     pytest.param("two classes", 1000, marks=pytest.mark.slow)],
)  # fmt: skip
def test_of_1000_radii_of_a_linear_classifier_no_more_than_alpha_exceed_the_distance_to_its_edge(
    name: str, n: int
) -> None:
    weight, bias = CLASSIFIERS[name]
    x = torch.tensor([0.4, 0.6]).view(1, *TWO_PIXELS)
    logits = (x.flatten(1) @ weight.T + bias)[0]
    # The smoothed classifier of two classes has the same edge as the linear one.
    others = [k for k in range(len(bias)) if k != int(logits.argmax())]
    top = logits.argmax()
    distance = min(
        float((logits[top] - logits[k]) / (weight[top] - weight[k]).norm()) for k in others
    )
    chosen = settings(sigma=0.6, n=n)
    found = smoothing.certify_smoothed(
        linear(weight, bias), x.expand(1000, -1, -1, -1), torch.arange(1000), chosen, seed=0,
        rows=50_000,
    )  # fmt: skip
    wrong = int((found.radius > distance).sum())
    assert found.abstained[found.predicted != int(top)].all()
    assert wrong <= stats.binom.ppf(0.999, 1000, chosen.alpha)
    if name == "two classes":  # the bound is tight: as many are wrong as may be
        assert wrong >= stats.binom.ppf(0.001, 1000, 0.8 * chosen.alpha)


def test_on_the_edge_between_two_classes_the_smoothed_classifier_abstains() -> None:
    predict = linear(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2))
    x = torch.full((50, *TWO_PIXELS), 0.5)
    chosen = settings(alpha=0.001)
    found = smoothing.certify_smoothed(predict, x, torch.arange(50), chosen, 0, 500)
    assert found.abstained.sum() >= 48
    assert (found.radius[found.abstained] == 0).all()


def test_a_radius_depends_on_neither_the_batch_nor_the_other_examples() -> None:
    weight, bias = torch.randn(4, 16, generator=torch.Generator().manual_seed(1)), torch.zeros(4)
    x = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    ids = torch.tensor([3, 1, 4, 15, 9, 2])

    def certify(rows: int, at: list[int], seed: int = 0) -> smoothing.SmoothedPredictions:
        predict = linear(weight, bias)
        return smoothing.certify_smoothed(predict, x[at], ids[at], settings(), seed, rows)

    whole = certify(1000, [*range(6)])
    for other in (certify(7, [*range(6)]), certify(1, [*range(6)])):
        assert all(np.array_equal(a, b) for a, b in zip(whole, other, strict=True))
    part = certify(1000, [4, 2])
    assert all(np.array_equal(a[[4, 2]], b) for a, b in zip(whole, part, strict=True))
    assert not np.array_equal(certify(1000, [*range(6)], seed=1).successes, whole.successes)
    assert len(set(whole.successes.tolist())) > 1


def test_selection_and_estimation_use_different_draws() -> None:
    seen: list[Tensor] = []

    def predict(images: Tensor) -> Tensor:
        seen.append(images.flatten())
        return torch.zeros(len(images), dtype=torch.int64)

    x = torch.zeros(1, 1, 1, 1)
    smoothing.certify_smoothed(predict, x, torch.tensor([0]), settings(sigma=1.0), 0, 64)
    noise = torch.cat(seen)
    assert len(noise) == 220
    assert len(noise.unique()) == 220
    assert abs(float(noise.mean())) < 0.25
    assert float(noise.std()) == pytest.approx(1, abs=0.2)


def test_a_draw_without_finite_logits_counts_for_no_class() -> None:
    def predict(images: Tensor) -> Tensor:
        return torch.where(images.flatten(1)[:, 0] > 0, 2, -1)

    x = torch.tensor([100.0, -100.0, 0.0]).view(3, 1, 1, 1)
    found = smoothing.certify_smoothed(predict, x, torch.arange(3), settings(), 0, 64)
    assert found.predicted.tolist() == [2, -1, 2]
    assert found.successes[0] == 200
    assert found.successes[1] == 0
    assert 60 < found.successes[2] < 140
    assert found.abstained.tolist() == [False, True, True]


def test_a_class_that_no_estimating_draw_has_is_not_certified() -> None:
    calls = []

    def predict(images: Tensor) -> Tensor:
        calls.append(len(images))
        return torch.full((len(images),), 5 if sum(calls) <= 20 else 1)

    x = torch.zeros(1, 1, 1, 1)
    found = smoothing.certify_smoothed(predict, x, torch.tensor([0]), settings(), 0, 20)
    assert (found.predicted.item(), found.successes.item()) == (5, 0)
    assert found.abstained.all()
