"""Find attacks, models, data sets, formats and trackers that installed packages offer.

A package declares them as entry points of the groups `bench.attacks`, `bench.models`,
`bench.datasets`, `bench.formats` and `bench.trackers`. Nothing is imported before it is used, so a
package that cannot be imported disturbs no other. The source of such a package counts as a user's
own code: it is part of the identity of every cell that uses it.
"""

import functools
import importlib.util
import re
import sys
from collections.abc import Collection, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from bench.core.errors import SuiteError, describe

KINDS = ("attacks", "models", "datasets", "formats", "trackers")
OWN = "robustness-bench"
"""Name of bench's distribution."""
_NAME = re.compile(r"\w[\w.-]*", re.ASCII)


class Extension(NamedTuple):
    """One entry point of an installed package."""

    kind: str
    """One of KINDS."""
    name: str
    target: str
    """The object, as "package.module:NAME"."""
    distribution: str
    version: str

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}"

    @property
    def title(self) -> str:
        """What sentences call it, such as "attack 'mine' of mine-attacks 1.0"."""
        return f"{self.kind[:-1]} '{self.name}' of {self.origin}"

    def load(self) -> Any:
        """Import the object.

        Returns:
            The object that the entry point names.

        Raises:
            SuiteError: It cannot be imported.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # code of the package
            raise SuiteError(
                f"{self.title}: {self.target} could not be imported: {describe(error)}"
            ) from error
        return found


class Discovery(NamedTuple):
    """The extensions of one kind, and what is wrong with the others."""

    usable: dict[str, Extension]
    """By name, sorted."""
    problems: tuple[str, ...]
    """A sentence for each one that cannot be used."""


def discover_extensions(kind: str, reserved: Collection[str]) -> Discovery:
    """Find the extensions of one kind.

    Args:
        kind: One of KINDS.
        reserved: Names that bench itself has; no package may take them.

    Returns:
        The usable ones. Those with a reserved or invalid name, or a name that several packages
        claim, are named in the problems instead.
    """
    by_name: dict[str, list[Extension]] = {}
    for each in _entry_points(tuple(sys.path)):
        if each.kind == kind:
            by_name.setdefault(each.name, []).append(each)
    usable, problems = {}, []
    for name, claims in sorted(by_name.items()):
        first = claims[0]
        if name in reserved:
            problems += [
                f"{each.title} is not used: the name is that of one of bench's own"
                for each in claims
            ]
        elif not _NAME.fullmatch(name):
            problems.append(
                f"{first.title} is not used: expected a name of letters, digits, '_', '-' and '.'"
            )
        elif len({each.target for each in claims}) > 1:
            owners = " and ".join(each.origin for each in claims)
            problems.append(
                f"{kind[:-1]} '{name}' is not used: {owners} both offer one; uninstall one of them"
            )
        else:
            usable[name] = first
    return Discovery(usable, tuple(problems))


def source_roots() -> tuple[Path, ...]:
    """Find the source of all packages with extensions, without importing them.

    Returns:
        The folder of each top-level package, or the file of a module.
    """
    return _source_roots(tuple(sys.path))


@functools.lru_cache(maxsize=8)
def _entry_points(path: tuple[str, ...]) -> Sequence[Extension]:
    """Read the entry points of every distribution on Python's path; each distribution once."""
    del path  # the key of the cache: reading takes some 30 ms
    found: dict[tuple[str, str, str, str], Extension] = {}
    for kind in KINDS:
        for point in metadata.entry_points(group=f"bench.{kind}"):
            owner = point.dist
            name = owner.metadata["Name"] if owner is not None else "an unknown package"
            if name != OWN:
                version = owner.version if owner is not None else ""
                each = Extension(kind, point.name, point.value, name, version)
                found.setdefault((kind, point.name, name, point.value), each)
    return tuple(found.values())


@functools.lru_cache(maxsize=8)
def _source_roots(path: tuple[str, ...]) -> tuple[Path, ...]:
    tops = {each.target.partition(":")[0].partition(".")[0] for each in _entry_points(path)}
    roots: list[Path] = []
    for top in sorted(tops - {"", "bench"}):
        try:
            spec = importlib.util.find_spec(top)  # of a top-level name: imports nothing
        except (ImportError, ValueError):
            continue
        if spec is None:
            continue
        folders = spec.submodule_search_locations
        if folders is not None:
            roots += [Path(folder).resolve() for folder in folders]
        elif spec.origin is not None:
            roots.append(Path(spec.origin).resolve())
    return tuple(roots)
