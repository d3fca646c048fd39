"""From a name to the object it means: the file name is the name.

`find("attacks", "pgd")` imports bench/attacks/pgd.py and returns its ATTACK. Outside code enters
as "package.module:NAME" or "path/file.py:NAME" (relative to the suite's folder) and is run: those
two forms execute a stranger's code, and so can a model's "path/net.pt2", a program in a file, which
its entry must therefore say to trust. "library:NAME" goes to the adapter file of that library,
where bench has one.
"""

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from bench import programs, source_hash
from bench.errors import SuiteError, describe, nearest

_read: dict[str, dict[Path, str]] = {}
"""Modules of the user's own -> the files that they and their imports were read from, and what those
held: a file that was edited since is read again, also in one process."""
RECORDS = {"attacks": "ATTACK", "models": "MODEL", "datasets": "DATASET", "formats": "FORMAT"}


def names(kind: str) -> list[str]:
    """The names of all built-in things of `kind`, sorted; adapters end in ":"."""
    found = []
    for module in pkgutil.iter_modules(importlib.import_module(f"bench.{kind}").__path__):
        adapter = not hasattr(_builtin(kind, module.name), RECORDS[kind])
        found.append(f"{module.name}:" if adapter else module.name)
    return sorted(found)


def built_in(kind: str, name: str) -> bool:
    """Whether `find` looks for `name` in bench's own files alone."""
    if kind == "models" and programs.named(name):
        return False
    return ":" not in name or f"{name.partition(':')[0]}:" in names(kind)


def find(kind: str, name: str, base: Path | None = None) -> Any:
    """The record or object called `name`; `base` is the folder that file names start from.

    Raises: SuiteError if there is none, with the nearest known name; whatever a stranger's file
    raises while it is imported is told in one sentence with its line.
    """
    if kind == "models" and programs.named(name):
        path = Path(base or ".") / name
        if not _there(path):
            raise SuiteError(f"{path}: expected a program's file there, found none")
        return partial(programs.opened, path)
    if ":" not in name:
        return getattr(_known(kind, name), RECORDS[kind])
    library, _, rest = name.partition(":")
    if f"{library}:" in names(kind):
        return _builtin(kind, library).adapt(rest)
    where, _, attribute = name.rpartition(":")
    module = _file(Path(base or ".") / where) if where.endswith(".py") else _module(where)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise SuiteError(
            f"{where}: '{attribute}' is not defined there; {nearest(attribute, public)}"
        ) from None


def _stems(kind: str) -> list[str]:
    package = importlib.import_module(f"bench.{kind}")
    return [module.name for module in pkgutil.iter_modules(package.__path__)]


def _builtin(kind: str, name: str) -> ModuleType:
    return importlib.import_module(f"bench.{kind}.{name}")


def _known(kind: str, name: str) -> ModuleType:
    if name not in _stems(kind) or not hasattr(_builtin(kind, name), RECORDS[kind]):
        raise SuiteError(f"{kind[:-1]} '{name}' is unknown; {nearest(name, names(kind))}")
    return _builtin(kind, name)


def _module(name: str) -> ModuleType:
    _refresh(name)
    try:
        module = importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a stranger's code; a name like ".x" raises, too
        raise SuiteError(f"module '{name}' could not be imported: {describe(error)}") from error
    file = source_hash.file_of(module)
    if name not in _read and file is not None and source_hash.is_own(file):
        _read[name] = source_hash.contents(file)
    return module


def _refresh(key: str) -> None:
    """Forget a module that was read before if a file of it holds something else now."""
    if key in _read and not source_hash.is_unchanged(_read[key]):
        source_hash.forget(_read.pop(key))


def _there(path: Path) -> bool:
    try:
        return path.resolve().is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _file(path: Path) -> ModuleType:
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
    _read[key] = source_hash.contents(path)
    return module


def _line_in(path: Path, error: BaseException) -> int:
    """The last line of `path` on the error's traceback, or the line of its syntax error."""
    line = getattr(error, "lineno", None) or 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return int(line)
