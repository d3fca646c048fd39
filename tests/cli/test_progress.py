"""Progress on a terminal, in a log and for machines, in simulated time."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from bench.cli.progress import Bar, JsonLines
from bench.execution.events import KEYS, Event

LONG = "-".join(f"{number:02d}" for number in range(33)) + "-x"
UNIT = {"model": "m", "attack": "PGD", "eps": ["0.1"], "first": 0, "last": 250}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def start(work: float, model: str = "m", attack: str = "PGD") -> Event:
    works = {model: {attack: work}}
    return Event("start", "s", work, {"works": works, "most_passes": works, "external": []})


def progress(passes: float, left: float, pace: float = 100.0, **about: Any) -> Event:
    """A report of a unit that makes so many passes a second."""
    numbers = {"passes": passes, "passes_left": left, "seconds_left": left / pace}
    return Event("progress", "m · PGD", 0.0, {**UNIT, **numbers, **about})


@pytest.mark.parametrize("columns", [80, 120])
def test_a_long_label_leaves_the_attack_and_the_bar_on_the_line(columns: int) -> None:
    model, attack, clock = f"m{LONG}", "PGD-500", Clock()
    about = {**UNIT, "model": model, "attack": attack}
    with Bar(reasons=False, clock=clock) as bar:
        bar.screen.width = columns
        bar.show_event(start(2.0, model, attack))
        bar.show_event(Event("begin", f"{model} · {attack}", 2.0, about))
        clock.now = 60.0
        passes = {"passes": 31_250.0, "passes_left": 31_250.0, "seconds_left": 60.0}
        bar.show_event(Event("progress", f"{model} · {attack}", 0.0, {**about, **passes}))
        bar.tick()
        text = str(bar.bar.columns[0](bar.bar.tasks[0]))
        with bar.screen.capture() as shown:
            bar.screen.print(bar.bar.make_tasks_table(bar.bar.tasks))
    assert text.startswith("m00-")
    assert text.endswith(f"x · {attack}")
    line = next(line for line in shown.get().splitlines() if text in line)
    assert re.search(r"[━╸╺]{3,16} +50% 0:\d\d:\d\d left 0:01:00 31k/62k", line)


def follow(clock: Clock, seconds: int, bar: Bar, passes: int = 10_000, pace: float = 100.0) -> None:
    """A unit of so many passes, seen for some seconds; ticks come once a second."""
    for _ in range(seconds):
        clock.now += 1.0
        made = pace * clock.now
        bar.show_event(progress(made, passes - made, pace))
        bar.tick()


def test_a_log_has_a_line_every_few_seconds_inside_a_unit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Bar(reasons=False, clock=clock) as bar:
        bar.show_event(start(30.0))
        bar.show_event(Event("begin", "m · PGD", 30.0, UNIT))
        follow(clock, 20, bar)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "  0% m · PGD",
        "  5% m · PGD, examples 0 to 249: 500 of about 10,000 passes, left 0:01:35",
        " 10% m · PGD, examples 0 to 249: 1,000 of about 10,000 passes, left 0:01:30",
        " 15% m · PGD, examples 0 to 249: 1,500 of about 10,000 passes, left 0:01:25",
        " 20% m · PGD, examples 0 to 249: 2,000 of about 10,000 passes, left 0:01:20",
    ]


def test_the_log_of_a_long_run_has_a_line_in_each_hundredth_of_its_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Bar(reasons=False, clock=clock) as bar:
        bar.show_event(start(1e6))
        bar.show_event(Event("begin", "m · PGD", 1e6, UNIT))
        follow(clock, 4000, bar, passes=1_000_000)
    told = capsys.readouterr().err.splitlines()
    assert len(told) < 100 + 100 * 2.1 + 10  # each 5 s for 500 s, then 100 as time grows e times


def test_a_unit_that_says_nothing_shows_other_numbers_every_few_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with Bar(reasons=False, clock=clock) as bar:
        bar.show_event(start(10.0))
        bar.show_event(Event("begin", "m · PGD", 10.0, UNIT))
        for _ in range(40):
            clock.now += 1.0
            bar.tick()
    told = capsys.readouterr().err.splitlines()
    left = [line.rpartition("left ")[2] for line in told[1:]]
    assert len(left) == 8
    assert all(one != other for one, other in pairwise(left))


def test_for_machines_progress_comes_as_often_as_lines_of_a_log(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    with JsonLines(clock) as lines:
        lines.show_event(start(30.0))
        lines.show_event(Event("begin", "m · PGD", 30.0, UNIT))
        for _ in range(20):
            clock.now += 0.5
            lines.show_event(progress(100 * clock.now, 10_000 - 100 * clock.now))
            lines.tick()
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    seen = [each for each in told if each["event"] == "progress"]
    assert [each["percent"] for each in seen] == [5, 10]
    assert [each["run_seconds_left"] for each in seen] == [95.0, 90.0]
    assert [each["passes"] for each in seen] == [500.0, 1000.0]
    assert all(set(each) <= set(KEYS) for each in told)


def test_an_interruption_says_in_numbers_what_is_lost(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(shown: Bar | JsonLines, clock: Clock) -> None:
        with shown:
            shown.show_event(start(3.0))
            for first in (0, 250):
                about = {**UNIT, "first": first, "last": first + 250}
                shown.show_event(Event("begin", "m · PGD", 1.0, about))
            clock.now = 41.0
            shown.show_event(progress(1234.0, 500.0))
            shown.show_event(Event("done", "m · PGD", 1.0, {**UNIT, "first": 250, "last": 500}))
            raise KeyboardInterrupt

    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        interrupted(Bar(reasons=False, clock=clock), clock)
    told = [line for line in capsys.readouterr().err.splitlines() if "lost" in line]
    assert told == ["lost: m · PGD, examples 0 to 249, 41 s of work, 1,234 passes"]
    clock = Clock()
    with pytest.raises(KeyboardInterrupt):
        interrupted(JsonLines(clock), clock)
    lost = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert (lost["event"], lost["first"], lost["last"]) == ("lost", 0, 250)
    assert (lost["seconds"], lost["passes"]) == (41.0, 1234.0)
