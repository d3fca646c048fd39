"""One run at a time writes into a folder; who reads is not asked.

The lock is the kernel's (flock), so that it ends with the process that holds it, SIGKILL and power
cuts included: a file that is left behind locks nothing. It says who holds it. Where a file system
has no such locks the run goes on, and the user is told.
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
    """Hold the folder, made if it is not there; `tell` hears of it if that cannot be.

    Raises: SuiteError if another process holds it, naming that, or it cannot be written.
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
    """The open lock file, locked and signed; None where there are no locks.

    Raises: BlockingIOError if another process has it; OSError if it cannot be written.
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
        os.close(place)  # whoever held it deleted it in between: lock the file that is there now


def _lock(place: int) -> bool:
    """Whether the open file is locked; False where there are no locks.

    Raises: BlockingIOError if another process has it.
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
    """Whether the open file is still the one at this path."""
    try:
        return os.path.samestat(os.fstat(place), path.stat())
    except FileNotFoundError:
        return False


def _signature() -> bytes:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    who = {"host": platform.node(), "process": os.getpid(), "since": since}
    return json.dumps(who).encode()


def _holder(path: Path) -> str:
    """Who signed the lock file, for people."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"host {told['host']}, process {told['process']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which"
