"""Restore stdout and stderr, which foreign code may close, replace or redirect.

The run then goes on, and its outcome can be printed.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

NAMES = {"stdout": 1, "stderr": 2}


class UnclosableStream(io.TextIOBase):
    """Wrapper of a stream that ignores `close` but records it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Encoding of the stream."""
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """Error handling of the stream."""
        return self.stream.errors

    def write(self, text: str) -> int:
        """Write text to the stream.

        Args:
            text: The text.

        Returns:
            Number of characters written.
        """
        return self.stream.write(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal.

        Returns:
            As the stream.
        """
        return self.stream.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the stream.

        Returns:
            As the stream.
        """
        return self.stream.fileno()

    def writable(self) -> bool:
        """Return that the stream can be written to.

        Returns:
            True.
        """
        return True

    def close(self) -> None:
        """Record the call; the stream belongs to the process and stays open."""
        self.closes = True

    closes = False


@contextlib.contextmanager
def protect_streams(tell: Callable[[str], None], who: str) -> Iterator[None]:
    """Protect stdout and stderr from foreign code; restore them and their descriptors.

    Args:
        tell: Receives a sentence if the code closed or replaced a stream.
        who: Name of the code in that sentence.

    Yields:
        With unclosable streams in place.
    """
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
    """Wrap a stream if it exists and is open."""
    return (
        UnclosableStream(stream)
        if stream is not None and not getattr(stream, "closed", True)
        else stream
    )


def _is_changed(name: str, shield: Any, stream: Any) -> bool:
    """Return whether a stream was closed or replaced inside."""
    closed = isinstance(shield, UnclosableStream) and (shield.closes or stream.closed)
    return getattr(sys, name) is not shield or closed


def _copy(number: int) -> int | None:
    """Duplicate a descriptor; None if it is not open."""
    try:
        return os.dup(number)
    except OSError:
        return None


def _same(number: int, copy: int) -> bool:
    """Return whether a descriptor still refers to the file of its duplicate."""
    try:
        return os.path.sameopenfile(number, copy)
    except OSError:
        return False


def _open(name: str, stream: Any) -> Any:
    """Return the stream, or a new one on the same descriptor if it was closed."""
    if stream is None or not getattr(stream, "closed", False):
        return stream
    opened = open(  # noqa: SIM115 - as long as the process lives
        NAMES[name], "w", encoding=stream.encoding, errors=stream.errors, closefd=False
    )
    if getattr(sys, f"__{name}__") is stream:
        setattr(sys, f"__{name}__", opened)
    return opened
