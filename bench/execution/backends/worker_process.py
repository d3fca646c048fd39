"""A worker process seen from the process that started it: requests, limits and how it ended."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ByteSize

from bench.execution.backends.limits import Limits
from bench.execution.backends.process import Activity, Setup, serve
from bench.execution.backends.worker import Request
from bench.execution.work import Messages

TICK = 0.02
"""Seconds between two checks of the limits."""
GRACE = 10.0
"""Seconds that a worker may take to end after its last unit."""


class WorkerLostError(Exception):
    """The worker process died or was killed; the text says why."""


class WorkerProcess:
    """One worker process, which is killed when it exceeds a limit."""

    def __init__(self, setup: Setup, limits: Limits) -> None:
        """Start the process.

        Args:
            setup: What the process loads.
            limits: Its limits.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._beats = context.RawValue("Q")
        self._limits = limits
        self._process = context.Process(
            target=serve, args=(setup, theirs, self._beats), name="bench, isolated"
        )
        self._process.start()
        theirs.close()
        self._peak_memory = 0
        self.activity = ""
        """What is at work, for people."""
        self.asked: set[str] = set()
        """Models that were asked about all clean images."""
        self.begun = 0
        """Work units that were begun."""

    def execute(self, request: Request, activity: str, timed: bool) -> Iterator[Any]:
        """Send a request and receive its results.

        Args:
            request: What the process is to do.
            activity: What that is, for people.
            timed: Whether the limit of seconds holds from the start; it does in any case once the
                process has announced an activity.

        Yields:
            The results, the last of which are messages.

        Raises:
            WorkerLostError: The process died or exceeded a limit.
            SuiteError, RecordError: As the worker raised it.
            RuntimeError: A bug, with the worker's traceback.
        """
        self.activity = activity
        with contextlib.suppress(OSError):  # a process that is dead is noticed below
            self._connection.send_bytes(pickle.dumps(request))
        since, beats = time.monotonic(), self._beats.value
        while True:
            message = self._receive()
            if isinstance(message, Exception):
                raise message
            if isinstance(message, Activity):
                self.activity, timed, since = message.text, True, time.monotonic()
            elif message is not None:
                yield message
                if isinstance(message, Messages):
                    return
            if self._beats.value != beats or message is not None:
                beats, since = self._beats.value, time.monotonic()
            limit = self._limits.seconds
            if limit is not None and timed and time.monotonic() - since > limit:
                self.kill()
                raise WorkerLostError(_describe_hang(limit))
            self._check_memory()

    def join(self) -> None:
        """End a process that has nothing left to do."""
        self._connection.close()
        self._process.join(GRACE)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def _receive(self) -> Any:
        """Receive the next message; None if there is none yet."""
        try:
            if self._connection.poll(TICK):
                return pickle.loads(self._connection.recv_bytes())
            if self._process.is_alive() or self._connection.poll():
                return None
        except (EOFError, OSError):
            pass
        self._process.join()
        code = self._process.exitcode
        self.kill()
        raise WorkerLostError(_describe_exit(code, self._peak_memory))

    def _check_memory(self) -> None:
        used = _measure_memory(self._process.pid)
        self._peak_memory = max(self._peak_memory, used)
        if self._limits.memory is not None and used > self._limits.memory:
            self.kill()
            raise WorkerLostError(_describe_excess(used, self._limits.memory))


def _describe_hang(seconds: float) -> str:
    return (
        f"its process gave no sign of life for {seconds:g} s, the time limit of one pass, and was "
        "killed; it hangs, or needs a larger --time-limit"
    )


def _describe_excess(used: int, limit: int) -> str:
    return (
        f"its process used {ByteSize(used).human_readable()} of memory and was killed; "
        f"the limit is {ByteSize(limit).human_readable()}"
    )


def _describe_exit(code: int | None, peak_memory: int) -> str:
    """Describe how a process ended too early; `peak_memory` in bytes, as far as observed."""
    if code is None or code >= 0:
        return f"its process ended itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    text = f"its process was killed by {name} ({signal.strsignal(-code) or 'unknown'})"
    if name == "SIGKILL":
        text += (
            f" while it used {ByteSize(peak_memory).human_readable()} of memory; the system does "
            "so when there is no more"
        )
    return text


def _measure_memory(process: int | None) -> int:
    """Measure the resident bytes of a process; 0 where that is unknown."""
    try:
        pages = Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
