"""Removal of what a refused run wrote: its folder is as it was before the command."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from bench.core import files
from bench.core.errors import RecordError, SuiteError
from bench.storage import manifest


@contextlib.contextmanager
def undo_refused_run(out: Path, *texts: Path) -> Iterator[None]:
    """Remove what the block wrote if a run is refused before it writes its manifest.

    What was there before remains; so does a folder that holds anything else by then.

    Args:
        out: Folder of the run, or of its shard.
        *texts: Files that the block may write besides, in `out` or in a folder above it.

    Yields:
        Once.

    Raises:
        SuiteError: As the block raised it.
        RecordError: As the block raised it.
    """
    created = [path for path in (out / "records", out, *out.parents) if not path.exists()]
    earlier = {path: _read(path) for path in texts}
    manifest_version = _version(out / manifest.FILE)
    try:
        yield
    except (SuiteError, RecordError):
        if _version(out / manifest.FILE) == manifest_version:
            _remove_empty(created)
            for path, content in earlier.items():
                _restore(path, content)
            _remove_empty(created)
        raise


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # missing, or none that a run could have written
        return None


def _version(path: Path) -> tuple[int, int] | None:
    """Return what changes whenever a file is written; None if it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _restore(path: Path, content: bytes | None) -> None:
    """Restore the earlier content of a file; one that was missing is removed if it is alone.

    Another shard may need it otherwise.
    """
    now = _read(path)
    if now == content:
        return
    with contextlib.suppress(SuiteError):  # the refusal is what the user must read
        if content is not None:
            files.write_atomic(path, content)
        elif [*path.parent.iterdir()] == [path]:
            files.remove(path)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or never created
            folder.rmdir()
