"""Let one thread of a process evaluate at a time.

An evaluation sets and restores what all threads share: torch's random state and default type, its
precision and determinism, the modes and hooks of modules; and tracing a model replaces the call of
every module meanwhile. Two at once would draw each other's random numbers and restore each other's
settings.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.RLock()


@contextmanager
def run_alone() -> Iterator[None]:
    """Wait until no other thread of this process evaluates.

    An evaluation may start another one in its own thread.

    Yields:
        With other threads waiting here.
    """
    with _lock:
        yield


def _renew_lock() -> None:
    """Forget a thread that the child of a fork does not have."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
