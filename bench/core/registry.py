"""Find the object that a name means; the file name of a built-in is its name.

`find("attacks", "pgd")` imports bench/attacks/pgd.py and returns its ATTACK. A user's code is named
as "package.module:NAME" or "path/file.py:NAME" (relative to the suite's folder) and is executed; so
can be a model's "path/net.pt2", a program in a file, which its entry must therefore say to trust. A
file of data, such as "path/data.npz", is read by bench's own readers.
"library:NAME" goes to the adapter of that library, where bench has one.
"""

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bench.core import source_hash
from bench.core.errors import SuiteError, describe, nearest

_read: dict[str, dict[Path, str]] = {}
"""Modules of the user's own -> the files that they and their imports were read from, and what those
held: a file that was edited since is read again, also in one process."""
RECORDS = {"attacks": "ATTACK", "models": "MODEL", "datasets": "DATASET"}


class Resolver(NamedTuple):
    """How a package recognises and opens names of a further form, such as files."""

    recognizes: Callable[[str], bool]
    open: Callable[[Path], Any]
    content: str
    """What such a file holds, with an article."""
    is_code: bool
    """Whether the file is the user's code, as a program is, and data are not."""


_resolvers: dict[str, Resolver] = {}


def add_resolver(
    kind: str,
    recognizes: Callable[[str], bool],
    open_: Callable[[Path], Any],
    content: str,
    is_code: bool,
) -> None:
    """Register how the package of a kind opens names that are files; called on its import.

    Args:
        kind: "attacks", "models" or "datasets".
        recognizes: Returns whether a name is that of such a file.
        open_: Returns the factory that reads the file at a path.
        content: What such a file holds, with an article, for messages.
        is_code: Whether the file is the user's code.
    """
    _resolvers[kind] = Resolver(recognizes, open_, content, is_code)


def names(kind: str) -> list[str]:
    """List the names of all built-in things of a kind.

    Args:
        kind: "attacks", "models" or "datasets".

    Returns:
        Names in order, those of adapters of other libraries with a colon at the end.
    """
    return sorted([*_records(kind), *(f"{library}:" for library in _adapters(kind))])


def built_in(kind: str, name: str) -> bool:
    """Return whether `find` looks for a name in bench's own files alone.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.

    Returns:
        False for a user's file or module, and for a model's file; True for a file of data, which
        bench's own readers read.
    """
    resolver = _resolver(kind, name)
    if resolver is not None:
        return not resolver.is_code
    return ":" not in name or names_library(kind, name)


def names_library(kind: str, name: str) -> bool:
    """Return whether a name belongs to a library that bench has an adapter of.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.

    Returns:
        True for "library:NAME"; False for a path with a colon in it.
    """
    library, colon, _ = name.partition(":")
    return bool(colon) and library in _adapters(kind)


def relocate_name(kind: str, name: str, base: Path) -> str:
    """Rewrite a name that starts from the working folder so that it starts from another one.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.
        base: The other folder.

    Returns:
        A name with the relative path from `base` to its file; a name without a file as it is.
    """
    file, attribute = _split_file(kind, name)
    return relocate_path(file, base) + attribute if file else name


def relocate_path(path: str, base: Path) -> str:
    """Rewrite a path that starts from the working folder so that it starts from another one.

    Args:
        path: Path of a file.
        base: The other folder.

    Returns:
        The relative path from `base`; the absolute one between two drives of Windows.
    """
    absolute = Path(path).absolute()
    try:
        return Path(os.path.relpath(absolute, base.resolve())).as_posix()
    except ValueError:  # on another drive of Windows
        return absolute.as_posix()


def portable_name(kind: str, name: str) -> str:
    """Remove from a name what depends on where the suite is stored.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.

    Returns:
        The name; without its folders if its file lies outside of the suite's folder.
    """
    file, attribute = _split_file(kind, name)
    path = Path(file)
    return path.name + attribute if path.is_absolute() or ".." in path.parts else name


def _split_file(kind: str, name: str) -> tuple[str, str]:
    """Split a name into the path of a file, if there is one, and the rest with its colon."""
    if _resolver(kind, name) is not None:
        return name, ""
    file, colon, attribute = name.rpartition(":")
    if not names_library(kind, name) and file.endswith(".py"):
        return file, colon + attribute
    return "", name


def find(kind: str, name: str, base: Path | None = None) -> Any:
    """Find the record or object called `name`.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A built-in name, "library:NAME", "module:NAME", "file.py:NAME" or, for a model or a
            data set, a file of its own.
        base: Folder that file names start from; the working folder by default.

    Returns:
        The record, the object of that name, or a callable that reads the file.

    Raises:
        SuiteError: There is none (the message names the nearest known name), the name ends before
            its object's, or the user's file raised while it was imported (the message names the
            line).
    """
    resolver = _resolver(kind, name)
    if resolver is not None:
        path = Path(base or ".") / name
        if "{" not in name and not _there(path):  # a pattern of several files is checked when read
            raise SuiteError(f"{path}: expected {resolver.content} there, found none")
        return resolver.open(path)
    file = name.rstrip(":")
    if file.endswith(".py"):  # folders may have colons in their names
        raise SuiteError(
            f"'{name}': expected a file and the name of what is in it, got no name; "
            f"write '{file}:NAME'"
        )
    if ":" not in name:
        if name not in _modules(kind) or not hasattr(_builtin(kind, name), RECORDS[kind]):
            raise SuiteError(f"{kind[:-1]} '{name}' is unknown; {nearest(name, names(kind))}")
        return getattr(_builtin(kind, name), RECORDS[kind])
    if names_library(kind, name):
        library, _, rest = name.partition(":")
        return _builtin(f"{kind}.adapters", library).adapt(rest)
    where, _, attribute = name.rpartition(":")
    module = _file(Path(base or ".") / where) if where.endswith(".py") else _module(where)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise SuiteError(
            f"{where}: '{attribute}' is not defined there; {nearest(attribute, public)}"
        ) from None


def _resolver(kind: str, name: str) -> Resolver | None:
    """Return the resolver of a kind if it recognises the name."""
    importlib.import_module(f"bench.{kind}")  # which adds its resolver
    resolver = _resolvers.get(kind)
    return resolver if resolver is not None and resolver.recognizes(name) else None


def _modules(package: str) -> list[str]:
    """List the modules of a package, without subpackages."""
    try:
        path = importlib.import_module(f"bench.{package}").__path__
    except ModuleNotFoundError:  # no library has adapters of this kind
        return []
    return [module.name for module in pkgutil.iter_modules(path) if not module.ispkg]


def _records(kind: str) -> list[str]:
    """List the built-in modules that end in a record."""
    return [name for name in _modules(kind) if hasattr(_builtin(kind, name), RECORDS[kind])]


def _adapters(kind: str) -> list[str]:
    """List the libraries with an adapter of this kind."""
    return _modules(f"{kind}.adapters")


def _builtin(kind: str, name: str) -> ModuleType:
    """Import a built-in module."""
    return importlib.import_module(f"bench.{kind}.{name}")


def _module(name: str) -> ModuleType:
    """Import a user's module by its dotted name, again if a file of it changed."""
    _refresh(name)
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # foreign code; a name like ".x" raises, too
        raise SuiteError(f"module '{name}' could not be imported: {describe(error)}") from error
    file = source_hash.module_file(module)
    if name not in _read and file is not None and source_hash.is_own(file):
        _read[name] = source_hash.hash_contents(file)
    return module


def _refresh(key: str) -> None:
    """Forget a module that was read before if a file of it has other content now."""
    if key in _read and not source_hash.is_unchanged(_read[key]):
        source_hash.forget_modules(_read.pop(key))


def _there(path: Path) -> bool:
    """Return whether a path is a file; False for a name that no file can have."""
    try:
        return path.resolve().is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _file(path: Path) -> ModuleType:
    """Import a user's file as a module, again if a file of it changed."""
    if not _there(path):
        raise SuiteError(f"{path}: expected a Python file there, found none")
    path = path.resolve()
    key = f"bench_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    _refresh(key)
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the user's own code: tell where it broke
        del sys.modules[key]
        line = _line_in(path, error)
        raise SuiteError(f"{path}:{line}: {describe(error)}") from error
    _read[key] = source_hash.hash_contents(path)
    return module


def _line_in(path: Path, error: BaseException) -> int:
    """Return the last line of `path` on the error's traceback, or the line of its syntax error."""
    line = getattr(error, "lineno", None) or 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return int(line)
