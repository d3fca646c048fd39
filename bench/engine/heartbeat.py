"""Report heartbeats, the calls of models, to a process that watches this one.

A watcher cannot look into a process that hangs in Python or in C, but it sees whether a count still
rises. The beginning and the end of the outermost call of any module count: of the model, of the
accelerated model, of a library's wrapper. Inner layers do not count, or a model that calls one of
them for ever would look alive.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_listening: list[Callable[[], None]] = []


def beat() -> None:
    """Report activity where no module is called: a CUDA graph was replayed."""
    for callback in _listening:
        callback()


class Heartbeat:
    """Depth of the present call of modules in this process."""

    def __init__(self) -> None:
        self.depth = 0

    def forget(self) -> None:
        """Reset the depth, after SystemExit or the like ended a call without its hook."""
        self.depth = 0

    def _begin(self, *_: Any) -> None:
        if self.depth == 0:
            beat()
        self.depth += 1

    def _end(self, *_: Any) -> None:
        self.depth = max(0, self.depth - 1)
        if self.depth == 0:
            beat()


@contextmanager
def heartbeats(callback: Callable[[], None]) -> Iterator[Heartbeat]:
    """Call a function whenever a model's call begins or ends in this process.

    Args:
        callback: Called at every heartbeat.

    Yields:
        The counter of nested calls.
    """
    pulse = Heartbeat()
    handles = [
        register_module_forward_pre_hook(pulse._begin),
        register_module_forward_hook(pulse._end, always_call=True),
    ]
    _listening.append(callback)
    try:
        yield pulse
    finally:
        _listening.remove(callback)
        for handle in handles:
            handle.remove()
