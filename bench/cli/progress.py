"""Show the progress of a run: a bar, plain lines, or JSON."""

import contextlib
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from bench.cli import main
from bench.core.sanitize import escape_controls

if TYPE_CHECKING:
    from bench.execution.events import Event, Listener
    from bench.execution.run_forecast import RunForecast, RunningUnit

TICK = 1.0
"""Seconds between two updates of what is shown."""
LINE_SECONDS, LINE_SHARE = 5.0, 0.01
"""Seconds between two lines of progress, and the share of a long run's time that they grow to."""
BAR = 8
"""Width of the bar, in columns of the terminal."""
BESIDE = 52
"""Columns of the terminal that bar, percentage, times and passes take."""
UNKNOWN = "-:--:--"


@contextlib.contextmanager
def show_progress() -> "Iterator[Listener]":
    """Show progress as the verb's options ask for.

    Yields:
        A listener for the events of a run.
    """
    if main.json_requested():
        with _print_warnings(), JsonLines() as lines, _tick_regularly(lines.tick):
            yield lines.show_event
    else:
        with Bar(reasons=main.reasons_requested()) as bar, _tick_regularly(bar.tick):
            yield bar.show_event


@contextlib.contextmanager
def _tick_regularly(tick: Callable[[], None]) -> Iterator[None]:
    """Call a function every TICK seconds in a thread, also while one pass takes long."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(TICK):
            tick()

    thread = threading.Thread(target=run, name="bench, progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _print_warnings() -> Iterator[None]:
    """Print Python's warnings as events; what a library writes to stderr itself is not changed."""

    def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        del where, more
        main.tell("warning", f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield


class LineClock:
    """When the next line of progress is due, so that a log stays short."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._begun = self._last = clock()

    def is_due(self) -> bool:
        """Return whether a line is due; it then counts as written.

        Returns:
            True every LINE_SECONDS at first, and every LINE_SHARE of the time later.
        """
        now = self._clock()
        if now - self._last < max(LINE_SECONDS, LINE_SHARE * (now - self._begun)):
            return False
        self._last = now
        return True


def _make_forecast(clock: Callable[[], float]) -> "RunForecast":
    from bench.execution.run_forecast import RunForecast

    return RunForecast(clock)


class JsonLines:
    """Events as lines of JSON on stderr; reasons only with -v."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.forecast, self.due = _make_forecast(clock), LineClock(clock)
        self.lock = threading.Lock()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(self, *error: Any) -> None:
        if error and error[0] is KeyboardInterrupt:
            for unit in self.forecast.running.values():
                seconds = round(self.forecast.clock() - unit.begun, 1)
                self._write("lost", unit, {"seconds": seconds})

    def show_event(self, event: "Event") -> None:
        """Write an event; progress is written when it is due.

        Args:
            event: An event of the run.
        """
        from bench.execution import events

        with self.lock:
            self.forecast.add(event)
            reasons = event.what != "why" or main.reasons_requested()
            if reasons and event.what != "progress":
                sys.stderr.write(f"{events.format_json_line(event)}\n")
                sys.stderr.flush()

    def tick(self) -> None:
        """Write how far each work unit is, if that is due."""
        with self.lock:
            if not self.forecast.running or not self.due.is_due():
                return
            left, percent = self.forecast.seconds_left(), _percent(self.forecast)
            for unit in self.forecast.running.values():
                known = {"passes_left": unit.passes_left, "seconds_left": unit.seconds_left}
                run = {"percent": percent, "run_seconds_left": left}
                self._write("progress", unit, {**known, **run})

    def _write(self, what: str, unit: "RunningUnit", more: dict[str, Any]) -> None:
        from bench.execution import events

        more = {"passes": unit.passes, **more}
        about = {
            key: round(value, 1) if isinstance(value, float) else value
            for key, value in more.items()
            if value is not None
        }
        event = events.Event(what, unit.event.text, 0.0, {**unit.event.about, **about})
        sys.stderr.write(f"{events.format_json_line(event)}\n")
        sys.stderr.flush()


def _percent(forecast: "RunForecast") -> int:
    """Return how much of the run's time is over; 100 % once nothing is left alone."""
    percent = int(100 * forecast.share_done())
    return min(percent, 99) if forecast.running or forecast.seconds_left() else 100


def _format_time(seconds: float | None) -> str:
    """Write seconds as h:mm:ss."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _shorten_number(number: float) -> str:
    """Write a number in at most five characters, such as 1.2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.{int(number < 10 * size)}f}{unit}"
    return f"{number:.0f}"


def _describe(event: "Event", room: int) -> str:
    """Name the work in so many columns; of a long name the attack and both ends of the model."""
    text = escape_controls(event.text)
    if len(text) <= room:
        return text
    model, attack = (str(event.about.get(key, "")) for key in ("model", "attack"))
    attack = _shorten(escape_controls(attack), max(room // 2, room - len(model) - 3))
    model = _shorten(escape_controls(model), room - len(attack) - 3)
    return f"{model} · {attack}" if attack else _shorten(text, room)


def _shorten(text: str, room: int) -> str:
    """Leave out the middle of a text that is longer than the room for it."""
    if len(text) <= room:
        return text
    kept = max(room - 1, 2)
    return f"{text[: kept - kept // 2]}…{text[-(kept // 2) :]}"


class Bar:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, reasons: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.reasons = reasons
        self.forecast, self.due = _make_forecast(clock), LineClock(clock)
        self.lock = threading.Lock()

    def __enter__(self) -> "Bar":
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        from bench.cli.console import console

        self.screen = console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            TextColumn("{task.fields[passes]}"),
            console=self.screen,
            disable=not self.screen.is_terminal,
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("loading", total=None, left=UNKNOWN, passes="")
        self.last = ""
        return self

    def __exit__(self, *error: Any) -> None:
        if error and error[0] is KeyboardInterrupt:
            self._print_loss()
        if not self.bar.disable:  # some versions of rich end one that was not shown with a line
            self.bar.__exit__(*error)

    def show_event(self, event: "Event") -> None:
        """Show one event.

        Args:
            event: An event of the run.
        """
        with self.lock:
            self.forecast.add(event)
            if event.what == "start":
                self.bar.update(self.task, total=100, description=escape_controls(event.text))
                if not event.work:
                    self.screen.print("nothing to run: every cell is done")
                    self.bar.update(self.task, completed=100)
            elif event.what in ("note", "failed") or (event.what == "why" and self.reasons):
                text, long = f"{event.what}: {event.text}", event.what == "why"
                self.screen.print(text, soft_wrap=long)
            elif event.what in ("begin", "done"):
                self._show_unit(event)

    def tick(self) -> None:
        """Show the time that is left, and on a terminal or if a line is due the passes."""
        with self.lock:
            running = [*self.forecast.running.values()]
            if not running:
                return
            self._update(running)
            if self.bar.disable and self.due.is_due():
                for unit in running:
                    self._print_line(unit)

    def _show_unit(self, event: "Event") -> None:
        """Show that a unit begins or ends; a log names it if it is new or a line is due."""
        self._update([*self.forecast.running.values()])
        if event.what == "done":
            return
        self.bar.update(self.task, description=_describe(event, self.screen.width - BESIDE))
        if self.bar.disable and (event.text != self.last or self.due.is_due()):
            self.screen.print(f"{_percent(self.forecast):3d}% {event.text}")
        self.last = event.text

    def _update(self, running: "list[RunningUnit]") -> None:
        """Update percentage, time and passes of the bar."""
        made = sum(unit.passes or 0.0 for unit in running)
        whole = [unit.passes_expected for unit in running]
        known = [each for each in whole if each is not None]
        of = f"/{_shorten_number(sum(known))}" if known and len(known) == len(whole) else ""
        self.bar.update(
            self.task,
            completed=_percent(self.forecast),
            left=_format_time(self.forecast.seconds_left()),
            passes=f"{_shorten_number(made)}{of}" if made else "",
        )

    def _print_line(self, unit: "RunningUnit") -> None:
        """Print a line of a log about a unit at work."""
        left = _format_time(self.forecast.seconds_left())
        made = f"{unit.passes:,.0f}" if unit.passes is not None else "no"
        of = "" if unit.passes_expected is None else f" of about {unit.passes_expected:,.0f}"
        text = f"{unit.name}: {made}{of} passes, left {left}"
        self.screen.print(f"{_percent(self.forecast):3d}% {text}")

    def _print_loss(self) -> None:
        """Say which work was begun and is not stored."""
        for unit in self.forecast.running.values():
            seconds = self.forecast.clock() - unit.begun
            passes = "" if unit.passes is None else f", {unit.passes:,.0f} passes"
            self.screen.print(f"lost: {unit.name}, {seconds:.0f} s of work{passes}")
