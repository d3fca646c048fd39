"""Find the object that a name means; the file name of a built-in is its name.

`find("attacks", "pgd")` imports bench/attacks/pgd.py and returns its ATTACK. A user's code is named
as "package.module:NAME" or "path/file.py:NAME" (relative to the suite's folder) and is executed; so
can be a model's "path/net.pt2", a program in a file, which its entry must therefore say to trust. A
file of data, such as "path/data.npz", is read by bench's own readers. "library:NAME" goes to the
adapter of that library, where bench has one. Other bare names are those of extensions: entry points
of installed packages.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from bench.core import extensions, source_hash, user_imports
from bench.core.errors import SuiteError, describe, has_similar, nearest
from bench.core.extensions import Discovery, Extension

_read: dict[str, dict[Path, str]] = {}
"""Modules of the user's own -> the files that they and their imports were read from, and what those
held: a file that was edited since is read again, also in one process."""
MEANT = 3
"""Most names of libraries that a sentence suggests."""
RECORDS = {"attacks": "ATTACK", "models": "MODEL", "datasets": "DATASET"}


class Resolver(NamedTuple):
    """How a package recognises and opens names of a further form, such as files."""

    recognizes: Callable[[str], bool]
    open: Callable[[Path], Any]
    content: str
    """What such a file holds, with an article."""
    is_code: bool
    """Whether the file is the user's code, as a program is, and data are not."""
    folder_hint: str
    """How a folder is read, for the sentence about an unknown name; with "{folder}"."""


_resolvers: dict[str, Resolver] = {}


def add_resolver(
    kind: str,
    recognizes: Callable[[str], bool],
    open_: Callable[[Path], Any],
    content: str,
    is_code: bool,
    folder_hint: str = "",
) -> None:
    """Register how the package of a kind opens names that are files; called on its import.

    Args:
        kind: "attacks", "models" or "datasets".
        recognizes: Returns whether a name is that of such a file.
        open_: Returns the factory that reads the file at a path.
        content: What such a file holds, with an article, for messages.
        is_code: Whether the file is the user's code.
        folder_hint: How a folder is read, with "{folder}" for its path; for the sentence about a
            name that is unknown and that of a folder.
    """
    _resolvers[kind] = Resolver(recognizes, open_, content, is_code, folder_hint)


def names(kind: str) -> list[str]:
    """List the names of all things of a kind: built in, or of installed packages.

    Args:
        kind: "attacks", "models" or "datasets".

    Returns:
        Names in order, those of adapters of other libraries with a colon at the end.
    """
    libraries = (f"{library}:" for library in _adapters(kind))
    return sorted([*_records(kind), *libraries, *discover(kind).usable])


def discover(kind: str) -> Discovery:
    """Find the extensions of a kind that installed packages offer, without importing them.

    Args:
        kind: "attacks", "models" or "datasets".

    Returns:
        The usable ones, and a sentence for each of the others; a built-in name is never replaced.
    """
    return extensions.discover_extensions(kind, _modules(kind))


def origin(kind: str, name: str) -> str:
    """Return which distribution a name comes from.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.

    Returns:
        "distribution version"; empty unless it is the name of an extension.
    """
    if ":" in name or name in _modules(kind):
        return ""
    found = discover(kind).usable.get(name)
    return "" if found is None else found.origin


def adapter_names(kind: str, library: str) -> list[str] | None:
    """List what the adapter of a library offers.

    Args:
        kind: "attacks", "models" or "datasets".
        library: The library, without the colon.

    Returns:
        Names in the library, sorted, empty if it is not installed; None if it has no list.

    Raises:
        SuiteError: There is no adapter of that name.
    """
    if library not in _adapters(kind):
        known = [f"{each}:" for each in _adapters(kind)]
        raise SuiteError(f"no {kind} come from '{library}:'; {nearest(f'{library}:', known)}")
    listing = getattr(_builtin(f"{kind}.adapters", library), "list_names", None)
    return None if listing is None else list(listing())


def suggest(kind: str, name: str) -> str:
    """Return the end of an "unknown name" sentence, with names of other libraries.

    Args:
        kind: "attacks", "models" or "datasets".
        name: The unknown name, without a library.

    Returns:
        The names that are meant, best first, and the known names of bench.
    """
    own = names(kind)
    wanted, found = name.casefold(), [each for each in own if each.casefold() == name.casefold()]
    theirs = [
        f"{library}:{each}" for library in _adapters(kind)
        for each in adapter_names(kind, library) or ()
    ]  # fmt: skip
    found += [each for each in theirs if each.partition(":")[2].casefold() == wanted]
    if not found and len(wanted) > 2 and not has_similar(name, own):
        found = [each for each in theirs if wanted in each.partition(":")[2].casefold()][:MEANT]
    if not found:
        return nearest(name, own)
    meant = " or ".join(f"'{each}'" for each in found[:MEANT])
    return f"did you mean {meant}? known: {', '.join(own)}"


def built_in(kind: str, name: str) -> bool:
    """Return whether `find` looks for a name in bench's own files alone.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.

    Returns:
        False for a user's file or module, a model's file and an extension; True for a file of
        data, which bench's own readers read.
    """
    resolver = _resolver(kind, name)
    if resolver is not None:
        return not resolver.is_code
    if origin(kind, name):
        return False
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
    file, attribute = split_file(kind, name)
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
    file, attribute = split_file(kind, name)
    path = Path(file)
    return path.name + attribute if path.is_absolute() or ".." in path.parts else name


def split_file(kind: str, name: str) -> tuple[str, str]:
    """Split a name into the path of a file, if there is one, and the rest with its colon.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it.

    Returns:
        (path, ":NAME"); (path, "") for a file that is a model or data, ("", name) without a file.
    """
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
        name: A built-in name, that of an extension, "library:NAME", "module:NAME", "file.py:NAME"
            or, for a model or a data set, a file of its own.
        base: Folder that file names start from; the working folder by default.

    Returns:
        The record, the object of that name, or a callable that reads the file.

    Raises:
        SuiteError: There is none (the message names the nearest known name), the name ends before
            its object's, the user's file raised while it was imported (the message names the
            line), or an extension cannot be imported or is no record of its kind.
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
            extension = discover(kind).usable.get(name)
            if extension is not None:
                return load_extension(extension)
            hint = _folder_hint(kind, Path(base or ".") / name) if name else ""
            raise SuiteError(f"{kind[:-1]} '{name}' is unknown; {hint}{suggest(kind, name)}")
        return getattr(_builtin(kind, name), RECORDS[kind])
    if names_library(kind, name):
        library, _, rest = name.partition(":")
        return _builtin(f"{kind}.adapters", library).adapt(rest)
    where, _, attribute = name.rpartition(":")
    with search_user_code(kind, name, base):
        module = _file(Path(base or ".") / where) if where.endswith(".py") else _module(where)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise SuiteError(
            f"{where}: '{attribute}' is not defined there; {nearest(attribute, public)}"
        ) from None


def load_extension(extension: Extension) -> Any:
    """Import the record of an attack, a model or a data set that an installed package offers.

    Args:
        extension: The extension.

    Returns:
        The record. An attack that does not say which library it is from gets the name of the
        distribution, so that no table ascribes it to bench.

    Raises:
        SuiteError: It cannot be imported, or is no record of its kind.
    """
    from bench.core.contracts.attack import Attack  # imports torch, which a list does not wait for
    from bench.core.contracts.dataset import Dataset
    from bench.core.contracts.model import Model

    kinds = {"attacks": Attack, "models": Model, "datasets": Dataset}
    found, expected = extension.load(), kinds[extension.kind]
    if not isinstance(found, expected):
        raise SuiteError(
            f"{extension.title}: expected {extension.target} to be a bench.{expected.__name__} "
            f"record, got {type(found).__name__}"
        )
    if isinstance(found, Attack) and found.implementation == "bench":
        return dataclasses.replace(found, implementation=extension.distribution)
    return found


@contextmanager
def search_user_code(kind: str, name: str, base: Path | None = None) -> Iterator[None]:
    """Let a user's code import what is beside it: a factory may do so when it is called.

    Args:
        kind: "attacks", "models" or "datasets".
        name: A name as `find` takes it; nothing is done for one that is not the user's.
        base: Folder that file names start from; the working folder by default.

    Yields:
        With the file's folder, `base` and the working folder on Python's path.
    """
    if built_in(kind, name):
        yield
        return
    where = name.rpartition(":")[0]
    folders = [Path(base or ".").resolve(), Path.cwd()]
    if where.endswith(".py"):
        with contextlib.suppress(ValueError):  # no name of a file: "\0.py"
            folders.insert(0, (folders[0] / where).resolve().parent)
    with user_imports.search_folders(folders):
        yield


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


def _folder_hint(kind: str, path: Path) -> str:
    """Return how a folder is read, with a semicolon; empty for what is none."""
    resolver = _resolvers.get(kind)
    try:
        is_folder = path.is_dir()
    except (OSError, ValueError):  # a name that no folder can have
        is_folder = False
    if resolver is None or not resolver.folder_hint or not is_folder:
        return ""
    return f"{resolver.folder_hint.format(folder=shlex.quote(str(path)))}; "


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
