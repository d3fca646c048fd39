"""Show the progress of a run: a bar, plain lines, or JSON."""

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bench.cli import main
from bench.core.sanitize import escape_controls

if TYPE_CHECKING:
    from bench.execution.events import Event, Listener


@contextlib.contextmanager
def show_progress() -> "Iterator[Listener]":
    """Show progress as the verb's options ask for.

    Yields:
        A listener for the events of a run.
    """
    if main.json_requested():
        with _warnings_told():
            yield _write
    else:
        with Bar(reasons=main.reasons_requested()) as bar:
            yield bar.show_event


def _write(event: "Event") -> None:
    """Write an event as a line of JSON on stderr; reasons only with -v."""
    from bench.execution import events

    if event.what != "why" or main.reasons_requested():
        sys.stderr.write(f"{events.format_json_line(event)}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _warnings_told() -> Iterator[None]:
    """Print Python's warnings as events; what a library writes to stderr itself is not changed."""

    def tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        del where, more
        main.tell("warning", f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.showwarning = tell
        yield


TOLD = 10
"""Percent of the work after which a log names the same attack again."""
BAR = 16
"""Width of the bar, in columns of the terminal."""
BESIDE = 48
"""Columns of the terminal that bar, percentage and times take."""


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

    def __init__(self, reasons: bool) -> None:
        self.reasons = reasons

    def __enter__(self) -> "Bar":
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        from bench.cli.console import console

        self.screen = console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(BAR),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.screen,
            disable=not self.screen.is_terminal,
            speed_estimate_period=600,
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("loading", total=None)
        self.total, self.done = 0.0, 0.0
        self.last, self.shown = "", 0
        self.begun: dict[tuple[Any, ...], tuple[str, float]] = {}
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
        self.done += event.work if event.what == "done" else 0.0
        self._keep_begun(event)
        if event.what == "start":
            self.total = event.work
            self.bar.update(
                self.task, total=max(event.work, 1e-9), description=escape_controls(event.text)
            )
            if not event.work:
                self.screen.print("nothing to run: every cell is done")
                self.bar.update(self.task, completed=1e-9)
        elif event.what in ("note", "failed") or (event.what == "why" and self.reasons):
            text, long = f"{event.what}: {event.text}", event.what == "why"
            self.screen.print(text, soft_wrap=long)
        self.bar.update(self.task, completed=self.done)
        if event.what == "begin":
            self.bar.update(self.task, description=_describe(event, self.screen.width - BESIDE))
            percent = round(100 * self.done / self.total) if self.total else 100
            if self.bar.disable and (event.text != self.last or percent >= self.shown + TOLD):
                self.screen.print(f"{percent:3d}% {event.text}")
                self.shown = percent
            self.last = event.text

    def _keep_begun(self, event: "Event") -> None:
        """Keep what is at work, of which an interruption loses all."""
        about = event.about
        key = event.text, about.get("first"), tuple(about.get("eps", ()))
        if event.what == "begin" and "first" in about:
            text = f"{event.text}, examples {about['first']} to {about['last'] - 1}"
            self.begun[key] = text, time.monotonic()
        elif event.what == "done":
            self.begun.pop(key, None)

    def _print_loss(self) -> None:
        """Say which work was begun and is not stored."""
        for text, since in self.begun.values():
            self.screen.print(f"lost: {text}, {time.monotonic() - since:.0f} s of work")
