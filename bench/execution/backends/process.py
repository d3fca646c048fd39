"""Main loop of the worker process that `SubprocessBackend` starts.

The process receives pickled requests and sends pickled results, each request's last being its
messages. Before the code of a model is loaded it announces so, since the loss of the process is
then blamed on that model.
"""

import contextlib
import ctypes
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.core.errors import RecordError, SuiteError
from bench.engine import determinism, heartbeat, malloc
from bench.execution.backends.worker import Worker, copy_for_transfer
from bench.execution.options import RunOptions
from bench.suite.reader import parse_suite

PR_SET_PDEATHSIG = 1
"""Option of prctl: the signal that the process receives when its parent ends. See `man prctl`."""


class Setup(NamedTuple):
    """What a worker process needs to load the suite."""

    text: str
    """The suite, as TOML."""
    base: Path
    """Folder that its paths are relative to."""
    out: Path
    options: RunOptions
    threads: int
    """Threads of PyTorch."""
    rows: dict[str, int] | None
    """As for `Worker`."""


class Activity(NamedTuple):
    """Announces which code runs next."""

    text: str


def serve(setup: Setup, connection: Connection, beats: Any) -> None:
    """Execute requests until the other end of the connection is closed.

    Args:
        setup: What to load.
        connection: To the parent process.
        beats: Shared counter of heartbeats.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and kills this process
    _end_with_parent()
    with contextlib.suppress(OSError):  # this process is the first to be killed without memory
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    malloc.keep_freed_memory()
    torch.set_num_threads(setup.threads)

    def beat() -> None:
        beats.value += 1

    def send(message: Any) -> None:
        # Not `Connection.send`, which shares tensors by file descriptors that end with a process.
        connection.send_bytes(pickle.dumps(copy_for_transfer(message)))

    def announce(activity: str) -> None:
        pulse.forget()
        send(Activity(activity))

    with (
        heartbeat.heartbeats(beat) as pulse,
        determinism.enforce_determinism(setup.options.deterministic),
        contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError),
    ):
        worker: Worker | None = None
        while True:
            request = pickle.loads(connection.recv_bytes())
            pulse.forget()
            try:
                if worker is None:
                    suite = parse_suite(setup.text, "the suite", setup.base)
                    worker = Worker(suite, setup.out, setup.options, setup.rows, announce)
                for result in worker.run_unit(request, send):
                    send(result)
                send(worker.collect_messages())
            except (SuiteError, RecordError) as error:
                send(type(error)(str(error)))
            except BaseException:  # a bug, whose traceback the parent shows
                send(RuntimeError(f"in the isolated process:\n{traceback.format_exc()}"))


def _end_with_parent() -> None:
    """End this process when its parent ends, so that it does not go on computing for nobody.

    Where the kernel cannot do so, a thread does, unless a model blocks all threads.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # a C library without prctl
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
