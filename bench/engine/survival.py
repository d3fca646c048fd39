"""Forecast the steps that the items of an attack need still, from how long those before them did.

An item leaves at its first success, so that a bound by the number of steps says little: of a net
without defence most items need a few steps, of a robust one most need all. At each age (steps made
in all restarts) the share of items that succeeded is estimated as a hazard; ages that no item has
reached continue the last octave, as successes become rarer with age. An eps of which nothing is
known yet follows the nearest one, with a hazard proportional to eps.
Source: Kaplan and Meier 1958 (survival from items of which some are still under attack),
https://doi.org/10.1080/01621459.1958.10501452
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

GROWTH = 1.3
"""Ratio of the ends of two successive age groups."""
LEAST_SEEN = 8
"""Items from which an eps is known by itself."""
PRIOR_ITEMS = 1.0
"""Items that what is expected counts as, beside those that were seen."""
MAX_HAZARD = 0.95
MAX_RATIO = 8.0
"""Most by which a hazard is scaled from one eps to another."""


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
        """Know nothing yet.

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
        self._ages = torch.zeros(shape, dtype=torch.float64)
        """Sum of the ages at success, by eps and age group."""
        self._survived = torch.zeros(len(self.eps), dtype=torch.float64)

    def add_finished(self, eps: Tensor, age: Tensor, won: Tensor) -> None:
        """Learn of items that need no more steps at their eps.

        Args:
            eps: Index of the eps of each item, (n,), int64.
            age: Steps that it made, (n,), int64.
            won: Whether it succeeded, (n,), bool.
        """
        self._survived += torch.bincount(eps[~won], minlength=len(self.eps))
        groups = self._succeeded.shape[1]
        at = eps[won] * groups + torch.bucketize(age[won], self._ends).clamp_max(groups - 1)
        size = self._succeeded.numel()
        self._succeeded += torch.bincount(at, minlength=size).view_as(self._succeeded)
        ages = torch.bincount(at, age[won].double(), minlength=size)
        self._ages += ages.view_as(self._ages)

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
        edges = torch.tensor(self.edges, dtype=torch.float64)
        group = torch.bucketize(age, self._ends, right=True)
        expected = torch.tensor(self._expect_steps(eps, group), dtype=torch.float64)
        low = group.clamp_max(len(self.edges) - 2)
        share = (age - edges[low]) / (edges[low + 1] - edges[low])
        left = expected[eps, low] * (1 - share) + expected[eps, low + 1] * share
        return float(left.sum())

    def _expect_steps(self, eps: Tensor, group: Tensor) -> list[list[float]]:
        """Expect the steps of an item at the beginning of each age group and at the end, per eps.

        `eps` and `group` are those of the items that are not finished.
        """
        hazards = self._estimate_hazards(eps, group)
        after = 0.0
        expected: list[list[float]] = [[]] * len(self.eps)
        for index in sorted(range(len(self.eps)), key=self.eps.__getitem__, reverse=True):
            left = [after if self.nested else 0.0]
            for at in reversed(range(len(self.edges) - 1)):
                low, high = self.edges[at], self.edges[at + 1]
                hazard, seen = hazards[index][at], float(self._succeeded[index, at])
                life = float(self._ages[index, at]) / seen if seen else (low + high + 1) / 2
                left.append(hazard * (life - low) + (1 - hazard) * (high - low + left[-1]))
            expected[index] = left[::-1]
            after = left[-1]
        return expected

    def _estimate_hazards(self, eps: Tensor, group: Tensor) -> list[list[float]]:
        """Estimate the share of items that succeed in each age group, per eps."""
        groups = len(self.edges) - 1
        if not self.stops:
            return [[0.0] * groups for _ in self.eps]
        alive = torch.bincount(eps * (groups + 1) + group, minlength=len(self.eps) * (groups + 1))
        there = alive.view(len(self.eps), groups + 1).double()
        there[:, :groups] += self._succeeded
        there[:, groups] += self._survived
        passed = there.flip(1).cumsum(1).flip(1)  # those that ended in this group or passed it
        at_risk = passed[:, :groups] - alive.view_as(there)[:, :groups]
        order = sorted(range(len(self.eps)), key=lambda index: -float(at_risk[index, 0]))
        known: dict[int, list[float]] = {}
        for index in order:
            near = min(known, key=lambda other: abs(self._ratio(index, other) - 1), default=None)
            scaled = None if near is None else self._scale(known[near], self._ratio(index, near))
            if scaled is not None and float(at_risk[index, 0]) < LEAST_SEEN:
                known[index] = scaled
                continue
            known[index] = self._smooth(
                self._succeeded[index].tolist(), at_risk[index].tolist(), scaled
            )
        return [known[index] for index in range(len(self.eps))]

    def _ratio(self, index: int, other: int) -> float:
        """Return the ratio of two eps, as far as hazards are scaled by it."""
        one, two = self.eps[index], self.eps[other]
        if not (0 < one < math.inf and 0 < two < math.inf):
            return 1.0
        return min(MAX_RATIO, max(1 / MAX_RATIO, one / two))

    @staticmethod
    def _scale(hazards: list[float], ratio: float) -> list[float]:
        return [1 - (1 - hazard) ** ratio for hazard in hazards]

    def _smooth(
        self, succeeded: list[float], at_risk: list[float], prior: list[float] | None
    ) -> list[float]:
        """Estimate hazards from successes among items at risk, group by group."""
        hazards: list[float] = []
        for at, (ended, risk) in enumerate(zip(succeeded, at_risk, strict=True)):
            guess = self._continue(hazards, at) if prior is None else prior[at]
            weight = PRIOR_ITEMS if at or prior is not None else 0.0
            hazard = (ended + weight * guess) / (risk + weight) if risk + weight else 0.0
            hazards.append(min(MAX_HAZARD, hazard))
        return hazards

    def _continue(self, hazards: list[float], at: int) -> float:
        """Continue the hazards of the last octave of ages, which fall as age grows."""
        if not hazards:
            return 0.0
        end, low = self.edges[at], self.edges[at] / 2
        survived, first = 0.0, self.edges[at]
        for (begin, _), hazard in zip(
            [*pairwise(self.edges)][:at][::-1], hazards[::-1], strict=True
        ):
            if begin < low and first < end:
                break
            survived += math.log1p(-hazard)
            first = begin
        octaves = math.log2((end + 1) / (first + 1))
        ahead = math.log2((self.edges[at + 1] + 1) / (end + 1))
        return 1 - math.exp(survived / octaves * ahead)
