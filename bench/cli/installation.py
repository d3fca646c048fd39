"""Notice that another distribution has overwritten bench's files or its command.

The import name `bench` and the command `bench` are not bench's alone: where two distributions share
one, the later installation replaces files of the earlier without a word.
"""

import base64
import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePath

from bench.core.extensions import OWN

COMMAND = "bench"
_CHECKED = ("bench/__init__.py", "bench/__main__.py", "bench/cli/__init__.py", "bench/api.py")
"""Files that another package of this name is likely to have too."""


def find_clashes() -> Iterator[str]:
    """Compare bench's files and its command with what its distribution installed.

    Yields:
        A sentence for each that another distribution has replaced. Files that nobody else claims
        are the user's own changes and pass.
    """
    try:
        own = metadata.distribution(OWN)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return
    changed = {path.as_posix(): path for path in own.files or () if _has_changed(own, path)}
    replaced = sorted(name for name in changed if name in _CHECKED)
    if replaced and (owner := _find_claimant(replaced[0])):
        yield (
            f"{owner} has overwritten {', '.join(replaced)} of {OWN} {own.version}: both install a "
            f"package 'bench'; install them in two environments, then {OWN} again"
        )
    command_replaced = any(path.stem == COMMAND for path in changed.values())
    if command_replaced and (owner := _find_script_owner()):
        yield (
            f"the command '{COMMAND}' of this environment belongs to {owner}; call this one by the "
            f"name {OWN}"
        )


def _has_changed(own: metadata.Distribution, path: metadata.PackagePath) -> bool:
    """Return whether a file that may clash is not the one that was installed."""
    is_command = path.stem == COMMAND and path.suffix in ("", ".exe")
    if path.hash is None or not (is_command or path.as_posix() in _CHECKED):
        return False
    try:
        content = Path(str(own.locate_file(path))).read_bytes()
    except OSError:
        return False
    digest = hashlib.new(path.hash.mode, content).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != path.hash.value


def _find_claimant(name: str) -> str:
    """Return the other distribution whose list of files has a file of this name."""
    for each in metadata.distributions():
        if each.metadata["Name"] != OWN and PurePath(name) in map(PurePath, each.files or ()):
            return f"{each.metadata['Name']} {each.version}"
    return ""


def _find_script_owner() -> str:
    """Return the other distribution that installs a command of this name."""
    for point in metadata.entry_points(group="console_scripts", name=COMMAND):
        if point.dist is not None and point.dist.metadata["Name"] != OWN:
            return f"{point.dist.metadata['Name']} {point.dist.version}"
    return ""
