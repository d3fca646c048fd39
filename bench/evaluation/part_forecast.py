"""Forecast the passes of an ensemble from those of the parts that have run.

A part attacks what resisted the parts before it. What it took of its bound on passes is close to
the share of its examples that resisted: the others leave early. A part that has not run is expected
to break nothing and to need its bound; what one that ran breaks at a larger eps is scaled as in
`bench.engine.survival`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from bench.core.contracts.attack import AttackSpec, EnsembleAttack
from bench.engine.progress import find_counter
from bench.engine.survival import SHAPE
from bench.suite.cost import count_passes

DOUBT = 0.5
"""Examples that a part counts as having broken beside those that it broke: at larger eps, one that
broke none may break some."""


class PartOutcome(NamedTuple):
    """What a part did at one eps."""

    eps: float
    resisted: float
    """Share of its examples that it did not break."""
    used: float
    """Share of its bound on passes that it made."""


class PartForecast:
    """What the parts of an ensemble did, and what those that follow are expected to need."""

    def __init__(self, spec: AttackSpec, n: int) -> None:
        """Start a forecast of which no part has run.

        Args:
            spec: An ensemble with its params and eps.
            n: Examples.
        """
        assert isinstance(spec.attack, EnsembleAttack)
        self._counter = find_counter()
        self._n, self._nested = n, spec.sweep == "nested"
        self._eps = sorted(spec.eps)
        self._bounds = []
        for part in spec.attack.parts(spec.params, spec.norm):
            one = replace(
                spec, attack=part.attack, params=part.params, eps=(1.0,), sweep="independent"
            )
            forwards, backwards = count_passes(one)
            self._bounds.append(((forwards or 0.0) + (backwards or 0.0)) / 2)
        self._known: dict[int, PartOutcome] = {}
        """Number of a part -> its outcome at the largest eps so far."""

    @contextmanager
    def run_part(self, number: int, eps: float, rows: int) -> Iterator[list[int]]:
        """Count the passes of one part.

        Args:
            number: Number of the part.
            eps: Its radius.
            rows: Examples that it attacks, at least 1.

        Yields:
            A list, to which the caller appends the number of examples that resisted.
        """
        resisted: list[int] = []
        if self._counter is None:
            yield resisted
            return
        counter, start = self._counter, self._counter.passes
        bound = max(self._bounds[number] * rows, 1e-9)

        def extend(left: float) -> float:
            made = counter.passes - start
            total = self._expect_passes(number, eps, bound, made, left)
            used = min(1.0, total / bound)
            return (
                total - made + self._count_others(number, eps, rows, PartOutcome(eps, used, used))
            )

        with counter.extend_left(extend):
            yield resisted
        most = rows / (rows + DOUBT)
        used = min(most, (counter.passes - start) / bound)
        self._known[number] = PartOutcome(eps, resisted[0] / rows * most, used)

    def _expect_passes(
        self, number: int, eps: float, bound: float, made: float, left: float
    ) -> float:
        """Return the expected passes of the part that runs, at first by those at a smaller eps."""
        total = made + left
        if number not in self._known or not total:
            return total
        known = self._known[number]
        before = bound * math.pow(known.used, (eps / known.eps) ** SHAPE)
        trust = made / total
        return max(made, trust * total + (1 - trust) * before)

    def _count_others(self, number: int, eps: float, rows: int, running: PartOutcome) -> float:
        """Count the passes of all parts after the one that runs, at this eps and larger ones."""
        known = {**self._known, number: running}
        resist = rows * running.resisted
        total, resist = self._count_parts(known, range(number + 1, len(self._bounds)), eps, resist)
        previous = eps
        for larger in (each for each in self._eps if each > eps):
            start = resist if self._nested else float(self._n)
            # Of what resisted at the eps before, only what is new is expected to be broken.
            since = previous if self._nested else 0.0
            more, resist = self._count_parts(known, range(len(self._bounds)), larger, start, since)
            total += more
            previous = larger
        return total

    def _count_parts(
        self, known: dict[int, PartOutcome], numbers: Sequence[int], eps: float, resist: float,
        since: float = 0.0,
    ) -> tuple[float, float]:  # fmt: skip
        """Count the passes of parts one after another; also return what resists all of them."""
        total = 0.0
        for number in numbers:
            outcome = known.get(number, PartOutcome(eps, 1.0, 1.0))
            power = (eps / outcome.eps) ** SHAPE - (since / outcome.eps) ** SHAPE
            total += resist * self._bounds[number] * outcome.used**power
            resist *= outcome.resisted**power
        return total, resist
