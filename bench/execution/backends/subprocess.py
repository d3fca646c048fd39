"""A run in a process of its own, which may crash, hang or eat memory: `bench run --isolate`.

The child is an ordinary run in a folder that this process holds. It says what it is about to do
(`bench.evaluation.stages`) and gives signs of life (`bench.engine.heartbeat`); this process, in
which no model is loaded, tells the user what it hears and watches the clock and the child's memory.
A run can be cut anywhere and goes on where it was: where a child is lost a new one goes on, without
the cells that were at work, which are failed with the reason. Cells that shared a stream are first
tried one at a time, and a part that was not its child's first once more in a fresh one, so that
none pays for another.
"""

import dataclasses
import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import ByteSize

from bench.core import lock, validation
from bench.core.errors import SuiteError
from bench.evaluation.stages import Stage
from bench.execution import options as runner
from bench.execution.backends.worker import DONE, Orders, run_for
from bench.execution.events import Event, Listener
from bench.storage import records
from bench.suite.schema import Suite

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

TICK = 0.02
"""Seconds between two looks at the child."""
GRACE = 10.0
"""Seconds that a child which is done may take to end."""


class Limits(NamedTuple):
    """What a model or an attack may take before its process is killed; None: what it likes."""

    seconds: float | None = None
    """Longest time without a sign of life: a call of the model begun or ended."""
    memory: int | None = None
    """Most bytes that the child's pages may take (resident), PyTorch's own among them."""


def parse_limits(isolate: bool, seconds: float | None, memory: str | None) -> Limits | None:
    """What the user asked for; None if the run need not be isolated. A limit asks for it.

    >>> limits(False, None, "1.5 GiB")
    Limits(seconds=None, memory=1610612736)

    Raises: SuiteError for a size that is none, and seconds that are not above 0.
    """
    if seconds is not None and not seconds > 0:
        raise SuiteError(f"--time-limit: expected seconds above 0, got {seconds:g}")
    if not isolate and seconds is None and memory is None:
        return None
    if memory is None:
        return Limits(seconds)
    return Limits(seconds, validation.byte_size("--memory-limit", memory))


class _Death(NamedTuple):
    stage: Stage
    parts: int
    """How many parts the child had begun."""
    failed: frozenset[str]
    """Cells that it had failed for what they raised."""
    why: str


def run(
    suite: Suite, out: Path, options: runner.RunOptions, listen: Listener, limits: Limits
) -> None:
    """As `runner.run`, in a process of its own.

    Raises: SuiteError as there, where a model does not survive being loaded, and where a limit
    cannot be kept on this system. In a script of the user's own, what is not to run again in the
    child must stand under `if __name__ == "__main__"`, as multiprocessing asks.
    """
    if limits.memory is not None and not Path("/proc/self/statm").is_file():
        raise SuiteError("--memory-limit needs /proc, which this system has not; leave it out")
    with lock.hold_lock(out, lambda told: listen(Event("note", told, 0.0))):
        told = _Teller(listen)
        orders = Orders(
            suite.text, suite.base, out, options, torch.get_num_threads(),
            frozenset(), frozenset(), {},
        )  # fmt: skip
        again: set[frozenset[str]] = set()
        while (death := _life(orders, limits, told.hear)) is not None:
            orders = _after(death, orders, again, told.listen)


def _after(death: _Death, orders: Orders, again: set[frozenset[str]], listen: Listener) -> Orders:
    """What the next child is told, once the user knows and the failures are noted.

    Raises: SuiteError if the run cannot do without what the child died of.
    """
    stage, why = death.stage, death.why
    if stage.kind == "load":
        raise SuiteError(f"{stage.what}: {why}")
    # What was to be forgotten is forgotten, since what comes after loading had begun.
    options = dataclasses.replace(orders.options, fresh=False)
    orders = orders._replace(options=options, lost=orders.lost | death.failed)
    if stage.kind in ("resume", "certify", "probe"):
        listen(Event("failed", f"{stage.what}: {why}", 0.0))
        return orders._replace(unwell={**orders.unwell, stage.model: why})
    cells = frozenset(stage.cells)
    if stage.kind == "part" and death.parts > 1 and cells not in again:
        again.add(cells)
        listen(Event("note", f"{stage.what}: {why}; tried once more in a new process", 0.0))
        return orders
    if stage.kind == "part" and len(cells) > 1 and not stage.together:
        listen(Event("note", f"{stage.what}: {why}; its eps are tried one at a time", 0.0))
        return orders._replace(alone=orders.alone | cells)
    for cell in stage.cells:
        records.write_failure(orders.out, cell, why)
    radii = [*dict.fromkeys(stage.cells.values())]
    about = {"eps": radii, "reason": why}
    listen(Event("failed", f"{stage.what} at eps {', '.join(radii)}: {why}", 0.0, about))
    orders = orders._replace(lost=orders.lost | cells)
    if stage.kind == "part":
        return orders
    # It did not survive being asked, so it is asked no more.
    return orders._replace(unwell={**orders.unwell, stage.model: why})


class _Teller:
    """Hands on what children say, as if there were one."""

    def __init__(self, listen: Listener) -> None:
        self.listen = listen
        self._said: set[tuple[str, str]] = set()
        self._begun, self._ahead = False, 0.0

    def hear(self, event: Event) -> None:
        if event.what in ("note", "why"):
            if (event.what, event.text) in self._said:  # of what it loads, each child says the same
                return
            self._said.add((event.what, event.text))
        if event.what == "start" and self._begun:  # what was lost is settled, too
            event = Event("done", event.text, max(0.0, self._ahead - event.work))
        elif event.what == "start":
            self._begun, self._ahead = True, event.work
        if event.what == "done":
            self._ahead -= event.work
        self.listen(event)


# ----------------------------------------------------------------------------------- the watcher


def _life(orders: Orders, limits: Limits, hear: Listener) -> _Death | None:
    """Start a child and watch it; None if it came to its end.

    Raises: SuiteError and RecordError as the child did; RuntimeError with the trace of a bug.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    beats = context.RawValue("Q")
    child = context.Process(target=run_for, args=(orders, theirs, beats), name="bench, isolated")
    child.start()
    theirs.close()
    try:
        return _watched(child, ours, beats, limits, hear)
    finally:
        child.kill()
        child.join()
        ours.close()


def _watched(
    child: "BaseProcess", pipe: Connection, beats: Any, limits: Limits, hear: Listener
) -> _Death | None:
    stage = Stage("load", "loading the suite", timed=False)
    parts, most, seen, since = 0, 0, 0, time.monotonic()
    failed: frozenset[str] = frozenset()
    while True:
        try:
            if pipe.poll(TICK):
                said = pipe.recv()
            elif child.is_alive() or pipe.poll():
                said = None
            else:
                raise EOFError
        except (EOFError, OSError):
            child.join()
            return _Death(stage, parts, failed, _ended(child.exitcode, most))
        if isinstance(said, Stage):
            stage, since, parts = said, time.monotonic(), parts + (said.kind == "part")
        elif isinstance(said, Event):
            hear(said)
        elif isinstance(said, frozenset):
            failed |= said
        elif isinstance(said, Exception):
            raise said
        elif said == DONE:
            child.join(GRACE)
            return None
        if beats.value != seen:
            seen, since = beats.value, time.monotonic()
        if limits.seconds is not None and stage.timed and time.monotonic() - since > limits.seconds:
            return _Death(stage, parts, failed, _hung(limits.seconds))
        used = _resident(child.pid)
        most = max(most, used)
        if limits.memory is not None and used > limits.memory:
            return _Death(stage, parts, failed, _ate(used, limits.memory))


def _hung(seconds: float) -> str:
    return (
        f"its process gave no sign of life for {seconds:g} s, the time limit of one pass, and was "
        "killed; it hangs, or needs a larger --time-limit"
    )


def _ate(used: int, limit: int) -> str:
    held, most = (ByteSize(size).human_readable() for size in (used, limit))
    return f"its process used {held} of memory and was killed; the limit is {most}"


def _ended(code: int | None, most: int) -> str:
    """How a process ended that was not done; `most` is the memory that it was seen to use."""
    if code is None or code >= 0:
        return f"its process ended itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    told = f"its process was killed by {name} ({signal.strsignal(-code) or 'unknown'})"
    if name == "SIGKILL":
        held = ByteSize(most).human_readable()
        told += f" while it used {held} of memory; the system does so when there is no more"
    return told


def _resident(process: int | None) -> int:
    """Bytes that the process holds; 0 where that is not known."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
