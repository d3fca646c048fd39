"""Let one run at a time write into a folder; readers need no lock.

The lock is the kernel's (flock, through filelock) and ends with the process that holds it, after
SIGKILL and power cuts too: a file that is left behind locks nothing. Its content names the holder.
Where a file system has no such locks the run goes on with a warning.
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
def hold_lock(
    folder: Path, tell: Callable[[str], None], wait_seconds: float = 0.0
) -> Iterator[None]:
    """Hold the lock of a folder, which is created if it is missing.

    Args:
        folder: Folder of a run.
        tell: Receives a sentence if the file system has no locks.
        wait_seconds: How long to wait for another process that holds the lock.

    Yields:
        While the lock is held, or at once where there are no locks.

    Raises:
        SuiteError: Another process holds the lock, or the lock file cannot be written.
    """
    path = folder / FILE
    # A soft lock, a mere file, would outlive the process that is killed.
    lock = FileLock(path, timeout=wait_seconds, fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locked = _acquire(lock)
            if locked:
                stack.callback(lock.release)
                path.write_text(_signature(), encoding="utf-8")
                stack.callback(_remove, path)  # while it is locked: no other run can sign it
        except Timeout:
            raise SuiteError(
                f"{folder}: another run works in this folder ({_holder(path)}); wait until it ends "
                "or choose another folder with --out"
            ) from None
        except OSError as error:
            if folder.is_file():
                raise SuiteError(
                    f"{folder}: expected a folder, got a file; choose another folder with --out"
                ) from error
            raise SuiteError(
                f"{path}: could not be written ({error.strerror or error}); make room or choose "
                "another folder with --out and run again"
            ) from error
        if not locked:
            tell(f"{folder}: its file system has no locks, so see that no other run works in it")
        yield


def _acquire(lock: FileLock) -> bool:
    """Acquire the lock; return False where there are no locks.

    Raises Timeout if another process holds it and OSError if its file cannot be written.
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


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # without its file nothing is locked, nor with it
        path.unlink()


def _signature() -> str:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return json.dumps({"host": platform.node(), "process": os.getpid(), "since": since})


def _holder(path: Path) -> str:
    """Describe the process that signed the lock file."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"host {holder['host']}, process {holder['process']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it did not say which"
