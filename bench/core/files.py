"""Files are written whole or not at all, whatever happens in between.

A file is written under a name of its own, synced, renamed, and its folder synced: after a power
cut, too, there is either what was there before or all of what was to be there. What a process that
was killed left behind ends in PARTIAL and is never read.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
from pathlib import Path

import platformdirs

from bench.core.errors import SuiteError

PARTIAL = ".partial"
DAMAGED = ".damaged"
"""Behind the name of a file that was set aside because its content is not what its name says."""
UNSYNCABLE = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.ENOSYS)
"""What file systems answer that cannot sync a folder, and need not."""
_HASHED = re.compile(r"-([0-9a-f]{16})$")


def data_folder(given: str | Path | None) -> Path:
    """Where data sets lie: as given, else BENCH_DATA_DIR, else the platform's user cache."""
    if given is None:
        given = os.environ.get("BENCH_DATA_DIR") or platformdirs.user_cache_path("bench")
    return Path(given)


def check_writable(folder: Path) -> None:
    """Raises: SuiteError if files cannot be written into the folder, made if it is not there."""
    remove(write_atomic(folder / f"probe{PARTIAL}", b""))


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name, sync and rename it, sync its folder; returns `path`.

    Raises: SuiteError if the disk is full or the folder cannot be written.
    """
    # No other process has this name: two that write one file at once each write it whole.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder may be what is not there
            partial.unlink()
        raise SuiteError(
            f"{path}: could not be written ({error.strerror or error}); what was finished before "
            "is kept, make room or choose another folder with --out and run again"
        ) from error
    return path


def remove(path: Path) -> None:
    """Delete a file, if it is there.

    Raises: SuiteError if it cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SuiteError(
            f"{path}: could not be deleted ({error.strerror or error}); make its folder writable "
            "or choose another with --out and run again"
        ) from error


def remove_partials(folder: Path, pattern: str = "*") -> None:
    """Delete what writers that were killed left in a folder. Only for who writes there alone.

    Raises: SuiteError if it cannot be deleted.
    """
    for path in folder.glob(f"{pattern}{PARTIAL}"):
        remove(path)


def set_aside(path: Path) -> Path:
    """Rename a file that is damaged, so that nobody reads it and somebody may look at it.

    Raises: SuiteError if it cannot be renamed.
    """
    aside = path.with_name(path.name + DAMAGED)
    try:
        path.replace(aside)
        _sync(path.parent)
    except OSError as error:
        raise SuiteError(
            f"{path}: is damaged and could not be renamed ({error.strerror or error}); make its "
            "folder writable or choose another with --out and run again"
        ) from error
    return aside


def short_hash(content: bytes) -> str:
    """What the name of a file with this content ends in: 16 hexadecimal digits of its sha256."""
    return hashlib.sha256(content).hexdigest()[:16]


def matches_hash(path: Path, content: bytes) -> bool:
    """Whether a file's content has the hash in its name; a name without a hash promises nothing."""
    named = _HASHED.search(path.stem)
    return named is None or named[1] == short_hash(content)


def strip_hash(path: Path) -> str:
    """A file's name without suffix and hash: what the file is about."""
    return _HASHED.sub("", path.stem)


def _sync(folder: Path) -> None:
    """Make a renaming in the folder last, where the system can."""
    if os.name != "posix":
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in UNSYNCABLE:
            raise
    finally:
        os.close(place)
