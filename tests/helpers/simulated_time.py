"""Run a suite in simulated time: a pass takes what its rows cost, all else nothing."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from bench.engine import progress, timing
from bench.execution import runner, work
from bench.execution.events import Event
from bench.execution.options import RunOptions
from bench.execution.run_forecast import RunForecast
from bench.suite.reader import read_suite


class Look(NamedTuple):
    """What the forecast says at a time of the run."""

    time: float
    left: float
    event: Event


class SimulatedClock:
    """Seconds that model calls advance."""

    def __init__(self) -> None:
        self.now, self.depth = 0.0, 0
        self.cost: Callable[[nn.Module], float] = lambda model: 0.005

    def __call__(self) -> float:
        return self.now

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        if self.depth == 0 and inputs:
            both = torch.is_grad_enabled() and inputs[0].requires_grad  # a backward follows
            self.now += len(inputs[0]) * self.cost(module) * (2 if both else 1)
        self.depth += 1

    def _end(self, *_: Any) -> None:
        self.depth = max(0, self.depth - 1)

    @contextmanager
    def advance_by_calls(self) -> Iterator[None]:
        """Advance at each outermost call of a module."""
        handles = [
            register_module_forward_pre_hook(self._begin),
            register_module_forward_hook(self._end, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def count_parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@contextmanager
def simulated_time(clock: SimulatedClock, unit_seconds: float = 45.0) -> Iterator[None]:
    """Let progress, floors and the work of units be measured by a simulated clock."""

    def time_call(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
        begun = clock()
        result = call()
        return result, clock() - begun

    with pytest.MonkeyPatch.context() as patch, clock.advance_by_calls():
        patch.setattr(progress, "clock", clock)
        patch.setattr(timing, "time_call", time_call)
        patch.setattr(work, "UNIT_SECONDS", unit_seconds)
        yield


def trace_run(
    suite: Path, out: Path, clock: SimulatedClock, listen: Callable[[Event], None] | None = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[list[Look], float]:  # fmt: skip
    """Run a suite in simulated time.

    Returns:
        What the forecast said after each event of a unit, and the seconds of the run.
    """
    forecast, looks, begun = RunForecast(clock), [], [0.0]

    def take(event: Event) -> None:
        forecast.add(event)
        if event.what == "start":
            begun[0] = clock()
        left = forecast.seconds_left()
        if left is not None and event.what in ("begin", "progress", "done"):
            looks.append(Look(clock() - begun[0], left, event))
        if listen is not None:
            listen(event)

    given = RunOptions(device="cpu", **(options or {}))
    with simulated_time(clock):
        runner.run_suite(read_suite(str(suite)), out, given, take)
    return looks, clock() - begun[0]
