"""What is seen of a run while it runs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.parts import Event


class Bar:
    """A bar on a terminal, plain lines elsewhere; the time left is in the bar's own pace."""

    def __enter__(self) -> "Bar":
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=600,
        )
        self.bar.__enter__()
        self.task = self.bar.add_task("loading", total=None)
        self.total, self.done = 0.0, 0.0
        self.last = ""
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def hear(self, event: "Event") -> None:
        """Show what the runner says."""
        self.done += event.work if event.what == "done" else 0.0
        if event.what == "start":
            self.total = event.work
            self.bar.update(self.task, total=max(event.work, 1e-9), description=event.text)
            if not event.work:
                self.console.print("nothing to run: every cell is done")
                self.bar.update(self.task, completed=1e-9)
        elif event.what in ("note", "failed"):
            self.console.print(f"{event.what}: {event.text}", markup=False, highlight=False)
        self.bar.update(self.task, completed=self.done)
        if event.what == "begin":
            self.bar.update(self.task, description=event.text)
            if self.bar.disable and event.text != self.last:
                share = self.done / self.total if self.total else 1.0
                self.console.print(f"{share:4.0%} {event.text}", markup=False, highlight=False)
            self.last = event.text
