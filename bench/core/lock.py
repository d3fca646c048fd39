"""Let one run at a time write into a folder; readers need no lock.

The lock is the kernel's (flock) and ends with the process that holds it, after SIGKILL and power
cuts too: a file that is left behind locks nothing. Its content names the holder. Where a file
system has no such locks the run goes on with a warning.
"""

import contextlib
import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.core.errors import SuiteError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = "run.lock"
TAKEN = (errno.EWOULDBLOCK, errno.EACCES)


@contextlib.contextmanager
def hold_lock(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it is missing.

    Args:
        folder: Folder of a run.
        tell: Receives a sentence if the file system has no locks.

    Yields:
        While the lock is held, or at once where there are no locks.

    Raises:
        SuiteError: Another process holds the lock, or the lock file cannot be written.
    """
    path = folder / FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place = _locked(path)
    except BlockingIOError:
        raise SuiteError(
            f"{folder}: another run works in this folder ({_holder(path)}); wait until it ends or "
            "choose another folder with --out"
        ) from None
    except OSError as error:
        raise SuiteError(
            f"{path}: could not be written ({error.strerror or error}); make room or choose "
            "another folder with --out and run again"
        ) from error
    if place is None:
        tell(f"{folder}: its file system has no locks, so see that no other run works in it")
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # without its file nothing is locked, nor with it
            path.unlink()
        os.close(place)


def _locked(path: Path) -> int | None:
    """Open, lock and sign the lock file; None where there are no locks.

    Raises BlockingIOError if another process holds the lock and OSError if the file cannot be
    written.
    """
    while True:
        place = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _lock(place):
                os.close(place)
                return None
            if _same(place, path):
                os.ftruncate(place, 0)
                os.write(place, _signature())
                return place
        except OSError:
            os.close(place)
            raise
        os.close(place)  # its holder deleted it meanwhile: lock the file that is there now


def _lock(place: int) -> bool:
    """Lock an open file; return False where there are no locks.

    Raises BlockingIOError if another process holds the lock.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise BlockingIOError from error
        if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):
            return False
        raise
    return True


def _same(place: int, path: Path) -> bool:
    """Return whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(place), path.stat())
    except FileNotFoundError:
        return False


def _signature() -> bytes:
    """Describe this process as the content of the lock file."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": platform.node(), "process": os.getpid(), "since": since}
    return json.dumps(who).encode()


def _holder(path: Path) -> str:
    """Describe the process that signed the lock file."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"host {holder['host']}, process {holder['process']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which"
