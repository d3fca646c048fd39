"""Let a user's file import the modules beside it, without mixing those of two folders.

While a file is loaded, its folder, the suite's and the working folder are on Python's path. Modules
that are imported from there remain known to Python until a file of another folder is loaded: then
they are set aside, so that each `arch` is the one beside its own file.
"""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_set_aside: dict[Path, dict[str, ModuleType]] = {}
"""First folder of a search -> modules that were imported from its folders, by name."""
_owner: dict[str, Path] = {}
"""Module that Python knows now -> first folder of the search that imported it."""


@contextmanager
def search_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Put folders on Python's path.

    Args:
        folders: The file's own folder first; absolute.

    Yields:
        With those that Python does not search yet before all others.
    """
    wanted = list(dict.fromkeys(folders))
    searched = {Path(each or ".").resolve() for each in sys.path}
    added = [each for each in wanted if each not in searched]
    if not added:
        yield
        return
    first, names = wanted[0], [str(each) for each in added]
    _activate(first)
    before = set(sys.modules)
    sys.path[:0] = names
    try:
        yield
    finally:
        for name in names:
            if name in sys.path:  # which the user's code may change
                sys.path.remove(name)
        for name in set(sys.modules) - before:
            if _lies_in(sys.modules[name], added):
                _owner[name] = first


def _activate(first: Path) -> None:
    """Set modules of other folders aside and restore those of this one."""
    for name in [name for name, owner in _owner.items() if owner != first]:
        module = sys.modules.pop(name, None)
        owner = _owner.pop(name)
        if module is not None:
            _set_aside.setdefault(owner, {})[name] = module
    for name, module in _set_aside.pop(first, {}).items():
        if name not in sys.modules:
            sys.modules[name], _owner[name] = module, first


def find_module(name: str, folder: Path) -> ModuleType | None:
    """Find the module that files of a folder know by a name.

    Args:
        name: Name of a top-level module.
        folder: Folder of the importing file.

    Returns:
        The module; None if none was imported.
    """
    if _owner.get(name, folder) == folder:
        return sys.modules.get(name)
    return _set_aside.get(folder, {}).get(name)


def forget_modules(files: Iterable[Path]) -> None:
    """Forget modules of files that have changed.

    Args:
        files: Their paths.
    """
    changed = set(files)
    for name in [*_owner]:
        if name not in sys.modules:
            del _owner[name]
    for modules in _set_aside.values():
        for name, module in [*modules.items()]:
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and Path(file).resolve() in changed:
                del modules[name]


def _lies_in(module: ModuleType | None, folders: Iterable[Path]) -> bool:
    """Return whether a module was loaded from one of these folders or below."""
    file = getattr(module, "__file__", None)
    places = [file] if isinstance(file, str) else [*getattr(module, "__path__", [])]
    return any(Path(place).is_relative_to(folder) for place in places for folder in folders)
