"""Find and read the weights of attacks that are trained, such as `advgan` and `universal`."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.core.errors import SuiteError, nearest

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped weights, NAME of an attack in ATTACK-NAME.safetensors."""
SUFFIX = ".safetensors"
Loaded = TypeVar("Loaded")


def find_weights(attack: str, weights: str) -> Path:
    """Find the file that the params of an attack name.

    Args:
        attack: Registered name of the attack.
        weights: Name of shipped weights, or a path that ends in .safetensors.

    Returns:
        The path, which need not exist; a relative one is taken from the working folder.
    """
    return Path(weights) if weights.endswith(SUFFIX) else WEIGHTS / f"{attack}-{weights}{SUFFIX}"


def load_weights(attack: str, weights: str, read: Callable[[str, Path, int], Loaded]) -> Loaded:
    """Read the weights of an attack and say how to make them if that fails.

    Args:
        attack: Registered name of the attack.
        weights: As in `find_weights`.
        read: (place for messages, path, modification time in ns) -> content. The time lets a cache
            see that a file has changed.

    Returns:
        What `read` returns.

    Raises:
        SuiteError: As `read` raises it, with the nearest name and the command that trains.
    """
    path = find_weights(attack, weights)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    try:
        return read(f"attack '{attack}': weights '{weights}'", path, changed)
    except SuiteError as error:
        known = [
            file.stem.removeprefix(f"{attack}-") for file in WEIGHTS.glob(f"{attack}-*{SUFFIX}")
        ]
        problem = f"{error}; {nearest(weights, known)}; "
        command = f"`bench train {path.stem} --out {path.parent}`"
        raise SuiteError(f"{problem}{command} makes it if there is such a recipe") from error
