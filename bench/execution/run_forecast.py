"""Forecast how long a run takes still, from its events.

A work unit at work says itself what it expects (`bench.engine.progress`). What waits is estimated
by the seconds that each model under each attack has taken so far for its work; where a pair has not
run, by those that have: an overhead and a pace, times what the same attack took more or less than
that on other models, and the same model under other attacks. Attacks with loops of their own have a
pace of their own: they are not accelerated and rarely stop early.
"""

import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple

from bench.execution.events import Event

PRIOR_PACE = 1.0
"""Seconds per second of work that are expected before anything has run."""
PRIOR_WEIGHT = 0.1
"""Weight of that beside a pair that was measured."""
MAX_FACTOR = 10.0
"""Most by which a pair is expected to differ from others of its kind."""
LIBRARY_RATIO = 1.7
"""How much longer a pass of an attack with a loop of its own takes than one of the engine, until
one has run: the engine attacks an accelerated model, which is 1.2 to 2.3 times as fast."""
PROBES_USED = 0.6
"""Share of the passes of probes that is usually made: most models need few of the steps."""
GROWTH = 0.2
"""Of a unit that takes longer than expected and says nothing, what is left grows with its time."""

Pair = tuple[str, str]
"""Labels of a model and of an attack."""


class RunningUnit(NamedTuple):
    """A work unit at work."""

    pair: Pair
    work: float
    event: Event
    """The event of its beginning."""
    begun: float
    passes: float | None = None
    """Made so far; None if it has not said."""
    passes_left: float | None = None
    seconds_left: float | None = None
    """As it said last; None if it does not know."""
    said: float = 0.0
    """When."""

    @property
    def name(self) -> str:
        """Model, attack and examples, for people."""
        about = self.event.about
        return f"{self.event.text}, examples {about['first']} to {about['last'] - 1}"

    @property
    def passes_expected(self) -> float | None:
        """Passes of the whole unit; None if it has not said."""
        if self.passes is None or self.passes_left is None:
            return None
        return self.passes + self.passes_left


class _Measured(NamedTuple):
    """A pair of which the seconds are known."""

    pair: Pair
    work: float
    seconds: float
    used: float
    """Share of the most passes that were made."""

    @property
    def used_work(self) -> float:
        """Work of the passes that were made."""
        return self.work * self.used


class RunForecast:
    """What a run's events say of its time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start a forecast without events.

        Args:
            clock: Returns seconds from an arbitrary start.
        """
        self.clock = clock
        self._reset()

    def _reset(self) -> None:
        """Drop all events, as before a run starts."""
        self.running: dict[Hashable, RunningUnit] = {}
        """Units that were begun and are not stored."""
        self._started: float | None = None
        self._works: dict[Pair, float] = {}
        self._external: set[str] = set()
        self._bounds: dict[Pair, float] = {}
        self._settled: dict[Pair, float] = {}
        self._used: dict[Pair, tuple[float, float]] = {}
        """Pair -> passes expected of units that say so, and most passes of these."""
        self._timed: dict[Pair, tuple[float, float]] = {}
        """Pair -> work and seconds of units that were begun and are stored."""
        self._probes: dict[str, float] = {}
        """Model -> passes of its probes, which are not made."""
        self._probing: dict[str, float] = {}
        """Model -> when its probes began."""
        self._share = 0.0

    def add(self, event: Event) -> None:
        """Take an event of the run.

        Args:
            event: Any event.
        """
        about, now = event.about, self.clock()
        if event.what == "start":
            self._reset()  # a leaderboard has several runs
            self._started = now
            self._external = {*about.get("external", ())}
            self._works = _flatten(about.get("works", {}))
            self._bounds = _flatten(about.get("most_passes", {}))
            self._probes = {**about.get("probes", {})}
        if {*about} == {"model"} and event.what == "begin":
            self._probing[about["model"]] = now
        elif {*about} == {"model"} and event.what == "done":
            self._probes.pop(about["model"], None)
        if "attack" not in about or event.what not in ("begin", "progress", "done"):
            return
        pair = about["model"], about["attack"]
        key = (*pair, about.get("first"), tuple(about.get("eps", ())))
        if event.what == "begin":
            self.running[key] = RunningUnit(pair, event.work, event, now)
        elif event.what == "progress" and key in self.running:
            self.running[key] = self.running[key]._replace(
                passes=about["passes"], passes_left=about.get("passes_left"),
                seconds_left=about.get("seconds_left"), said=now,
            )  # fmt: skip
        elif event.what == "done":
            self._settle(pair, event.work, self.running.pop(key, None), now)

    def _settle(self, pair: Pair, work: float, unit: RunningUnit | None, now: float) -> None:
        self._settled[pair] = self._settled.get(pair, 0.0) + work
        if unit is not None:
            before, seconds = self._timed.get(pair, (0.0, 0.0))
            self._timed[pair] = before + work, seconds + now - unit.begun
            if unit.passes_expected is not None:
                used, most = self._used.get(pair, (0.0, 0.0))
                self._used[pair] = used + unit.passes_expected, most + self._bound(unit)

    def _bound(self, unit: RunningUnit) -> float:
        """Return the most passes of a unit."""
        whole = self._works.get(unit.pair, 0.0)
        return self._bounds.get(unit.pair, 0.0) * (unit.work / whole if whole else 1.0)

    def _share_used(self, pair: Pair) -> float:
        """Return the share of a pair's most passes that was made or is expected."""
        used, most = self._used.get(pair, (0.0, 0.0))
        for unit in self.running.values():
            if unit.pair == pair and unit.passes_expected is not None:
                used, most = used + unit.passes_expected, most + self._bound(unit)
        return min(1.0, used / most) if used and most else 1.0

    def seconds_left(self) -> float | None:
        """Forecast the time until the last attack and the last probe have ended.

        Returns:
            Seconds; None before the run has started.
        """
        if self._started is None:
            return None
        now = self.clock()
        ahead = [self._expect_left(unit, now) for unit in self.running.values()]
        paces = self._measure_paces(now)
        waiting = self._works.copy()
        for pair, work in self._settled.items():
            waiting[pair] = waiting.get(pair, 0.0) - work
        for unit in self.running.values():
            waiting[unit.pair] = waiting.get(unit.pair, 0.0) - unit.work
        expect = self._expect_others(paces)
        rest = sum(
            work * (paces[pair] if pair in paces else expect(pair) / self._works[pair])
            for pair, work in waiting.items()
            if work > 1e-9 * self._works.get(pair, math.inf)
        )
        attacks = max([*ahead, (sum(ahead) + rest) / max(1, len(ahead))])
        return attacks + sum(self._expect_probes(model, paces, now) for model in self._probes)

    def share_done(self) -> float:
        """Return how much of the run's time is over.

        Returns:
            Share, which never falls.
        """
        left = self.seconds_left()
        if left is None or self._started is None:
            return 0.0
        spent = self.clock() - self._started
        self._share = max(self._share, spent / (spent + left) if spent + left else 1.0)
        return self._share

    def _expect_probes(self, model: str, paces: dict[Pair, float], now: float) -> float:
        """Expect the seconds of a model's probes by what its attacks took for their passes."""
        seconds, passes = 0.0, 0.0
        for pair, pace in paces.items():
            if pair[0] == model and (bound := self._bounds.get(pair, 0.0)):
                seconds += pace * self._works[pair]
                passes += bound  # the probes' own attacks stop early, too
        whole = PROBES_USED * self._probes[model] * seconds / passes if passes else 0.0
        begun = self._probing.get(model)
        return whole if begun is None else max(whole - (now - begun), GROWTH * (now - begun))

    def _expect_left(self, unit: RunningUnit, now: float) -> float:
        """Expect the seconds that a unit at work needs still."""
        spent = now - unit.begun
        work, seconds = self._timed.get(unit.pair, (0.0, 0.0))
        before = seconds / work * unit.work if work else None
        if unit.seconds_left is not None:
            own = max(unit.seconds_left - (now - unit.said), 0.0)
            if before is None:
                return own
            trust = spent / (spent + own) if spent + own else 1.0
            return trust * own + (1 - trust) * max(before - spent, 0.0)
        if before is None:
            others = self._measure_paces(now, but=unit)
            before = self._expect_others(others)(unit.pair)
            whole = self._works.get(unit.pair, 0.0)
            before *= unit.work / whole if whole else 1.0
        return max(before - spent, GROWTH * spent)

    def _measure_paces(self, now: float, but: RunningUnit | None = None) -> dict[Pair, float]:
        """Measure the seconds per work of each pair that has run or says what it expects."""
        measured = dict(self._timed)
        for unit in self.running.values():
            if unit is not but and unit.seconds_left is not None:
                work, seconds = measured.get(unit.pair, (0.0, 0.0))
                total = now - unit.begun + self._expect_left(unit, now)
                measured[unit.pair] = work + unit.work, seconds + total
        return {pair: seconds / work for pair, (work, seconds) in measured.items() if work > 0}

    def _expect_others(self, paces: dict[Pair, float]) -> Callable[[Pair], float]:
        """Return what expects the seconds of all work of a pair that has not run."""
        every = [
            _Measured(pair, self._works[pair], pace * self._works[pair], self._share_used(pair))
            for pair, pace in paces.items()
            if self._works.get(pair, 0.0) > 0 and pace > 0
        ]

        def expect(pair: Pair) -> float:
            external = pair[1] in self._external
            work = self._works.get(pair, 0.0)
            if every and not self._bounds.get(pair):  # its work is no estimate
                own = [each.seconds for each in every if each.pair[0] == pair[0]]
                return statistics.fmean(own or [each.seconds for each in every])
            alike = [each for each in every if (each.pair[1] in self._external) == external]
            if every and not alike:
                overhead, pace = _fit([(each.used_work, each.seconds) for each in every])
                return overhead + pace * work * LIBRARY_RATIO ** (1 if external else -1)
            overhead, pace = _fit([(each.work, each.seconds) for each in alike])
            factor = 1.0
            for index in (0, 1):
                same = [each for each in alike if each.pair[index] == pair[index]]
                factor *= _average_residual(same, overhead, pace)
            factor = min(MAX_FACTOR, max(1 / MAX_FACTOR, factor))
            return factor * (overhead + pace * work)

        return expect


def _flatten(given: Mapping[str, Mapping[str, float]]) -> dict[Pair, float]:
    """Return the values of each model and attack by pairs of their labels."""
    return {(model, attack): x for model, own in given.items() for attack, x in own.items()}


def _fit(measured: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Fit seconds as an overhead and a pace times work, by relative least squares.

    `measured` are works and seconds. The pace is drawn to PRIOR_PACE; neither is negative.
    """
    ones, cross, squares, right, products = 1e-9, 0.0, PRIOR_WEIGHT, 0.0, PRIOR_WEIGHT * PRIOR_PACE
    for work, seconds in measured:
        ones += 1 / seconds**2
        cross += work / seconds**2
        squares += (work / seconds) ** 2
        right += 1 / seconds
        products += work / seconds
    determinant = ones * squares - cross**2
    overhead = (right * squares - products * cross) / determinant
    pace = (products * ones - right * cross) / determinant
    if overhead < 0:
        return 0.0, products / squares
    return (overhead, pace) if pace > 0 else (right / ones, 0.0)


def _average_residual(measured: list[_Measured], overhead: float, pace: float) -> float:
    """Return how many times the fit some pairs took, as their geometric mean; 1 of none."""
    if not measured:
        return 1.0
    logs = [math.log(each.seconds / (overhead + pace * each.work)) for each in measured]
    return math.exp(sum(logs) / len(logs))
