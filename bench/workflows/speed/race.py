"""Contestants against the clock: warmed up, in rotated order, on one task in one process.

Every run of a contestant starts from the same seed, so each round does the same work; the images
of the first round are judged outside the timed region, by the rules of every bench run.
"""

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from bench.core import rng
from bench.core.errors import describe
from bench.engine import timing
from bench.workflows.speed.setup import Contestant, Run, Task, judged

SHARES = (0.25, 0.5, 1, 2, 4)
"""Batch sizes tried, as shares of what bench's rule gives for the model."""
SWEEPS, ENOUGH = 3, 10.0
"""How often all batch sizes are timed; once, if that took so many seconds."""
Hear = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(kw_only=True)
class Outcome:
    """What became of one contestant."""

    contestant: Contestant
    version: str = ""
    status: Literal["ok", "not run", "failed"] = "ok"
    reason: str = ""
    rows: int = 0
    searched: dict[int, float] = field(default_factory=dict)
    """Batch size -> seconds of the shortened work that it was chosen by."""
    setup_seconds: float = 0.0
    """Of what is prepared once for a model; in none of the rounds."""
    seconds: list[float] = field(default_factory=list)
    """Of each round, for all examples of the task."""
    right: list[int] = field(default_factory=list)
    """What it counted itself, at each eps."""
    robust: Tensor | None = None
    """(e, m), bool: what the judge says of the first m examples; None if nothing was attacked."""
    violations: int = 0
    memory: int | None = None
    """Bytes at its peak, beyond the images that it brings back, if asked for."""
    memory_reason: str = ""


class Race(NamedTuple):
    """A finished race."""

    task: Task
    outcomes: list[Outcome]
    orders: list[list[str]]
    """Names in the order they ran in, round by round."""
    heap_kept: bool
    """Whether freed memory stayed with the process (`heap`)."""


class StrangerError(Exception):
    """A library's code raised; the text says what."""


def race(
    task: Task,
    contestants: Sequence[Contestant],
    *,
    rounds: int,
    rows: int | None = None,
    heap_kept: bool = False,
    hear: Hear = lambda text: None,
) -> Race:
    """Run all contestants `rounds` times, each at its own best batch size unless `rows` is given.

    A library that is not installed, cannot do the work, or raises, is an outcome like any other.
    """
    outcomes, runs = [], {}
    for contestant in contestants:
        hear(f"warming up {contestant.name}")
        outcome = Outcome(contestant=contestant)
        outcomes.append(outcome)
        with _told(outcome):
            if _absent(outcome):
                continue
            if contestant.library:  # the time of its import is not that of its set-up
                few = task.shortened(2)
                _run(contestant, few, partial(contestant.prepare, few))
            outcome.rows = contestant.rows or rows or _best(task, outcome)
            run = _prepared(task, outcome)
            _run(contestant, task, partial(run, outcome.rows))
            runs[contestant.name] = run
    orders = []
    for number in range(rounds):
        running = [each for each in outcomes if each.status == "ok"]
        first = number % max(len(running), 1)
        order = running[first:] + running[:first]
        orders.append([each.contestant.name for each in order])
        for outcome in order:
            hear(f"round {number + 1} of {rounds}: {outcome.contestant.name}")
            with _told(outcome):
                _round(task, outcome, runs[outcome.contestant.name])
    return Race(task, outcomes, orders, heap_kept)


def _round(task: Task, outcome: Outcome, run: Run) -> None:
    contestant = outcome.contestant
    brought, seconds = _run(contestant, task, partial(run, outcome.rows))
    if not outcome.seconds:
        outcome.right = brought.right
        verdict = judged(task, brought)
        if verdict is not None:
            outcome.robust, outcome.violations = verdict
    outcome.seconds.append(seconds / contestant.share(task))


def _prepared(task: Task, outcome: Outcome) -> Run:
    """Ready for the task. Who keeps what it learned of a model is charged for the first time."""
    contestant = outcome.contestant
    run, seconds = _run(contestant, task, partial(contestant.prepare, task))
    outcome.setup_seconds = max(outcome.setup_seconds, seconds)
    return run


def sizes(task: Task) -> list[int]:
    """The batch sizes tried, ascending."""
    tried = {min(len(task.x), max(1, int(task.rows * share))) for share in SHARES}
    return sorted(tried)


def _best(task: Task, outcome: Outcome) -> int:
    """The batch size at which a shortened work is fastest; all are kept in the outcome.

    All sizes in turn, SWEEPS times, the least of each: what slows the machine for a while then
    slows none of them alone.
    """
    contestant, tried = outcome.contestant, sizes(task)
    short = task.shortened(max(tried))
    run, found = _prepared(short, outcome), outcome.searched
    for sweep in range(SWEEPS):
        if sweep and sum(found.values()) > ENOUGH:
            break
        for size in tried if not sweep else list(found):
            try:
                _, seconds = _run(contestant, short, partial(run, size))
            except torch.OutOfMemoryError:  # a larger one will not fit either
                if not found:
                    raise
                break
            found[size] = min(seconds, found.get(size, seconds))
    return min(found, key=found.__getitem__)


def _run(contestant: Contestant, task: Task, work: Callable[[], Result]) -> tuple[Result, float]:
    """What `work` gives and the seconds it took; a library's own errors become StrangerError."""
    with rng.seed_global("speed", task.work.name, contestant.name):
        if not contestant.library:
            return timing.time_call(work, task.device)
        with quiet():
            try:
                return timing.time_call(work, task.device)
            except (torch.OutOfMemoryError, KeyboardInterrupt):
                raise
            except BaseException as error:  # a stranger's code
                raise StrangerError(describe(error)) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What a library prints or warns of inside is nobody's to read here."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _told(outcome: Outcome) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        outcome.status, outcome.reason = "failed", "out of memory"
    except StrangerError as error:
        outcome.status, outcome.reason = "failed", str(error)


def _absent(outcome: Outcome) -> bool:
    """Whether the contestant does not race at all; the outcome then says why."""
    contestant = outcome.contestant
    if contestant.library:
        try:
            outcome.version = importlib.metadata.version(contestant.library)
        except importlib.metadata.PackageNotFoundError:
            outcome.status, outcome.reason = "not run", "not installed"
            return True
    if contestant.refusal:
        outcome.status, outcome.reason = "not run", contestant.refusal
    return outcome.status != "ok"
