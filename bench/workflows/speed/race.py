"""Time competitors on one task in one process, after a warm-up and in rotated order.

Every run of a competitor starts from the same seed, so each round does the same work. The images of
the first round are judged outside the timed region, as in a suite run.
"""

import contextlib
import importlib.metadata
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, NamedTuple, TypeVar

from torch import Tensor

from bench.core import rng
from bench.core.errors import describe
from bench.engine import timing
from bench.engine.float32_precision import allow_tf32
from bench.engine.model_state import is_out_of_memory
from bench.workflows.speed.setup import Competitor, RaceTask, RunWork, judge_result

SHARES = (0.25, 0.5, 1, 2, 4)
"""Batch sizes tried, as multiples of bench's rule for the model."""
SWEEPS, ENOUGH = 3, 10.0
"""How often all batch sizes are timed, and the seconds after which no further sweep begins."""
TF32 = False
"""Whether a GPU may round float32 products to TF32, in the work of every competitor alike: torch's
default, on in convolutions alone, would give libraries another arithmetic than bench."""
Listener = Callable[[str], None]
Result = TypeVar("Result")


@dataclass(kw_only=True)
class CompetitorResult:
    """Times, images and status of one competitor."""

    competitor: Competitor
    version: str = ""
    status: Literal["ok", "not run", "failed"] = "ok"
    reason: str = ""
    rows: int = 0
    searched: dict[int, float] = field(default_factory=dict)
    """Batch size -> seconds of the shortened work by which it was chosen."""
    setup_seconds: float = 0.0
    """Seconds to prepare once for a model; in none of the rounds."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of each round, for all examples of the task."""
    right: list[int] = field(default_factory=list)
    """Correct predictions that the competitor counted, at each eps."""
    robust: Tensor | None = None
    """(e, m), bool: whether the first m examples are robust; None if nothing was attacked."""
    violations: int = 0
    memory: int | None = None
    """Peak memory in bytes without the returned images, if measured."""
    memory_reason: str = ""


class Race(NamedTuple):
    """A finished race."""

    task: RaceTask
    outcomes: list[CompetitorResult]
    orders: list[list[str]]
    """Names in running order, round by round."""
    heap_kept: bool
    """Whether the process kept freed memory (`bench.engine.malloc`)."""


class ForeignCodeError(Exception):
    """An exception raised by a library; the text describes it."""


def run_race(
    task: RaceTask,
    competitors: Sequence[Competitor],
    *,
    rounds: int,
    rows: int | None = None,
    heap_kept: bool = False,
    on_step: Listener = lambda text: None,
) -> Race:
    """Run all competitors in rotated order.

    Args:
        task: Model, images and parameters.
        competitors: The competitors.
        rounds: Number of timed runs of each.
        rows: Batch size; None: the fastest for each competitor.
        heap_kept: Whether the process keeps freed memory; recorded only.
        on_step: Called with a description before each step.

    Returns:
        A result for each competitor, also if its library is missing, refuses the work or raises.
    """
    outcomes, runs = [], {}
    for competitor in competitors:
        on_step(f"warming up {competitor.name}")
        outcome = CompetitorResult(competitor=competitor)
        outcomes.append(outcome)
        with _recording(outcome):
            if _is_unavailable(outcome):
                continue
            if competitor.library:  # the time of its import is not that of its set-up
                few = task.shortened(2)
                _run(competitor, few, partial(competitor.prepare, few))
            outcome.rows = competitor.rows or rows or _find_batch_size(task, outcome)
            run = _prepare(task, outcome)
            _run(competitor, task, partial(run, outcome.rows))
            runs[competitor.name] = run
    orders = []
    for number in range(rounds):
        running = [each for each in outcomes if each.status == "ok"]
        first = number % max(len(running), 1)
        order = running[first:] + running[:first]
        orders.append([each.competitor.name for each in order])
        for outcome in order:
            on_step(f"round {number + 1} of {rounds}: {outcome.competitor.name}")
            with _recording(outcome):
                _round(task, outcome, runs[outcome.competitor.name])
    return Race(task, outcomes, orders, heap_kept)


def _round(task: RaceTask, outcome: CompetitorResult, run: RunWork) -> None:
    competitor = outcome.competitor
    result, seconds = _run(competitor, task, partial(run, outcome.rows))
    if not outcome.seconds:
        outcome.right = result.right
        verdict = judge_result(task, result)
        if verdict is not None:
            outcome.robust, outcome.violations = verdict
    outcome.seconds.append(seconds / competitor.share(task))


def _prepare(task: RaceTask, outcome: CompetitorResult) -> RunWork:
    """Prepare for the task; the longest preparation counts, as some cache per model."""
    competitor = outcome.competitor
    run, seconds = _run(competitor, task, partial(competitor.prepare, task))
    outcome.setup_seconds = max(outcome.setup_seconds, seconds)
    return run


def list_batch_sizes(task: RaceTask) -> list[int]:
    """List the batch sizes to try.

    Args:
        task: Model, images and parameters.

    Returns:
        Sizes, ascending.
    """
    tried = {min(len(task.x), max(1, int(task.rows * share))) for share in SHARES}
    return sorted(tried)


def _find_batch_size(task: RaceTask, outcome: CompetitorResult) -> int:
    """Find the batch size at which a shortened work is fastest; record all in the outcome.

    All sizes are timed in turn, SWEEPS times, and the minimum of each counts, so that a temporary
    slowdown of the machine does not affect one size alone.
    """
    competitor, tried = outcome.competitor, list_batch_sizes(task)
    short = task.shortened(max(tried))
    run, searched = _prepare(short, outcome), outcome.searched
    for sweep in range(SWEEPS):
        if sweep and sum(searched.values()) > ENOUGH:
            break
        for size in tried if not sweep else list(searched):
            try:
                _, seconds = _run(competitor, short, partial(run, size))
            except RuntimeError as error:
                if not searched or not is_out_of_memory(error):
                    raise
                break  # a larger one will not fit either
            searched[size] = min(seconds, searched.get(size, seconds))
    return min(searched, key=searched.__getitem__)


def _run(
    competitor: Competitor, task: RaceTask, work: Callable[[], Result]
) -> tuple[Result, float]:
    """Time `work`; raise ForeignCodeError for exceptions of a library."""
    with allow_tf32(TF32), rng.seed_global("speed", task.work.name, competitor.name):
        if not competitor.library:
            return timing.time_call(work, task.device)
        with silence_output():
            try:
                return timing.time_call(work, task.device)
            except BaseException as error:  # foreign code
                if isinstance(error, KeyboardInterrupt) or is_out_of_memory(error):
                    raise
                raise ForeignCodeError(describe(error)) from error


@contextlib.contextmanager
def silence_output() -> Iterator[None]:
    """Suppress standard output and warnings of foreign code.

    Yields:
        None.
    """
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _recording(outcome: CompetitorResult) -> Iterator[None]:
    """Record an exception of foreign code in the outcome."""
    try:
        yield
    except ForeignCodeError as error:
        outcome.status, outcome.reason = "failed", str(error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        outcome.status, outcome.reason = "failed", "out of memory"


def _is_unavailable(outcome: CompetitorResult) -> bool:
    """Return whether the competitor cannot run; record the reason in the outcome."""
    competitor = outcome.competitor
    if competitor.library:
        try:
            outcome.version = importlib.metadata.version(competitor.library)
        except importlib.metadata.PackageNotFoundError:
            outcome.status, outcome.reason = "not run", "not installed"
            return True
    if competitor.refusal:
        outcome.status, outcome.reason = "not run", competitor.refusal
    return outcome.status != "ok"
