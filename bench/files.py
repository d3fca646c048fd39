"""Files are written whole or not at all, whatever happens in between."""

import contextlib
import os
from pathlib import Path

from bench.errors import SuiteError


def check_writable(folder: Path) -> None:
    """Raises: SuiteError if files cannot be written into the folder, made if it is not there."""
    probe = folder / "writable"
    write_whole(probe, b"")
    probe.unlink()


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name, sync and rename it; returns `path`.

    Raises: SuiteError if the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the folder may be what is not there
            partial.unlink()
        raise SuiteError(
            f"{path}: could not be written ({error.strerror}); what was finished before is kept, "
            "make room or choose another folder with --out and run again"
        ) from error
    return path
