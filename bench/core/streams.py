"""stdout and stderr, which a stranger's model or attack may close, replace or redirect: they are
put back, so that the run goes on and its outcome is told."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

NAMES = {"stdout": 1, "stderr": 2}


class UnclosableStream(io.TextIOBase):
    """Writes to a stream, and lets itself be closed in its place."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.stream.errors

    def write(self, text: str) -> int:
        return self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return self.stream.isatty()

    def fileno(self) -> int:
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing: what it writes to is not whose who closes it."""
        self.closes = True

    closes = False


@contextlib.contextmanager
def protect_streams(tell: Callable[[str], None], who: str) -> Iterator[None]:
    """Inside, stdout and stderr stand for themselves and may be closed; afterwards they are as they
    were, their descriptors too. `tell` hears in a sentence if `who` was inside had changed them."""
    shields = {name: _shielded(getattr(sys, name)) for name in NAMES}
    before = {name: getattr(sys, name) for name in NAMES}
    spare = {number: copy for number in NAMES.values() if (copy := _copy(number)) is not None}
    for name, shield in shields.items():
        setattr(sys, name, shield)
    try:
        yield
    finally:
        changed = [name for name in NAMES if _is_changed(name, shields[name], before[name])]
        for number, copy in spare.items():
            if not _same(number, copy):
                changed += [name for name in NAMES if NAMES[name] == number]
                os.dup2(copy, number)
            os.close(copy)
        for name in NAMES:
            setattr(sys, name, _open(name, before[name]))
        if changed:
            names = " and ".join(dict.fromkeys(changed))
            tell(f"{who}: its code closed or replaced {names}, put back since")


def _shielded(stream: Any) -> Any:
    """A shield before a stream, if it is one and open."""
    return (
        UnclosableStream(stream)
        if stream is not None and not getattr(stream, "closed", True)
        else stream
    )


def _is_changed(name: str, shield: Any, stream: Any) -> bool:
    closed = isinstance(shield, UnclosableStream) and (shield.closes or stream.closed)
    return getattr(sys, name) is not shield or closed


def _copy(number: int) -> int | None:
    """Another descriptor of the same file; None where there is none."""
    try:
        return os.dup(number)
    except OSError:
        return None


def _same(number: int, copy: int) -> bool:
    """Whether a descriptor still is of the file that its copy is of."""
    try:
        return os.path.sameopenfile(number, copy)
    except OSError:
        return False


def _open(name: str, stream: Any) -> Any:
    """The stream, or one like it on the same descriptor where it itself was closed."""
    if stream is None or not getattr(stream, "closed", False):
        return stream
    opened = open(  # noqa: SIM115 - as long as the process lives
        NAMES[name], "w", encoding=stream.encoding, errors=stream.errors, closefd=False
    )
    if getattr(sys, f"__{name}__") is stream:
        setattr(sys, f"__{name}__", opened)
    return opened
