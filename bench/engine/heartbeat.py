"""Signs of life: the calls of models, as a process beside this one wants to see them.

A watcher cannot look into a process that is stuck in Python or in C, but it sees whether a count
still goes up. What counts is the outermost call of any module, its beginning and its end: the
model, the copy that is attacked in its place, a library's wrapper around it. The layers inside do
not, or a model that asks one of them for ever would look alive.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_listening: list[Callable[[], None]] = []


def beat() -> None:
    """A sign of life, where no module is called but work goes on: a recorded turn replayed."""
    for hear in _listening:
        hear()


class Heartbeat:
    """How deep in calls of modules this process is."""

    def __init__(self) -> None:
        self.depth = 0

    def forget(self) -> None:
        """Start counting anew: what ended a call by force (SystemExit) left its depth behind."""
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
def heartbeats(hear: Callable[[], None]) -> Iterator[Heartbeat]:
    """Call `hear` at every sign of life of this process while inside."""
    pulse = Heartbeat()
    handles = [
        register_module_forward_pre_hook(pulse._begin),
        register_module_forward_hook(pulse._end, always_call=True),
    ]
    _listening.append(hear)
    try:
        yield pulse
    finally:
        _listening.remove(hear)
        for handle in handles:
            handle.remove()
