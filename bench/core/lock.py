"""One run at a time writes into a folder; who reads is not asked.

The lock is the kernel's, through filelock, so that it ends with the process that holds it, SIGKILL
and power cuts included: a file that is left behind locks nothing. It says who holds it. Where a
file system has no such locks the run goes on, and the user is told.
"""

import contextlib
import errno
import json
import os
import platform
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from bench.core.errors import SuiteError

FILE = "run.lock"
NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)
"""What file systems answer that have no locks."""


@contextlib.contextmanager
def held(folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder, made if it is not there; `tell` hears of it if that cannot be.

    Raises: SuiteError if another process holds it, naming that, or it cannot be written.
    """
    path = folder / FILE
    # A soft lock, a mere file, would outlive the process that is killed.
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locked = _acquired(lock)
            if locked:
                stack.callback(lock.release)
                path.write_text(_signature(), encoding="utf-8")
                stack.callback(_removed, path)  # while it is locked: no other run can sign it
        except Timeout:
            raise SuiteError(
                f"{folder}: another run works in this folder ({_holder(path)}); wait until it ends "
                "or choose another folder with --out"
            ) from None
        except OSError as error:
            raise SuiteError(
                f"{path}: could not be written ({error.strerror or error}); make room or choose "
                "another folder with --out and run again"
            ) from error
        if not locked:
            tell(f"{folder}: its file system has no locks, so see that no other run works in it")
        yield


def _acquired(lock: FileLock) -> bool:
    """Whether the lock is held now; False where there are no locks.

    Raises: Timeout if another process has it; OSError if its file cannot be written.
    """
    try:
        lock.acquire()
    except Timeout:  # an OSError itself
        raise
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _removed(path: Path) -> None:
    with contextlib.suppress(OSError):  # without its file nothing is locked, nor with it
        path.unlink()


def _signature() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"host": platform.node(), "process": os.getpid(), "since": since})


def _holder(path: Path) -> str:
    """Who signed the lock file, for people."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"host {told['host']}, process {told['process']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which"
