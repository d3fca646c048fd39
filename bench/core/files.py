"""Write files completely or not at all.

A file is written under a temporary name, synced and renamed, and its folder is synced: after a
power cut there is either the old content or all of the new one. Files that a killed process left
behind end in PARTIAL and are never read.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import unicodedata
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
    """Return the folder of data sets.

    Args:
        given: A folder; None for BENCH_DATA_DIR or, where that is not set, the platform's user
            cache.

    Returns:
        The folder, which need not exist.
    """
    if given is None:
        given = os.environ.get("BENCH_DATA_DIR") or platformdirs.user_cache_path("bench")
    return Path(given)


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder; create it if it is missing.

    Args:
        folder: The folder.

    Raises:
        SuiteError: A file cannot be written there.
    """
    remove(write_atomic(folder / f"probe{PARTIAL}", b""))


def write_atomic(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name, sync it, rename it and sync its folder.

    After a power cut the file holds its old content or all of the new one.

    Args:
        path: Path of the file.
        content: Bytes to write.

    Returns:
        `path`.

    Raises:
        SuiteError: The disk is full or the folder cannot be written.
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
    """Delete a file if it exists.

    Args:
        path: Path of the file.

    Raises:
        SuiteError: The file cannot be deleted.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise SuiteError(
            f"{path}: could not be deleted ({error.strerror or error}); make its folder writable "
            "or choose another with --out and run again"
        ) from error


def remove_partials(folder: Path, pattern: str = "*") -> None:
    """Delete the partial files that killed writers left in a folder.

    Only a process that is the sole writer of the folder may call this.

    Args:
        folder: The folder.
        pattern: Glob pattern of the names before the suffix.

    Raises:
        SuiteError: A file cannot be deleted.
    """
    for path in folder.glob(f"{pattern}{PARTIAL}"):
        remove(path)


def set_aside(path: Path) -> Path:
    """Rename a damaged file, so that it is no longer read and can be inspected.

    Args:
        path: Path of the file.

    Returns:
        The new path, which ends in `DAMAGED`.

    Raises:
        SuiteError: The file cannot be renamed.
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


def slug(name: str, longest: int = 80) -> str:
    """Turn a label into a file name of letters, digits and dashes.

    Args:
        name: Any text.
        longest: Most characters.

    Returns:
        A name that cannot leave its folder or break a command; "x" if nothing is left.

    >>> slug("LeNet, L-inf: 8/255"), slug("../.."), slug("é")
    ('lenet-l-inf-8-255', 'x', 'e')
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:longest] or "x"


def short_hash(content: bytes) -> str:
    """Hash the content of a file for its name.

    Args:
        content: Bytes of the file.

    Returns:
        The first 16 hexadecimal digits of the SHA-256.
    """
    return hashlib.sha256(content).hexdigest()[:16]


def matches_hash(path: Path, content: bytes) -> bool:
    """Return whether a file's content has the hash that its name ends in.

    Args:
        path: Path of the file.
        content: Bytes of the file.

    Returns:
        True also for a name without a hash.
    """
    named = _HASHED.search(path.stem)
    return named is None or named[1] == short_hash(content)


def strip_hash(path: Path) -> str:
    """Return a file's name without suffix and hash.

    Args:
        path: Path of the file.

    Returns:
        The stem without "-<hash>".
    """
    return _HASHED.sub("", path.stem)


def _sync(folder: Path) -> None:
    """Sync a folder, so that a renaming in it is durable, where the system supports that."""
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
