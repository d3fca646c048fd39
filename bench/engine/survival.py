"""Forecast the steps that the items of an attack need still, from how long those before them did.

An item leaves at its first success, so that a bound by the number of steps says little: of a net
without defence most items need a few steps, of a robust one most need all. At each age (steps made
in all restarts) the share of items that succeeded is estimated as a hazard; ages that no item has
reached continue the last octave, as successes become rarer with age. An eps of which nothing is
known yet follows the nearest one: survival falls with eps as a Weibull distribution's does.
Source: Kaplan and Meier 1958 (survival from items of which some are still under attack),
https://doi.org/10.1080/01621459.1958.10501452
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

GROWTH = 1.3
"""Ratio of the ends of two successive age groups."""
LEAST_SEEN = 8
"""Items from which an eps is known by itself, beside as many that another eps lets expect."""
PRIOR_ITEMS = 1.0
"""Items that hazards continued from smaller ages count as."""
MAX_HAZARD, TINY = 0.95, 1e-9
"""Hazards of a step: most, and what counts as none."""
SHAPE = 2.0
"""Of that distribution: what an attack breaks rises faster than in proportion to eps."""
MAX_RATIO = 8.0
"""Largest ratio of two eps by which a hazard is scaled."""


def group_ages(most: int) -> list[int]:
    """Divide ages into groups, each about GROWTH times as long as those before it together.

    >>> group_ages(10)
    [0, 1, 2, 3, 4, 5, 6, 8, 10]

    Args:
        most: Largest age.

    Returns:
        Ends of the groups, from 0 to `most`.
    """
    edges = [0]
    while edges[-1] < most:
        edges.append(min(most, max(edges[-1] + 1, round(edges[-1] * GROWTH))))
    return edges


class SurvivalForecast:
    """Expected steps of items, by eps and age."""

    def __init__(self, eps: Sequence[float], most: int, nested: bool, stops: bool) -> None:
        """Start a forecast of which no item has finished.

        Args:
            eps: Radii in the order of the items' index.
            most: Steps of an item at one eps, all restarts together.
            nested: Whether an item that survives goes on at the next larger eps.
            stops: Whether an item leaves at its first success.
        """
        self.eps, self.nested, self.stops = [*eps], nested, stops
        self.edges = group_ages(most)
        self._ends = torch.tensor(self.edges[1:])
        shape = len(self.eps), len(self.edges) - 1
        self._succeeded = torch.zeros(shape, dtype=torch.float64)
        self._exposed = torch.zeros(shape, dtype=torch.float64)
        """Steps that finished items made, by eps and age group."""

    def add_finished(self, eps: Tensor, age: Tensor, won: Tensor) -> None:
        """Add items that need no more steps at their eps.

        Args:
            eps: Index of the eps of each item, (n,), int64.
            age: Steps that it made, (n,), int64.
            won: Whether it succeeded, (n,), bool.
        """
        groups = self._succeeded.shape[1]
        at = eps[won] * groups + torch.bucketize(age[won], self._ends).clamp_max(groups - 1)
        counted = torch.bincount(at, minlength=self._succeeded.numel())
        self._succeeded += counted.view_as(self._succeeded)
        self._exposed += self._count_exposed(eps, age)

    def count_left(self, eps: Tensor, age: Tensor) -> float:
        """Count the steps that items are expected to make still.

        Args:
            eps: Index of the eps of each item that waits or is under attack, (n,), int64.
            age: Steps that it made, (n,), int64.

        Returns:
            Steps of all of them, and under "nested" of what follows them.
        """
        if not len(eps):
            return 0.0
        hazards = self._estimate_hazards(self._exposed + self._count_exposed(eps, age))
        after = self._expect_after(hazards)
        group = torch.bucketize(age, self._ends, right=True).clamp_max(len(self.edges) - 2)
        width = self._ends[group] - age
        inside, survived = _pass_group(
            torch.tensor(hazards, dtype=torch.float64)[eps, group], width
        )
        later = torch.tensor(after, dtype=torch.float64)[eps, group]
        return float((inside + survived * later).sum())

    def _count_exposed(self, eps: Tensor, age: Tensor) -> Tensor:
        """Count the steps that items made, by eps and age group."""
        low = torch.tensor(self.edges[:-1])
        made = (age[:, None].minimum(self._ends) - low).clamp_min(0).double()
        return torch.zeros_like(self._exposed).index_add_(0, eps, made)

    def _expect_after(self, hazards: list[list[float]]) -> list[list[float]]:
        """Expect the steps of an item after the end of each age group, per eps."""
        chained = 0.0
        expected: list[list[float]] = [[]] * len(self.eps)
        for index in sorted(range(len(self.eps)), key=self.eps.__getitem__, reverse=True):
            after = [chained if self.nested else 0.0]
            for at in reversed(range(len(self.edges) - 1)):
                width, hazard = self.edges[at + 1] - self.edges[at], hazards[index][at]
                survived = (1 - hazard) ** width
                inside = (1 - survived) / hazard if hazard > TINY else float(width)
                after.append(inside + survived * after[-1])
            chained = after[-1]
            expected[index] = after[-2::-1]
        return expected

    def _estimate_hazards(self, exposed: Tensor) -> list[list[float]]:
        """Estimate the share of items that succeed at each step, by eps and age group.

        `exposed` are the steps that all items made, likewise.
        """
        if not self.stops:
            return [[0.0] * len(self._ends) for _ in self.eps]
        seen = exposed[:, 0].tolist()
        known: dict[int, list[float]] = {}
        for index in sorted(range(len(self.eps)), key=lambda index: -seen[index]):
            near = min(known, key=lambda other: abs(self._ratio(index, other) - 1), default=None)
            prior = None if near is None else self._scale(known[near], self._ratio(index, near))
            if prior is None or seen[index] >= LEAST_SEEN:
                counts = self._succeeded[index].tolist(), exposed[index].tolist()
                prior = self._smooth(*counts, prior)
            known[index] = prior
        return [known[index] for index in range(len(self.eps))]

    def _ratio(self, index: int, other: int) -> float:
        """Return the ratio of two eps, as far as hazards are scaled by it."""
        one, two = self.eps[index], self.eps[other]
        if not (0 < one < math.inf and 0 < two < math.inf):
            return 1.0
        return min(MAX_RATIO, max(1 / MAX_RATIO, one / two))

    @staticmethod
    def _scale(hazards: list[float], ratio: float) -> list[float]:
        return [1 - (1 - hazard) ** ratio**SHAPE for hazard in hazards]

    def _smooth(
        self, succeeded: list[float], exposed: list[float], prior: list[float] | None
    ) -> list[float]:
        """Estimate hazards from successes in the steps that were made, group by group."""
        hazards: list[float] = []
        for at, (ended, steps) in enumerate(zip(succeeded, exposed, strict=True)):
            guess = self._continue(hazards) if prior is None else prior[at]
            width = self.edges[at + 1] - self.edges[at]
            items = PRIOR_ITEMS if prior is None else LEAST_SEEN
            weight = items * width if at or prior is not None else 0.0
            hazard = (ended + weight * guess) / (steps + weight) if steps + weight else 0.0
            hazards.append(min(MAX_HAZARD, hazard))
        return hazards

    def _continue(self, hazards: list[float]) -> float:
        """Continue the hazards of the last octave of ages in inverse proportion to age."""
        if not hazards:
            return 0.0
        at = len(hazards)
        end, survived, first = self.edges[at], 0.0, at
        while first and (first == at or self.edges[first] > end / 2):
            first -= 1
            width = self.edges[first + 1] - self.edges[first]
            survived += width * math.log1p(-hazards[first])
        octaves = math.log2((end + 1) / (self.edges[first] + 1))
        high = self.edges[at + 1]
        ahead = math.log2((high + 1) / (end + 1))
        return 1 - math.exp(survived / octaves * ahead / (high - end))


def _pass_group(hazard: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected steps within so many ages of one hazard, and the share that survives."""
    survived = (1 - hazard) ** width
    steps = torch.where(hazard > TINY, (1 - survived) / hazard.clamp_min(TINY), width)
    return steps, survived
